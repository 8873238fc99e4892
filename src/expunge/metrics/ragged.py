"""Rows of unequal length as two flat arrays, and which of an answer's tokens a metric looks at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expunge.errors import MetricError

Array = np.ndarray[Any, np.dtype[Any]]

Span = Literal["with_eos", "no_eos", "drop_last"]
"""`with_eos`: every supervised token (probability, truth ratio, loss). `no_eos`: without the end token, where the
template emitted one (extraction strength, exact memorisation, Min-K). `drop_last`: without the last token, whatever
it is: published practice for the latter, equal to `no_eos` on answers that end properly."""


@dataclass(frozen=True)
class Ragged:
    """R rows over one flat array; row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: Array
    """(N,)"""
    offsets: Array
    """(R + 1,) int64, from 0 to N, non-decreasing."""

    @staticmethod
    def from_arrow(column: pa.ChunkedArray | pa.Array) -> Ragged:
        """A list column; a null list becomes an empty row, floats become float64.

        Raises:
            MetricError: a list holds a null entry, which no number could stand for.
        """
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        flat = array.flatten()
        if flat.null_count:
            raise MetricError(f"a list column holds {flat.null_count} null entries", hint="evaluate again")
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        values = flat.to_numpy(zero_copy_only=False)
        return Ragged.from_lengths(values.astype(np.float64) if values.dtype.kind == "f" else values, lengths)

    @staticmethod
    def from_lengths(values: Array, lengths: Array) -> Ragged:
        """Rows of the given lengths, in order."""
        return Ragged(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @staticmethod
    def from_rows(rows: list[list[Any]]) -> Ragged:
        """Rows written out as lists."""
        values = np.concatenate([np.asarray(row, dtype=np.float64) for row in rows]) if rows else np.zeros(0)
        return Ragged.from_lengths(values, np.array([len(row) for row in rows], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Array:
        """(R,) entries per row."""
        return np.diff(self.offsets)

    @cached_property
    def row(self) -> Array:
        """(N,) the row of each entry."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def position(self) -> Array:
        """(N,) the place of each entry inside its row, from 0."""
        return np.arange(len(self.values)) - self.offsets[self.row]

    def with_values(self, values: Array) -> Ragged:
        """Other entries in the same rows."""
        return Ragged(values, self.offsets)

    def select(self, keep: Array) -> Ragged:
        """The entries where `keep`, (N,) bool, holds; a row may become empty."""
        return Ragged.from_lengths(self.values[keep], np.bincount(self.row[keep], minlength=len(self)))

    def take(self, rows: Array) -> Ragged:
        """The given rows, in the order given; a row may be taken repeatedly."""
        lengths = self.lengths[rows]
        taken = Ragged.from_lengths(np.zeros(int(lengths.sum()), dtype=self.values.dtype), lengths)
        source = np.repeat(self.offsets[rows], lengths) + taken.position
        return taken.with_values(self.values[source])

    def sums(self) -> Array:
        """(R,) sum of each row; 0 for an empty one."""
        return np.bincount(self.row, weights=self.values, minlength=len(self))

    def means(self) -> Array:
        """(R,) mean of each row; NaN for an empty one."""
        with np.errstate(invalid="ignore"):
            return self.sums() / self.lengths

    def first(self) -> Array:
        """(R,) first entry of each row; NaN for an empty one."""
        found = np.full(len(self), np.nan)
        filled = self.lengths > 0
        found[filled] = self.values[self.offsets[:-1][filled]]
        return found


def span_mask(is_end: Ragged, span: Span) -> Array:
    """Which supervised tokens belong to a span.

    Args:
        is_end: (R rows, N tokens) True on the end token the template emitted.
        span: the selector.

    Returns:
        (N,) bool.
    """
    if span == "with_eos":
        return np.ones(len(is_end.values), dtype=bool)
    if span == "no_eos":
        return ~is_end.values.astype(bool)
    return is_end.position < is_end.lengths[is_end.row] - 1
