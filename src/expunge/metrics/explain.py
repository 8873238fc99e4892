"""What `expunge explain METRIC` prints: the registry's line of a metric with its card, for any split's name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from expunge.catalog import unknown
from expunge.errors import UsageError
from expunge.metrics.card import Card
from expunge.metrics.cards.every import CARDS
from expunge.metrics.cards.profiles import OWN_CARDS, PROFILE_NAMES, ProfileName
from expunge.metrics.leak_names import listed_name
from expunge.metrics.registry import METRICS, MetricInfo, direction_of

SPLIT = "<split>."
_OWN_SPLITS = ("custom", "mmlu")
"""Suites whose rows name splits of their own."""


class Explained(NamedTuple):
    """One metric, under the name that was asked for."""

    name: str
    info: MetricInfo
    card: Card
    direction: str
    """`lower`, `higher` or `match`; in words where the name leaves the split open and it depends on that."""
    version: ProfileName | None = None
    """Whose it is, where it is no canonical name but one of another profile or of a log."""
    others: tuple[ProfileName, ...] = ()
    """What other profiles and logs call it, with their differences."""

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
            "profile": "canonical" if self.version is None else self.version.profile,
            "version_of": [] if self.version is None else self.version.versions(),
            "differs": None if self.version is None or self.version.like is None else self.version.differs,
            "other_profiles": [
                {"name": other.name, "profile": other.profile, "differs": other.differs} for other in self.others
            ],
        }


def explain(name: str) -> Explained:
    """Everything that is written down about a metric.

    Args:
        name: as a suite reports it (`forget.rougeL_recall`), as the registry lists it (`<split>.rougeL_recall`),
            without its split (`rougeL_recall`), or as another profile or an imported log has it
            (`forget_Q_A_ROUGE`).

    Returns:
        What is known; of a name that several profiles have what the canonical one means, and the others' differences.

    Raises:
        UsageError: no suite reports such a metric; the message offers the nearest name.
    """
    listed = {info.name: info for info in METRICS}
    if (open_name := SPLIT + name) in listed:
        name = open_name
    if name in listed:
        return Explained(name, listed[name], CARDS[name], _direction(listed[name]), others=_others(name))
    for info in METRICS:
        if listed_name(name) in names_of(info) or _of_own_split(listed_name(name), info):
            return Explained(name, info, CARDS[info.name], str(direction_of(name)), others=_others(name))
    for version in PROFILE_NAMES:
        if version.name == name:
            return _of_profile(version)
    near = _close_to(name, listed)
    if not difflib.get_close_matches(name, near, n=1, cutoff=0.5):
        raise UsageError(f"unknown metric {name!r}", hint="`expunge ls metrics` lists them")
    raise unknown("metric", name, near)


def _of_own_split(name: str, info: MetricInfo) -> bool:
    """Whether the name is that metric of a split which only a user's rows or a subject can have named."""
    split, _, ending = name.partition(".")
    if info.name != SPLIT + ending or not set(_OWN_SPLITS) & CARDS[info.name].where.keys():
        return False
    known = {each for card in CARDS.values() for splits in card.where.values() for each in splits}
    return split.isidentifier() and not difflib.get_close_matches(split, known, n=1, cutoff=0.8)


def _others(name: str) -> tuple[ProfileName, ...]:
    """What other profiles call a canonical metric, of one split or of any."""
    return tuple(each for each in PROFILE_NAMES if each.like is not None and name in (each.like, *each.versions()))


def _of_profile(version: ProfileName) -> Explained:
    if version.like is None:
        card, summary = OWN_CARDS[version.name], f"a metric of the profile {version.profile}"
    else:
        card = CARDS[version.like]._replace(where=version.where)
        summary = f"{' and '.join(version.versions())} in the profile {version.profile}"
    info = MetricInfo(version.name, version.direction, summary)
    return Explained(version.name, info, card, version.direction, version)


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
    if not ending or " " in name:
        return [*(info.name.removeprefix(SPLIT) for info in METRICS), *(each.name for each in PROFILE_NAMES)]
    if SPLIT + ending in listed:
        return names_of(listed[SPLIT + ending])
    endings = [known.removeprefix(SPLIT) for known in listed if known.startswith(SPLIT)]
    near = difflib.get_close_matches(ending, endings, n=1, cutoff=0.6)
    return [*(f"{split}.{each}" for each in near), *(known for known in listed if not known.startswith(SPLIT))]


def known_names() -> list[str]:
    """Every name that `explain` answers to."""
    listed = [info.name for info in METRICS]
    reported = [name for info in METRICS for name in names_of(info)]
    bare = [name.removeprefix(SPLIT) for name in listed]
    return list(dict.fromkeys([*listed, *reported, *bare, *(each.name for each in PROFILE_NAMES)]))


def said_of(others: Sequence[ProfileName]) -> list[str]:
    """`openunlearning: forget_Q_A_ROUGE; the same`: names with one difference from the canonical metric together."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for each in others:
        grouped.setdefault((each.profile, each.differs), []).append(each.name)
    return [f"{profile}: {', '.join(names)}; {differs}" for (profile, differs), names in grouped.items()]
