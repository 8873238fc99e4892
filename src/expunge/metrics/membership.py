"""Membership-inference attacks: per-row scores, higher = more likely seen in training.

Each function returns one score per row; `expunge.metrics.auc` compares forget rows with rows never trained on.
"""

from __future__ import annotations

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array, Ragged

MIN_VARIANCE = 1e-6
"""Floor of Min-K++'s variance: a certain token has none, and its z-score would not be a number."""


def loss_score(
    loss: Array,  # (R,) nats per token
) -> Array:  # (R,)
    """`-L`: a text the model finds likely was likely seen. Not reduced.

    Source:
        Yeom et al. (arXiv 1709.01604).
    """
    return -loss


def zlib_score(
    loss: Array,  # (R,) nats per token
    zlib_bytes: Array,  # (R,) len(zlib.compress(text)), >= 1
) -> Array:  # (R,)
    """`-L / len(zlib.compress(text))`: the loss relative to how compressible the text is. Not reduced.

    Source:
        Carlini et al. (arXiv 2012.07805), with the mean loss as in current code.
    """
    return -loss / zlib_bytes


def reference_score(
    loss: Array,  # (R,) of the model under attack
    reference_loss: Array,  # (R,) of a model that never saw the rows
) -> Array:  # (R,)
    """`-(L - L_reference)`: likelier than the text deserves. Not reduced.

    Source:
        Carlini et al. (arXiv 2012.07805).
    """
    return reference_loss - loss


def gradnorm_score(
    norm: Array,  # (R,) of the gradient of each row's loss by the weights
) -> Array:  # (R,)
    """`-||dL/dw||`: what a model was trained on until it fits pulls little at its weights. Not reduced.

    Source:
        The attack of OpenUnlearning (arXiv 2506.12618), after Wang et al., Pandora's white-box (arXiv 2402.17012).
    """
    return -norm


def min_k_score(
    logp: Ragged,  # R rows of token log-probabilities
    *,
    k: float = 0.4,
) -> Array:  # (R,)
    """Mean of a row's `max(1, int(k N))` lowest token log-probabilities.

    Args:
        logp: nats.
        k: share of tokens in (0, 1].

    Returns:
        (R,) nats, not reduced; NaN for a row without tokens.

    Raises:
        MetricError: k outside (0, 1].

    Source:
        Shi et al., Min-K % Prob (arXiv 2310.16789).
    """
    if not 0 < k <= 1:
        raise MetricError(f"Min-K needs a share of tokens in (0, 1], got {k}", hint="0.4 is the published choice")
    order = np.lexsort((logp.values, logp.row))
    lowest = logp.position < np.maximum(1, (logp.lengths * k).astype(np.int64))[logp.row]
    # Sorted inside each row, the row boundaries stay where they were, so `position` is the rank.
    return logp.with_values(logp.values[order]).select(lowest).means()


def min_k_plus_plus_score(
    logp: Ragged,  # R rows
    mu: Ragged,  # R rows, E_{v~p} log p(v)
    var: Ragged,  # R rows, Var_{v~p} log p(v)
    *,
    k: float = 0.4,
) -> Array:  # (R,)
    """Min-K of the z-scores `(log p(y_t) - mu_t) / sqrt(max(var_t, 1e-6))`.

    Args:
        logp: nats.
        mu: mean of the log-probabilities under the model's own distribution at each position.
        var: their variance.
        k: share of tokens in (0, 1].

    Returns:
        (R,) in standard deviations, not reduced; NaN for a row without tokens.

    Raises:
        MetricError: k outside (0, 1].

    Source:
        Zhang et al., Min-K%++ (arXiv 2404.02936), equation 3.
    """
    z = (logp.values - mu.values) / np.sqrt(np.maximum(var.values, MIN_VARIANCE))
    return min_k_score(logp.with_values(z), k=k)


def privleak(
    auc: float,
    reference_auc: float,
    *,
    eps: float = 0.0,
) -> float:
    """How far the attack's success is from that on the retrained model, in percent of the latter.

    `100 ((1 - A) - (1 - A_ref)) / ((1 - A_ref) + eps)` with A = 1 for memorised rows: -100 where the forget rows are
    still recognised, 0 where the model is like the retrained one, positive where forgetting overshot.

    Raises:
        MetricError: the attack is perfect on the reference and eps is 0: there is nothing to divide by.

    Source:
        MUSE (arXiv 2407.06460), section 3.
    """
    hidden = 1 - reference_auc + eps
    if hidden == 0:
        raise MetricError(
            "the attack is perfect (AUC 1) on the reference model, so PrivLeak is undefined",
            hint="the reference must not have seen the forget rows; check which run was given",
        )
    return 100 * (reference_auc - auc) / hidden
