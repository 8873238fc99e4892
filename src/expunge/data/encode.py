"""Encoded rows and datasets, and the one place where rows meet the length limit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from expunge.data.example import Example
from expunge.errors import DataError, UsageError

if TYPE_CHECKING:
    from expunge.data.template import Template

Supervise = Literal["last", "all_assistant"]
OnTruncate = Literal["error", "drop", "keep"]
TooLong = Callable[[list[int], int], DataError]
"""Places of rows that do not fit, and the tokens that the longest of them needs -> what to say of them."""


class Encoded(NamedTuple):
    """One row as tokens."""

    input_ids: np.ndarray
    """(L,) int32."""
    supervised: np.ndarray
    """(L,) bool: tokens the model is trained and measured on; the first token never is, nothing predicts it."""
    is_end: np.ndarray
    """(L,) bool: the supervised end-of-turn or EOS token."""
    truncated: bool = False
    """Tokens were cut off at the end, so the answer is incomplete."""


@dataclass(frozen=True)
class Dataset:
    """The encoded rows of one role; windows of a long raw text are rows of their own."""

    role: str
    examples: tuple[Example, ...]
    encoded: tuple[Encoded, ...]
    digest: str
    """SHA-256 over ids, tokens and masks: part of every cache key."""
    dropped: tuple[int, ...] = ()
    """Source rows left out because they were too long."""

    def lengths(self) -> np.ndarray:
        """(rows,) int64 tokens of each row, unpadded."""
        return np.array([len(item.input_ids) for item in self.encoded], dtype=np.int64)

    def supervised(self) -> np.ndarray:
        """(rows,) int64 supervised tokens of each row."""
        return np.array([int(item.supervised.sum()) for item in self.encoded], dtype=np.int64)


def encode_all(
    examples: Sequence[Example],
    template: Template,
    *,
    role: str,
    max_length: int,
    context: int | None = None,
    on_truncate: OnTruncate = "error",
    supervise: Supervise = "last",
    too_long: TooLong | None = None,
) -> Dataset:
    """Encode rows under a length limit.

    A raw text longer than the limit becomes several rows `id#0`, `id#1`, ...; each of its tokens but the first is
    supervised exactly once. A conversation longer than the limit loses the end of its answer, which is an error unless
    `on_truncate` says otherwise: a method would otherwise erase, and a metric measure, another answer than the row's.

    Args:
        examples: at least one.
        template: how a conversation becomes tokens.
        role: `forget`, `retain`, ...: named in errors.
        max_length: tokens of prompt and answer, at least 2.
        context: tokens the model reads at most: the limit where it is smaller, and then no longer `max_length` helps.
        on_truncate: `error`; `drop` leaves the rows out; `keep` cuts and flags them.
        supervise: the last answer, or every assistant turn.
        too_long: makes the error of rows that do not fit, where the settings that the usual one names have no effect;
            then a raw text has to fit as well.

    Raises:
        DataError: no rows, answers that do not fit, or rows without any answer token; rows are named.
        UsageError: `max_length` below 2.
    """
    if max_length < 2:
        raise UsageError(f"max_length is {max_length}", hint="a row needs at least two tokens")
    if not examples:
        raise DataError(f"there are no {role} examples", hint=f"data.{role} must name at least one row")
    max_length = min(max_length, context or max_length)
    encoded = template.encode_many(examples, supervise=supervise)
    _require_answers(examples, encoded, role, when="")
    over = [place for place, item in enumerate(encoded) if len(item.input_ids) > max_length]
    if over and too_long is not None:
        raise too_long(over, _longest(encoded))
    long = [len(item.input_ids) > max_length and bool(e.turns) for e, item in zip(examples, encoded, strict=True)]
    if any(long) and on_truncate == "error":
        raise _truncation(examples, encoded, long, role, context)
    rows: list[tuple[Example, Encoded]] = []
    for example, item, cut in zip(examples, encoded, long, strict=True):
        if not example.turns and len(item.input_ids) > max_length:
            rows += template.windows(example, max_length=max_length)
        elif not cut:
            rows.append((example, item))
        elif on_truncate == "keep":
            rows.append((example, _truncate(item, max_length)))
    if not rows:
        raise DataError(
            f"all {len(examples)} {role} examples are longer than max_length={max_length}",
            hint=_room(_longest(encoded), context),
        )
    kept, items = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
    if on_truncate == "keep":
        room = _room(_longest(encoded), context)
        _require_answers(kept, items, role, when=f" left within {max_length} tokens", hint=room)
    dropped = tuple(e.row for e, cut in zip(examples, long, strict=True) if cut) if on_truncate == "drop" else ()
    return Dataset(role, kept, items, _digest(kept, items), dropped)


def name_rows(rows: Sequence[int], *, limit: int = 10) -> str:
    """`row 17`, `rows 17, 211, 305` or `rows 1, 2, ... and 4 more`, for error messages."""
    shown = ", ".join(str(row) for row in rows[:limit])
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"


def _truncate(item: Encoded, max_length: int) -> Encoded:
    return Encoded(item.input_ids[:max_length], item.supervised[:max_length], item.is_end[:max_length], truncated=True)


def _longest(encoded: Sequence[Encoded]) -> int:
    return max(len(item.input_ids) for item in encoded)


def _room(needed: int, context: int | None) -> str:
    """What to do about rows of up to `needed` tokens."""
    if context is None or needed <= context:
        return f"set data.max_length={needed}"
    return f"they need up to {needed} tokens and the model reads {context}: shorten them, or set data.on_truncate=drop"


def _truncation(
    examples: Sequence[Example], encoded: Sequence[Encoded], long: Sequence[bool], role: str, context: int | None
) -> DataError:
    rows = [example.row for example, cut in zip(examples, long, strict=True) if cut]
    named = name_rows(list(dict.fromkeys(rows)))
    needed = max(len(item.input_ids) for item, cut in zip(encoded, long, strict=True) if cut)
    return DataError(
        f"{len(rows)} of {len(examples)} {role} examples lose answer tokens to truncation ({named})",
        hint=_room(needed, context),
    )


def _require_answers(
    examples: Sequence[Example], encoded: Sequence[Encoded], role: str, *, when: str, hint: str | None = None
) -> None:
    rows = [example.row for example, item in zip(examples, encoded, strict=True) if not item.supervised.any()]
    if rows:
        raise DataError(
            f"{len(rows)} of {len(examples)} {role} examples have no answer token{when} ({name_rows(rows)})",
            hint=hint or "give each of them a longer answer, or remove it",
        )


def _digest(examples: Sequence[Example], encoded: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for example, item in zip(examples, encoded, strict=True):
        digest.update(f"{len(example.id)}:{example.id}:{len(item.input_ids)}:".encode())
        digest.update(item.input_ids.astype("<i4").tobytes())
        digest.update(np.packbits(item.supervised).tobytes())
        digest.update(np.packbits(item.is_end).tobytes())
    return digest.hexdigest()
