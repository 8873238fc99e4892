"""What most suites refuse in the same words."""

from __future__ import annotations

from expunge.errors import UsageError
from expunge.evals.suite import SuiteData


def require_own_rows(data: SuiteData, why: str) -> None:
    """Refuse rows that the settings name, for a suite that brings its own.

    Args:
        data: where rows may come from.
        why: what the error begins with: `the rwku suite takes its rows from RWKU`.

    Raises:
        UsageError: `data.splits` is set: measuring other rows than those named would pass unnoticed.
    """
    if data.splits:
        raise UsageError(
            f"{why}, but eval.{next(iter(data.splits))} is set",
            hint="take it out of the recipe, or measure those rows with --suite tofu",
        )


def require_canonical(profile: str, *, suite: str) -> None:
    """Refuse a profile, for a suite that has none but its own definitions.

    Args:
        profile: whose definitions are asked for.
        suite: its name, for the error.

    Raises:
        UsageError: any profile but `canonical`.
    """
    if profile != "canonical":
        raise UsageError(f"the suite {suite!r} has no profile {profile!r}", hint="it has: canonical")
