"""What is to be known of one metric before its number is believed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_ARXIV = re.compile(r"\b(\d{4}\.\d{5})\b")


class Card(NamedTuple):
    """The long form of a line of the registry."""

    definition: str
    """What it measures, over which rows, how they are summed up, and its range."""
    formula: str
    """As `docs/metrics.md` has it; of one row where the metric is a mean over rows."""
    cannot_tell: str
    """What it must not be taken for, as `docs/metrics.md` has it."""
    source: str
    where: Mapping[str, tuple[str, ...]]
    """Suite that reports it -> splits it is reported for; none where the name has no split."""
    ideal: float | None = None
    """What perfect unlearning scores; None: what the retrained model scores."""
    chance: float | None = None
    """The ideal where no retrained model is given."""

    @property
    def ideal_in_words(self) -> str:
        """`1`, or where the ideal comes from."""
        if self.ideal is not None:
            return f"{self.ideal:g}"
        other = "" if self.chance is None else f"; without one {self.chance:g}"
        return f"the retrained model's value (--reference){other}"

    @property
    def urls(self) -> list[str]:
        """The papers of `source` that are on arXiv."""
        return [f"https://arxiv.org/abs/{number}" for number in _ARXIV.findall(self.source)]
