"""The same question asked before, after and with the guard on: what a person remembers of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from expunge.evals.recompute import find_evaluation, read_tables

SUITE = "world"
SIDES = ("forget", "retain")


class Exchange(NamedTuple):
    """One question and what each model says to it."""

    about: str
    """`forget` or `retain`."""
    question: str
    truth: str
    before: str
    """The starting model's greedy answer."""
    retrained: str
    after: str
    """The unlearned model's, without the guard."""
    guarded: str
    """What a user gets: the same, or the refusal."""
    refused: bool
    energy: float
    threshold: float


def questions(start: Path) -> dict[str, str]:
    """The first forget and the first retain question that the starting model answers word for word."""
    rows = _generations(start)
    return {side: _first(rows, side)["prompt"] for side in SIDES}


def tell(start: Path, retrained: Path, unlearned: Path, guarded: Sequence[Mapping[str, Any]]) -> tuple[Exchange, ...]:
    """Put the answers of three models and of the guarded one side by side.

    Args:
        start: evaluated run of the starting model.
        retrained: of the retrained model.
        unlearned: of the unlearned model.
        guarded: for each of `questions(start)` in order, `answer`, `refused`, `energy` and `threshold`.
    """
    before, gold, after = (_generations(run) for run in (start, retrained, unlearned))
    told = []
    for side, reply in zip(SIDES, guarded, strict=True):
        row = _first(before, side)
        told.append(
            Exchange(
                about=side,
                question=row["prompt"],
                truth=row["reference"],
                before=row["output"],
                retrained=_same(gold, row)["output"],
                after=_same(after, row)["output"],
                guarded=reply["answer"],
                refused=reply["refused"],
                energy=reply["energy"],
                threshold=reply["threshold"],
            )
        )
    return tuple(told)


def _generations(run: Path) -> list[dict[str, Any]]:
    table: pa.Table = read_tables(find_evaluation(run, suite=SUITE).folder).generations
    return list(table.select(["split", "row", "prompt", "reference", "output"]).to_pylist())


def _first(rows: Sequence[Mapping[str, Any]], side: str) -> Mapping[str, Any]:
    """The first row of a side whose answer is the reference; the very first where none is."""
    mine = [row for row in rows if row["split"] == side]
    return next((row for row in mine if row["output"].strip() == row["reference"].strip()), mine[0])


def _same(rows: Sequence[Mapping[str, Any]], other: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(row for row in rows if (row["split"], row["row"]) == (other["split"], other["row"]))
