"""What metrics with settings in their names are called: `forget.leak_at_4_contains_t0.8_p1`, `energy.auroc_t0.5`."""

from __future__ import annotations

import re
from typing import NamedTuple


class Cell(NamedTuple):
    """How answers were sampled."""

    temperature: float
    top_p: float


TEMPERED_ENERGY = "energy.auroc_tT"
"""The AUROC of energies at another temperature than 1, as the registry has it."""
HEADLINE = Cell(1.0, 1.0)
"""The settings whose metrics carry no settings in their names: the model's own distribution."""

_NAME = re.compile(r"(?P<split>.*)\bleak_at_(?P<k>\d+)(?:_(?P<score>[a-z]+))?(?:_t(?P<t>[\d.e+-]+)_p(?P<p>[\d.e+-]+))?")
_ENERGY = re.compile(r"energy\.auroc_t[\d.e+-]+")


class LeakName(NamedTuple):
    """What the name of a metric says."""

    split: str
    k: int
    score: str
    """What counts as leaking; empty: words of the answer, by ROUGE-L recall."""
    cell: Cell

    def __str__(self) -> str:
        """The name itself."""
        settings = "" if self.cell == HEADLINE else f"_t{self.cell.temperature:g}_p{self.cell.top_p:g}"
        return f"{self.split}.leak_at_{self.k}{self.score and f'_{self.score}'}{settings}"


def leak_name(split: str, k: int, *, score: str = "", cell: Cell = HEADLINE) -> str:
    """The name of one metric.

    Args:
        split: whose rows.
        k: answers that may be drawn.
        score: what counts as leaking; empty: words of the answer, by ROUGE-L recall.
        cell: how the answers were sampled.
    """
    return str(LeakName(split, k, score, cell))


def read_leak_name(name: str) -> LeakName | None:
    """The parts of a name; None of one that is no Leak@k with a number and a split."""
    found = _NAME.fullmatch(name)
    if found is None or not found["split"].endswith("."):
        return None
    cell = HEADLINE if found["t"] is None else Cell(float(found["t"]), float(found["p"]))
    return LeakName(found["split"][:-1], int(found["k"]), found["score"] or "", cell)


def energy_name(temperature: float) -> str:
    """The AUROC of energies at a temperature: `energy.auroc_t0.5`, and at 1 `energy.auroc`."""
    return "energy.auroc" if temperature == 1 else f"energy.auroc_t{temperature:g}"


def listed_name(name: str) -> str:
    """The name as the registry has it: with K for its number and without sampling settings, or with T for its
    temperature; any other name as it is."""
    if _ENERGY.fullmatch(name):
        return TEMPERED_ENERGY
    found = _NAME.fullmatch(name)
    if found is None:
        return name
    score = f"_{found['score']}" if found["score"] else ""
    return f"{found['split']}leak_at_K{score}"
