"""Ten questions side by side: chosen by a rule, so that nobody picked them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from expunge.report.collect import EvaluatedRun
from expunge.report.energies import prompt_energies
from expunge.report.text import Shown
from expunge.report.withheld import PURGED, Hide, is_forget, same_words

FORGET, RETAIN, BEYOND = 5, 3, 2
_BEYOND = ("neighbours", "holdout", "real_authors", "world_facts")

HOW = (
    "Rows are ordered by the SHA-256 of split and row id and the first ones are taken, so nobody picked them, and every"
    " run of the same rows shows the same ones."
)


class Answer(NamedTuple):
    """What one model says to a question."""

    who: str
    role: str
    text: Shown
    exact: bool | None
    """Whether it is the true answer, word for word; None where that is unknown."""


@dataclass(frozen=True)
class Example:
    """One question with the true answer and every model's."""

    id: str
    split: str
    side: str
    """`forget` or `retain`: on which side of the line it lies."""
    question: Shown
    truth: Shown
    answers: tuple[Answer, ...]
    energy: float | None = None
    refused: bool | None = None
    """Whether the guard refuses it; None without a guard."""


class Chosen(NamedTuple):
    """The examples and, in words, what is missing among them."""

    examples: tuple[Example, ...]
    notes: tuple[str, ...]


def choose(
    this: EvaluatedRun,
    models: Mapping[str, tuple[str, EvaluatedRun | None, str | None]],
    *,
    threshold: float | None,
    key: bytes | None,
) -> Chosen:
    """Five forget rows, three retain rows and two others: neighbours, else rows never trained on, else more retain.

    Args:
        this: the run whose rows are shown.
        models: what a model is called -> its role, its run, and why there is none.
        threshold: the guard's; None without one.
        key: withhold the text of forget rows and show digests under this key; None: show it.
    """
    made = this.tables.generations
    generated = list(dict.fromkeys(made["split"].to_pylist()))
    notes = []
    beyond = next((split for split in _BEYOND if split in generated), None)
    if beyond is None:
        notes.append("No answers were generated for neighbours or unseen rows; two more retain rows stand in.")
        wanted = [("forget", FORGET), ("retain", RETAIN + BEYOND)]
    else:
        wanted = [("forget", FORGET), ("retain", RETAIN), (beyond, BEYOND)]
    outputs = {who: (role, _outputs(run), reason) for who, (role, run, reason) in models.items()}
    found: list[Example] = []
    for split, amount in wanted:
        if split not in generated:
            notes.append(f"No answers were generated for split {split}.")
            continue
        energies = prompt_energies(this, split)
        for row in _first(made, split, amount):
            energy = energies.get(int(row["row"]))
            refused = None if threshold is None or energy is None else energy > threshold
            found.append(_example(row, outputs, Hide.of(split, key), energy, refused))
    if any(example.question.note == PURGED for example in found):
        notes.append("The text of these rows was purged from this run (`expunge purge`); only numbers are left of it.")
    return Chosen(tuple(found), tuple(notes))


def _outputs(run: EvaluatedRun | None) -> dict[tuple[str, int], str | None]:
    """(split, row) -> greedy answer, None where it was purged."""
    if run is None:
        return {}
    table = run.tables.generations
    places = zip(table["split"].to_pylist(), table["row"].to_pylist(), strict=True)
    return dict(zip(places, table["output"].to_pylist(), strict=True))


def _first(table: pa.Table, split: str, amount: int) -> list[dict[str, Any]]:
    mine = table.filter(pc.equal(table["split"], split)).select(["split", "row", "id", "prompt", "reference"])
    return sorted(mine.to_pylist(), key=_place)[:amount]


def _place(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{row['split']}\0{row['id']}".encode()).hexdigest()


def _example(
    row: Mapping[str, Any],
    outputs: Mapping[str, tuple[str, Mapping[tuple[str, int], str | None], str | None]],
    hide: Hide,
    energy: float | None,
    refused: bool | None,
) -> Example:
    place, truth = (row["split"], row["row"]), row["reference"]
    answers = []
    for who, (role, texts, reason) in outputs.items():
        text = texts.get(place)
        absent = reason or (PURGED if place in texts else "no answer was generated")
        exact = None if text is None or truth is None else same_words(text, truth)
        answers.append(Answer(who, role, hide.output(exact=exact)(text, absent), exact))
    side = "forget" if is_forget(row["split"]) else "retain"
    return Example(row["id"], row["split"], side, hide(row["prompt"]), hide(truth), tuple(answers), energy, refused)


def broken_share(run: EvaluatedRun, split: str = "forget") -> tuple[float, int] | None:
    """The share of greedy answers that nobody would take for one: unending, stuttering or hardly any words.

    Returns:
        The share and the number of answers; None where none were generated or their text was purged.
    """
    table = run.tables.generations
    mine = table.filter(pc.equal(table["split"], split))
    if mine.num_rows == 0 or mine["output"].null_count:
        return None
    pairs = zip(mine["output"].to_pylist(), mine["ended"].to_pylist(), strict=True)
    return sum(is_broken(text, ended=ended) for text, ended in pairs) / mine.num_rows, mine.num_rows


def is_broken(text: str, *, ended: bool) -> bool:
    """Whether a greedy answer never ends, says a word three times in a row, or is half repetition.

    A rough sign of text nobody can read, not a measure of language.
    """
    words: Sequence[str] = text.lower().split()
    stutters = any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))
    repeats = len(words) >= 8 and len(set(words)) < 0.5 * len(words)
    return not ended or len(words) == 0 or stutters or repeats
