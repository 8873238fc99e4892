"""Several seeds as one: the mean of every metric and how far the seeds lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def mean_runs(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One entry per run name, in the first seed's order.

    Args:
        seeds: for each seed its runs, as `DemoRun.to_json` gives them; every seed has the same names.

    Returns:
        Runs like those of one seed. Of a metric `value` is the mean over seeds, `low` and `high` are the lowest and
        the highest seed (not an interval within one), `values` lists every seed, and `n`, `n_total` and `ideal` are
        summed or averaged. A metric that a seed lacks is left out, and listed under `skipped`.
    """
    return [_mean([seed[place] for seed in seeds]) for place in range(len(seeds[0]))]


def _mean(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = runs[0]
    shared = [name for name in first["metrics"] if all(name in run["metrics"] for run in runs)]
    lost = {name: "not measured for every seed" for run in runs for name in run["metrics"] if name not in shared}
    return {
        "name": first["name"],
        "method": first["method"],
        "path": first["path"],
        "cached": all(run["cached"] for run in runs),
        "metrics": {name: _mean_score([run["metrics"][name] for run in runs]) for name in shared},
        "skipped": {**first["skipped"], **lost},
    }


def _mean_score(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [score["value"] for score in scores]
    ideals = [score["ideal"] for score in scores if score["ideal"] is not None]
    return {
        "value": sum(values) / len(values),
        "low": min(values),
        "high": max(values),
        "values": values,
        "n": sum(score["n"] for score in scores),
        "n_total": sum(score["n_total"] for score in scores),
        "ideal": sum(ideals) / len(ideals) if len(ideals) == len(scores) else None,
        "direction": scores[0]["direction"],
    }
