"""Probability of the right answer among given options."""

from __future__ import annotations

import numpy as np

from expunge.metrics.ragged import Array, Ragged


def option_probability(
    right_loss: Array,  # (R,) nats per token
    wrong_losses: Ragged,  # R rows, one loss per wrong option
    *,
    eps: float = 0.0,
) -> Array:  # (R,)
    """`p(right) / (p(right) + sum_i p(wrong_i) + eps)` with length-normalised `p = exp(-L)`.

    Args:
        right_loss: average loss of the right answer.
        wrong_losses: average loss of each wrong option.
        eps: 1e-10 reproduces OpenUnlearning.

    Returns:
        (R,) in [0, 1], not reduced; NaN where a loss is missing or a row has no wrong option.

    Source:
        TOFU (arXiv 2401.06121), section 2.2.1, with `exp(-L)` for p as in its code.
    """
    right = right_loss[wrong_losses.row]
    with np.errstate(over="ignore"):
        if eps:
            wrong = wrong_losses.with_values(np.exp(-wrong_losses.values)).sums()
            found = np.exp(-right_loss) / (np.exp(-right_loss) + wrong + eps)
        else:
            found = 1 / (1 + wrong_losses.with_values(np.exp(right - wrong_losses.values)).sums())
    return np.where((wrong_losses.lengths > 0) & np.isfinite(right_loss), found, np.nan)
