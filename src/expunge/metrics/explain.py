"""What `expunge explain METRIC` prints: the registry's line of a metric with its card, for any split's name."""

from __future__ import annotations

from typing import Any, NamedTuple

from expunge.catalog import unknown
from expunge.metrics.card import Card
from expunge.metrics.cards.every import CARDS
from expunge.metrics.registry import METRICS, MetricInfo, direction_of

SPLIT = "<split>."


class Explained(NamedTuple):
    """One metric, under the name that was asked for."""

    name: str
    info: MetricInfo
    card: Card
    direction: str
    """`lower`, `higher` or `match`; in words where the name leaves the split open and it depends on that."""

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "name": self.name,
            "summary": self.info.summary,
            "direction": self.direction,
            "ideal": self.card.ideal,
            "ideal_without_reference": self.card.chance if self.card.ideal is None else self.card.ideal,
            "definition": self.card.definition,
            "formula": self.card.formula,
            "cannot_tell": self.card.cannot_tell,
            "source": self.card.source,
            "urls": self.card.urls,
            "suites": {suite: list(splits) for suite, splits in self.card.where.items()},
        }


def explain(name: str) -> Explained:
    """Everything that is written down about a metric.

    Args:
        name: as a suite reports it (`forget.rougeL_recall`), as the registry lists it (`<split>.rougeL_recall`), or
            without its split (`rougeL_recall`).

    Raises:
        UsageError: no suite reports such a metric; the message offers the nearest name.
    """
    listed = {info.name: info for info in METRICS}
    if (open_name := SPLIT + name) in listed:
        name = open_name
    if name in listed:
        return Explained(name, listed[name], CARDS[name], _direction(listed[name]))
    for info in METRICS:
        if name in names_of(info):
            return Explained(name, info, CARDS[info.name], str(direction_of(name)))
    raise unknown("metric", name, _close_to(name, listed))


def every_metric() -> list[Explained]:
    """The registry with its cards, in its order."""
    return [explain(info.name) for info in METRICS]


def names_of(info: MetricInfo) -> list[str]:
    """The names under which suites report a metric: one per split, or its own."""
    if not info.name.startswith(SPLIT):
        return [info.name]
    splits = dict.fromkeys(split for splits in CARDS[info.name].where.values() for split in splits)
    return [info.name.replace(SPLIT, f"{split}.") for split in splits]


def _direction(info: MetricInfo) -> str:
    return info.direction if info.name.startswith(SPLIT) else str(direction_of(info.name))


def _close_to(name: str, listed: dict[str, MetricInfo]) -> list[str]:
    """The names to look among: every split's where the ending is right, else those of this split."""
    split, _, ending = name.partition(".")
    if SPLIT + ending in listed:
        return names_of(listed[SPLIT + ending])
    return [known.replace(SPLIT, f"{split}." if ending else "") for known in listed]


def known_names() -> list[str]:
    """Every name that `explain` answers to."""
    listed = [info.name for info in METRICS]
    reported = [name for info in METRICS for name in names_of(info)]
    return list(dict.fromkeys([*listed, *reported, *(name.removeprefix(SPLIT) for name in listed)]))
