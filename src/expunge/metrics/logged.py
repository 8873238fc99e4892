"""A split of an imported log: values of rows in place of tokens, behind the same view as a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pyarrow as pa

from expunge.errors import MetricError
from expunge.metrics.ragged import Array, Ragged, Span
from expunge.metrics.view import SplitView, split_names, view_split


@dataclass(frozen=True)
class LoggedSplit(SplitView):
    """One split of a log: average losses and scores that were logged, NaN where the log has none.

    `trace` holds rows of `expunge.runs.tables.VALUES`. What needs tokens raises.
    """

    @cached_property
    def losses(self) -> Array:
        """(T,) the logged average loss of each text, in nats per token; NaN where the log has none."""
        return np.asarray(self.trace["loss"].to_numpy(), dtype=np.float64)

    @cached_property
    def recorded(self) -> Mapping[str, Array]:
        """Score of the log's own name -> (R,) values of the rows; NaN where the log has none for a row."""
        rows = [dict(scores or ()) for scores in self.trace["scores"].take(pa.array(self.answer)).to_pylist()]
        names = dict.fromkeys(name for scores in rows for name in scores)
        return {name: np.array([scores.get(name, np.nan) for scores in rows]) for name in names}

    def answers(self, column: str, span: Span) -> Ragged:
        """Always an error: a log has no tokens."""
        raise MetricError(
            f"{self.split}: a log has no {column!r} of tokens ({span})",
            hint="evaluate the model itself with `expunge eval`",
        )

    def stores(self, column: str) -> bool:
        """False: a log has nothing of tokens."""
        return False


def view_logged(values: pa.Table, generations: pa.Table, *, first: int | None = None) -> dict[str, LoggedSplit]:
    """Lay out every split of a log.

    Args:
        values: rows of `expunge.runs.tables.VALUES`, in any order.
        generations: rows of `expunge.runs.tables.GENERATIONS`, in any order.
        first: only rows numbered below this; None: all.

    Raises:
        MetricError: as `expunge.metrics.view.view_split`.
    """
    found: dict[str, LoggedSplit] = {}
    for name in split_names(values):
        view = view_split(values, generations, name, first=first)
        found[name] = LoggedSplit(**{field.name: getattr(view, field.name) for field in fields(view)})
    return found
