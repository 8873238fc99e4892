"""Errors a user can act on: each says what, what was found, and what to do.

They print without a traceback (`error: ...` / `hint: ...`) and end the command with their `exit_code`. Any other
exception is a bug and keeps its traceback (exit code 1).
"""

from __future__ import annotations


class ExpungeError(Exception):
    """Base of every error that is the input's fault, not ours.

    Args:
        message: what was wrong and what was found, naming rows, keys or files.
        hint: one thing the user can do about it.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(ExpungeError):
    """A wrong option, recipe key, name or combination (exit code 2)."""


class ModelError(UsageError):
    """A model or tokenizer that cannot be used: missing, not a causal LM, no chat template (exit code 2)."""


class DataError(ExpungeError):
    """Data that cannot be used: missing file, wrong columns, rows without an answer (exit code 3)."""

    exit_code = 3


class HubError(DataError):
    """Rows of the Hub that cannot be had: no such data set, or no way to reach it (exit code 3)."""


class MetricError(DataError):
    """A metric that cannot be computed honestly from the tables at hand (exit code 3)."""


class StoppedError(ExpungeError):
    """A run that had to stop and can be resumed or mended: NaN loss, full disk (exit code 4)."""

    exit_code = 4


class PeerLostError(StoppedError):
    """Another process of the same run is gone; what became of it is for that one to say (exit code 4)."""
