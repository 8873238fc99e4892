"""Whose text must not be shown, and what stands in its place."""

from __future__ import annotations

from typing import NamedTuple

from expunge.report.text import Shown, shown
from expunge.runs.redact import keyed_digest

PURGED = "the text was purged"
_MUSE_PARTS = ("verbmem_f", "knowmem_f")
"""What MUSE calls its forget rows, in logs of it."""


def is_forget(split: str) -> bool:
    """Whether a split's rows hold forgotten text."""
    return split == "forget" or split.startswith("forget_") or split in _MUSE_PARTS


def same_words(one: str, other: str) -> bool:
    """Whether two answers are equal up to white space."""
    return " ".join(one.split()) == " ".join(other.split())


class Hide(NamedTuple):
    """How a text is shown: as it is, or as a digest."""

    key: bytes | None
    outputs: bytes | None
    """The same for answers that are not the true one: asked about others, a model may mention what it was to forget."""

    @classmethod
    def of(cls, split: str, key: bytes | None) -> Hide:
        """How the rows of a split are shown where forgotten text is withheld under `key`; None: nothing is."""
        return cls(key if is_forget(split) else None, key)

    def __call__(self, text: str | None, absent: str = PURGED) -> Shown:
        """The text as a page shows it, or why it is not shown; `absent` says why there is none."""
        if text is None:
            return Shown(None, absent)
        if self.key is None:
            return shown(text)
        return Shown(None, f"withheld, HMAC {keyed_digest(text, key=self.key)}")

    def output(self, *, exact: bool | None) -> Hide:
        """For what a model said; `exact`: that it is the true answer."""
        return self if exact else self._replace(key=self.outputs)
