"""KLOM over runs: several unlearned models against several retrained ones, from their tables. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from expunge.errors import MetricError, UsageError
from expunge.evals.recompute import Stored, find_comparable, find_evaluation, read_tables
from expunge.metrics.estimate import mean_estimate
from expunge.metrics.klom import klom, sequence_margins
from expunge.metrics.pairing import check_same_rows
from expunge.metrics.score import Score
from expunge.metrics.view import SplitView, split_names, view_split

FEWEST = 2
"""Models of each kind: a histogram of one model says nothing about training again."""
QUANTILE = 0.95

Views = dict[str, SplitView]


class RunsMeasured(NamedTuple):
    """What several runs together gave; nothing is written."""

    path: str
    """How many models were compared."""
    suite: str
    profile: str
    scores: dict[str, Score]
    skipped: dict[str, str]


def klom_of_runs(
    unlearned: Sequence[Path], retrained: Sequence[Path], *, suite: str | None = None, allow_missing: bool = False
) -> RunsMeasured:
    """`<split>.klom` and its 95 % quantile over rows, of every split that was evaluated.

    A row's margin is the mean over its answer's tokens, the end token included (`expunge.metrics.klom`).

    Args:
        unlearned: evaluated runs of the same method, trained with different seeds.
        retrained: evaluated runs of retrained models, likewise.
        suite: which suite's tables, where runs have several.
        allow_missing: accept splits of which less than 99 % of the rows can be measured.

    Raises:
        UsageError: fewer than two runs of a kind, one run or one model twice, or a run that is not evaluated.
        MetricError: runs that were not measured on the same rows with the same template.
    """
    # A path that is no run is the likelier mistake than a sample that is too small.
    first = find_evaluation(unlearned[0], suite=suite)
    others = [find_comparable(run, first, who="the run") for run in unlearned[1:]]
    theirs = [find_comparable(run, first) for run in retrained]
    for kind, runs in (("unlearned", unlearned), ("retrained", retrained)):
        if len(runs) < FEWEST:
            raise UsageError(
                f"KLOM compares samples of models: {len(runs)} {kind}, at least {FEWEST} are needed",
                hint="give runs of several seeds: expunge metrics RUN RUN... --reference RUN --reference RUN...",
            )
    _require_different([first, *others])
    _require_different(theirs)
    views = [stored_views(stored) for stored in (first, *others, *theirs)]
    for stored, own in zip((*others, *theirs), views[1:], strict=True):
        check_same_rows(views[0], own, needed="forget", who=str(stored.folder))
    scores: dict[str, Score] = {}
    for split in views[0]:
        if missing := [own for own in views if split not in own]:
            raise MetricError(
                f"{len(missing)} of {len(views)} runs have no {split!r} rows", hint="evaluate all of them alike"
            )
        margins = [sequence_margins(own[split].answers("logp", "with_eos")) for own in views]
        count = len(unlearned)
        values = klom(np.stack(margins[:count]), np.stack(margins[count:]))
        estimate = mean_estimate(views[0][split].column(values), name=f"{split}.klom", allow_missing=allow_missing)
        scores[f"{split}.klom"] = estimate.score("lower", ideal=0.0)
        tail = float(np.nanquantile(values, QUANTILE))
        scores[f"{split}.klom_p95"] = Score(tail, None, None, estimate.n, estimate.n_total, 0.0, "lower")
    compared = f"{len(unlearned)} unlearned and {len(retrained)} retrained models"
    return RunsMeasured(compared, first.suite, first.profile, scores, {})


def stored_views(stored: Stored) -> Views:
    """Every split of a stored evaluation."""
    tables = read_tables(stored.folder)
    return {split: view_split(tables.trace, tables.generations, split) for split in split_names(tables.trace)}


def _require_different(runs: Sequence[Stored]) -> None:
    """Refuse one model counted twice: it would make any sample look certain."""
    seen: dict[str, Path] = {}
    for stored in runs:
        model = str(stored.spec.get("model_digest") or stored.folder.resolve())
        if model in seen:
            raise UsageError(
                f"{stored.folder} and {seen[model]} hold the same model", hint="give runs of different seeds, each once"
            )
        seen[model] = stored.folder
