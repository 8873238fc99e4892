"""What a metric returns: a value that knows its interval, its sample size and its ideal."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Direction = Literal["lower", "higher", "match"]


class Score(NamedTuple):
    """One measured number.

    `value` is never NaN and never stands for "missing": a metric that cannot be computed raises `MetricError`.
    """

    value: float
    low: float | None
    """Lower end of the 95 % interval; None where no interval is defined (a p-value)."""
    high: float | None
    n: int
    """Rows that entered the value."""
    n_total: int
    """Rows there were; the difference was excluded (e.g. an empty span)."""
    ideal: float | None
    """What perfect unlearning would score: 0.5 for a membership AUC, the retrained model's value for a truth ratio;
    None where it needs a retrained run that was not given."""
    direction: Direction
    """`lower`, `higher`, or `match`: as close to `ideal` as possible."""

    def to_json(self) -> dict[str, Any]:
        """The form written to metrics.json."""
        return self._asdict()
