"""What metrics and suites there are and how they belong together, for `expunge ls`, without torch or arrays."""

from __future__ import annotations

from typing import Any

from expunge.evals.suite_facts import every_suite
from expunge.metrics.explain import every_metric

Facts = dict[str, Any]


def metric_facts() -> list[Facts]:
    """Every metric of the registry, in its order: what `expunge explain` says of it."""
    return [metric.to_json() for metric in every_metric()]


def suite_facts() -> list[Facts]:
    """Every catalogued suite: what it needs, its splits and profiles, what it reports, what it was tested on."""
    found = []
    for entry, facts in every_suite():
        stated: Facts = {} if facts is None else facts._asdict()
        reported = [metric for metric in every_metric() if entry.name in metric.card.where]
        found.append(
            {
                "name": entry.name,
                "summary": entry.summary,
                "target": entry.target,
                **{key: stated.get(key) for key in ("needs", "gains", "splits", "profiles", "tested_on", "source")},
                "metrics": [metric.name for metric in reported],
            }
        )
    return found


def ideal_in_short(facts: Facts) -> str:
    """`1`; `retrained` where it is the retrained model's value, with what it is without one."""
    if facts["ideal"] is not None:
        return f"{facts['ideal']:g}"
    alone = facts["ideal_without_reference"]
    return "retrained" if alone is None else f"retrained, else {alone:g}"
