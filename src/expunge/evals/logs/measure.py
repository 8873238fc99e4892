"""Metrics of imported logs, and of evaluations that are compared with one. No model, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from expunge.errors import UsageError
from expunge.evals.logs.muse_metrics import measure_muse
from expunge.evals.logs.questions import check_same_questions
from expunge.evals.logs.record import LogTables
from expunge.evals.suite import Measured, Tables
from expunge.evals.suites import tofu_openunlearning, tofu_original
from expunge.evals.suites.tofu_sheet import Fill, RuleOf, scored, views_of
from expunge.metrics.logged import view_logged
from expunge.metrics.view import SplitView

MUSE = "muse"
UNREAD = "this version does not know how the log's software aggregates it"
WITHOUT_PARAPHRASES = ("real_authors", "world_facts")
"""Splits in which OpenUnlearning compares wrong answers with the answer itself; TOFU scored it a second time."""


class LoggedSide(NamedTuple):
    """An imported log on disk."""

    tables: LogTables
    alone: Mapping[str, float]
    """Aggregates that came without rows."""
    unread: tuple[str, ...]
    """Metrics of the log that were not read."""


class LogMeasured(NamedTuple):
    """What was computed, and how its reference was checked."""

    measured: Measured
    questions_compared: bool | None
    """Whether the questions were compared, or row numbers only; None without a reference."""


class _Profile(NamedTuple):
    fill: Fill
    rule: RuleOf
    first: int | None = None


_PROFILES = {
    "openunlearning": _Profile(tofu_openunlearning.fill, tofu_openunlearning.rule),
    "tofu": _Profile(tofu_original.fill, tofu_original.rule, tofu_original.FIRST),
}


def measure_logged(
    ours: LoggedSide | Tables, *, reference: LoggedSide | Tables | None, suite: str, profile: str
) -> LogMeasured:
    """Every metric of one evaluation, one side or both of which are imported logs.

    Args:
        ours: what is measured.
        reference: the retrained model; a log or an evaluation of our own.
        suite: `tofu` or `muse`.
        profile: whose definitions and names. Missing rows are left out, as the originals do.

    Returns:
        The scores; what a log has no values for is skipped with the reason.

    Raises:
        UsageError: a profile that needs the tokens which a log does not have.
        MetricError: the reference is of other rows or questions.
    """
    require_profile(suite, profile)
    if suite == MUSE:
        return _muse(ours, reference)
    chosen = _PROFILES[profile]
    views = _views(ours, profile, chosen.first)
    theirs = None if reference is None else _views(reference, profile, chosen.first)
    compared = None if theirs is None else check_same_questions(views, theirs, needed="forget")
    measured = scored(views, theirs, fill=chosen.fill, rule=chosen.rule, allow_missing=True)
    return LogMeasured(_with_unread(measured, ours), compared)


def require_profile(suite: str, profile: str) -> None:
    """Refuse a profile that cannot be computed where an imported log is on either side.

    Raises:
        UsageError: it needs the tokens that a log does not have, or is not of the log's suite.
    """
    known = [MUSE] if suite == MUSE else list(_PROFILES)
    if profile not in known:
        raise UsageError(
            f"profile {profile!r} cannot be computed with an imported log, which has values of rows and no tokens",
            hint=f"use --profile {' or '.join(known)}, or evaluate the model itself",
        )


def _muse(ours: LoggedSide | Tables, reference: LoggedSide | Tables | None) -> LogMeasured:
    if isinstance(ours, Tables) or isinstance(reference, Tables):
        raise UsageError(
            "a log of MUSE is compared with logs of MUSE only", hint="import the log of the retrained model as well"
        )
    views = view_logged(*ours.tables)
    theirs = None if reference is None else view_logged(*reference.tables)
    compared = None if theirs is None else check_same_questions(views, theirs, needed=None)
    known = None if reference is None or theirs is None else (theirs, reference.alone)
    return LogMeasured(_with_unread(measure_muse(views, ours.alone, reference=known), ours), compared)


def _views(side: LoggedSide | Tables, profile: str, first: int | None) -> Mapping[str, SplitView]:
    if isinstance(side, Tables):
        return views_of(side, first=first)
    views = view_logged(*side.tables, first=first)
    if profile != "openunlearning":
        return views
    return {
        name: replace(view, paraphrase=None) if name in WITHOUT_PARAPHRASES else view for name, view in views.items()
    }


def _with_unread(measured: Measured, ours: LoggedSide | Tables) -> Measured:
    unread = ours.unread if isinstance(ours, LoggedSide) else ()
    return measured._replace(skipped=measured.skipped | dict.fromkeys(unread, UNREAD))
