"""How likely a model finds a text: average loss and per-token probability."""

from __future__ import annotations

import numpy as np

from expunge.metrics.ragged import Array, Ragged


def mean_loss(
    logp: Ragged,  # R rows of token log-probabilities, nats
) -> Array:  # (R,)
    """Average negative log-likelihood of each row, `L = -(1/N) sum_t log p(y_t)`.

    Returns:
        (R,) nats per token, not reduced over rows; NaN for a row without tokens.

    Source:
        TOFU (arXiv 2401.06121), section 2.2.1: over the whole answer with its end token.
    """
    return -logp.means()


def probability(
    loss: Array,  # (R,) nats per token
) -> Array:  # (R,)
    """Geometric mean of a row's token probabilities, `exp(-L)`, in [0, 1]; not reduced over rows.

    Source:
        TOFU (arXiv 2401.06121), section 2.2.1.
    """
    return np.exp(-loss)
