"""Several unlearned models side by side: MUSE's scalability and sustainability, from their tables. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from expunge.errors import UsageError
from expunge.evals.answers import require_scored_for
from expunge.evals.klom import RunsMeasured, stored_views
from expunge.evals.recompute import Stored, find_comparable, find_evaluation, measure_of, read_tables
from expunge.evals.suite import Measured, Profile
from expunge.metrics.pairing import check_same_rows
from expunge.metrics.score import Score
from expunge.runs.manifest import Manifest, load_manifest

SUITE = "muse"
CURVES: Mapping[str, tuple[str, ...]] = {
    "canonical": ("retain.knowmem", "forget.knowmem", "forget_verbatim.verbmem"),
    "openunlearning": ("retain_knowmem_ROUGE", "forget_knowmem_ROUGE", "forget_verbmem_ROUGE"),
}
"""Profile -> what is drawn against the folds, utility first."""

Kind = Literal["scalability", "sustainability"]


def folds_of_runs(runs: Sequence[Path], *, profile: Profile | None = None, allow_missing: bool = False) -> RunsMeasured:
    """Utility and memorisation after each of several removal requests, `retain.knowmem@1`, `retain.knowmem@2`, ...

    Scalability where every run started from the same model (each fold removed by itself, smaller ones first),
    sustainability where each started from the one before it (folds removed one after the other). MUSE defines the
    curve and no number over it.

    Args:
        runs: at least two unlearned runs, evaluated on the suite `muse`, in the order of their folds.
        profile: whose definitions; the evaluated profile unless said.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Returns:
        The scores with the number of the run behind the name; `path` says which of the two ways it is and how many rows
        each run was to forget.

    Raises:
        UsageError: fewer than two runs, one that is not an unlearned and evaluated run, or runs that neither start
            from one model nor each from the one before it.
        MetricError: runs that were not measured on the same rows.

    Source:
        MUSE (arXiv 2407.06460), criteria 5 and 6.
    """
    if len(runs) < 2:
        raise UsageError(f"a curve over folds needs at least two runs, found {len(runs)}", hint="name one per fold")
    first = find_evaluation(runs[0], suite=SUITE, profile=profile)
    stored = [first, *(find_comparable(run, first, who="the run") for run in runs[1:])]
    manifests = [_unlearned(one) for one in stored]
    kind = _kind(stored, manifests)
    _same_rows(stored)
    scores: dict[str, Score] = {}
    skipped: dict[str, str] = {}
    chosen = profile or first.profile
    measured = [_measured(one, chosen, allow_missing=allow_missing) for one in stored]
    for name in CURVES[chosen]:
        for number, found in enumerate(measured, start=1):
            if name in found.scores:
                scores[f"{name}@{number}"] = found.scores[name]
            else:
                skipped[f"{name}@{number}"] = found.skipped[name]
    rows = ", ".join(str(sum(item.rows for item in one.data if item.role == "forget")) for one in manifests)
    return RunsMeasured(f"{kind}: {len(runs)} runs, {rows} rows to forget", SUITE, chosen, scores, skipped)


def _same_rows(stored: Sequence[Stored]) -> None:
    views = [stored_views(one) for one in stored]
    for one, theirs in zip(stored[1:], views[1:], strict=True):
        check_same_rows(views[0], theirs, needed="forget", who=str(one.folder))


def _measured(one: Stored, profile: str, *, allow_missing: bool) -> Measured:
    require_scored_for(one, profile)
    return measure_of(SUITE)(read_tables(one.folder), profile=profile, allow_missing=allow_missing)


def _unlearned(one: Stored) -> Manifest:
    run = one.folder.resolve().parents[1]
    manifest = load_manifest(run)
    if manifest.kind != "unlearn" or manifest.model is None or manifest.model.digest is None:
        raise UsageError(
            f"{run} is not an unlearned run (kind of run: {manifest.kind}), so nobody knows what it started from",
            hint="name the runs of `expunge unlearn`, or request-1, request-2, ... of a sequence",
        )
    return manifest


def _kind(stored: Sequence[Stored], manifests: Sequence[Manifest]) -> Kind:
    starts = [one.model.digest for one in manifests if one.model is not None]
    if len(set(starts)) == 1:
        return "scalability"
    for number, (start, before) in enumerate(zip(starts[1:], stored, strict=False), start=2):
        if start != before.spec.get("model_digest"):
            raise UsageError(
                f"the {len(stored)} runs start from different models, and run {number}"
                f" ({stored[number - 1].folder.resolve().parents[1]}) does not start from the one before it",
                hint="scalability: every run from the same model; sustainability: each from the one named before it",
            )
    return "sustainability"
