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
from expunge.evals.suites import muse_openunlearning, tofu_openunlearning, tofu_original
from expunge.evals.suites.tofu_sheet import NO_REFERENCE, Fill, RuleOf, scored, views_of
from expunge.metrics.logged import view_logged
from expunge.metrics.view import SplitView

MUSE = "muse"
UNREAD = "this version does not know how the log's software aggregates it"
NO_LOG = (
    "no --reference given: `expunge import` reads the log of a model that was trained without the forget rows; then"
    " name its folder"
)
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
    ("tofu", "openunlearning"): _Profile(tofu_openunlearning.fill, tofu_openunlearning.rule),
    ("tofu", "tofu"): _Profile(tofu_original.fill, tofu_original.rule, tofu_original.FIRST),
    ("muse", "openunlearning"): _Profile(muse_openunlearning.fill, muse_openunlearning.rule),
}
"""Suite and profile -> how its metrics are computed; `MUSE` is of the log of MUSE's own code, and not among these."""


def measure_logged(
    ours: LoggedSide | Tables, *, reference: LoggedSide | Tables | None, suite: str, profile: str
) -> LogMeasured:
    """Every metric of one evaluation, one side or both of which are imported logs.

    Args:
        ours: what is measured.
        reference: the retrained model; a log or an evaluation of our own.
        suite: `tofu` or `muse`; what either side is of.
        profile: whose definitions and names. Missing rows are left out, as the originals do.

    Returns:
        The scores; what a log has no values for is skipped with the reason.

    Raises:
        UsageError: an evaluation of our own beside a log of MUSE's code.
        MetricError: the reference is of other rows or questions.
    """
    if profile == MUSE:
        return _muse(ours, reference)
    chosen = _PROFILES[suite, profile]
    views = _views(ours, profile, chosen.first)
    theirs = None if reference is None else _views(reference, profile, chosen.first)
    compared = None if theirs is None else check_same_questions(views, theirs, needed="forget")
    measured = scored(views, theirs, fill=chosen.fill, rule=chosen.rule, allow_missing=True)
    return LogMeasured(_told(measured, ours), compared)


def require_profile(suite: str, profile: str, *, logged: str) -> None:
    """Refuse a profile that cannot be computed where an imported log is on either side.

    Args:
        suite: the log's.
        profile: whose definitions are asked for.
        logged: whose definitions the log's software followed. On TOFU's rows others can be computed as well.

    Raises:
        UsageError: it needs the tokens that a log does not have, or is not of the log's suite.
    """
    known = [of for on, of in _PROFILES if on == suite] if suite == "tofu" else [logged]
    if MUSE in known and profile != MUSE:
        raise UsageError(
            f"a log that MUSE's own code wrote is compared with such logs only, and not under the profile {profile!r}",
            hint="leave out --profile, and import the retrained model's log of that code as well",
        )
    if profile not in known:
        raise UsageError(
            f"profile {profile!r} cannot be computed with an imported log, which has values of rows and no tokens",
            hint=f"use --profile {' or '.join(known)}, or evaluate the model itself",
        )


def _muse(ours: LoggedSide | Tables, reference: LoggedSide | Tables | None) -> LogMeasured:
    if isinstance(ours, Tables) or isinstance(reference, Tables):
        raise UsageError(
            "a log that MUSE's own code wrote is compared with such logs only",
            hint="import the log of the retrained model as well",
        )
    views = view_logged(*ours.tables)
    theirs = None if reference is None else view_logged(*reference.tables)
    compared = None if theirs is None else check_same_questions(views, theirs, needed=None)
    known = None if reference is None or theirs is None else (theirs, reference.alone)
    return LogMeasured(_told(measure_muse(views, ours.alone, reference=known), ours), compared)


def _views(side: LoggedSide | Tables, profile: str, first: int | None) -> Mapping[str, SplitView]:
    if isinstance(side, Tables):
        return views_of(side, first=first)
    views = view_logged(*side.tables, first=first)
    if profile != "openunlearning":
        return views
    return {
        name: replace(view, paraphrase=None) if name in WITHOUT_PARAPHRASES else view for name, view in views.items()
    }


def _told(measured: Measured, ours: LoggedSide | Tables) -> Measured:
    """With the reasons that hold for a log."""
    if isinstance(ours, Tables):
        return measured
    known = {name: NO_LOG if why == NO_REFERENCE else why for name, why in measured.skipped.items()}
    return measured._replace(skipped=known | dict.fromkeys(ours.unread, UNREAD))
