"""Harmonic means: one weak part pulls the whole down."""

from __future__ import annotations

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array


def harmonic_mean(
    parts: Array,  # (..., P) non-negative
) -> Array:  # (...)
    """`P / sum_i 1 / x_i` over the last axis; 0 where a part is 0.

    Raises:
        MetricError: a part is negative or NaN, or there is none. (Libraries differ on negatives, so this does not rely
            on them.)

    Source:
        TOFU (arXiv 2401.06121), model utility.
    """
    parts = np.asarray(parts, dtype=np.float64)
    if parts.ndim == 0 or parts.shape[-1] == 0:
        raise MetricError("the harmonic mean of no parts is undefined", hint="measure at least one part")
    if bad := int((~(parts >= 0)).sum()):
        raise MetricError(
            f"{bad} of {parts.size} parts of a harmonic mean are negative or not a number",
            hint="every part must be a share or a probability",
        )
    with np.errstate(divide="ignore"):
        return np.asarray(parts.shape[-1] / (1 / parts).sum(-1))
