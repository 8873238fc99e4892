"""The truth ratio: how much likelier wrong answers are than the right one, and the ways it is aggregated.

`R = mean_i p(wrong_i) / p(right)` with `p = exp(-L)` per token. The mean is geometric in both published code bases
and arithmetic in the paper; the two differ materially.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from expunge.metrics.ragged import Array, Ragged

Mean = Literal["geometric", "arithmetic"]


def truth_ratio(
    right_loss: Array,  # (R,) nats per token
    wrong_losses: Ragged,  # R rows, one loss per wrong answer
    *,
    mean: Mean = "geometric",
    eps: float = 0.0,
) -> Array:  # (R,)
    """The ratio R of each row; below 1 where the model prefers the right answer.

    Args:
        right_loss: average loss of the paraphrased answer, or of the answer where there is no paraphrase.
        wrong_losses: average loss of each perturbed answer.
        mean: of the wrong probabilities; geometric gives `exp(L_right - mean_i L_i)`.
        eps: added to the right probability; 1e-10 reproduces OpenUnlearning.

    Returns:
        (R,) in [0, inf], not reduced; NaN where a loss is missing.

    Source:
        TOFU (arXiv 2401.06121), section 2.2.1.
    """
    with np.errstate(over="ignore"):
        if eps:
            return np.asarray(_wrong(wrong_losses, mean) / (np.exp(-right_loss) + eps))
        if mean == "geometric":
            return np.asarray(np.exp(right_loss - wrong_losses.means()))
        return wrong_losses.with_values(np.exp(right_loss[wrong_losses.row] - wrong_losses.values)).means()


def _wrong(losses: Ragged, mean: Mean) -> Array:
    return np.exp(-losses.means()) if mean == "geometric" else losses.with_values(np.exp(-losses.values)).means()


def closer_to_1(
    ratio: Array,  # (R,)
    *,
    eps: float = 0.0,
) -> Array:  # (R,)
    """`min(R, 1 / (R + eps))`, in [0, 1]: 1 where right and wrong answers are equally likely. Not reduced.

    About 0.5 for a model that knows the answer and 0.67 for one that never saw it; not monotone in knowledge.

    Source:
        TOFU's aggregation of the forget set.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(ratio, 1 / (ratio + eps)))


def true_better(
    ratio: Array,  # (R,)
) -> Array:  # (R,)
    """`max(0, 1 - R)`, in [0, 1]: higher where the right answer is preferred. Not reduced; part of model utility."""
    return np.asarray(np.maximum(0.0, 1 - ratio))


def prob_mean(
    right_loss: Array,  # (R,)
    wrong_losses: Ragged,  # R rows
    *,
    mean: Mean = "geometric",
    eps: float = 0.0,
) -> Array:  # (R,)
    """`c / (c + w + eps)` with `c = exp(-L_right)` and w the mean wrong probability; `1 / (1 + R)` without eps.

    In [0, 1], 0.5 where the model is indifferent, monotone in knowledge. Not reduced; NaN where a loss is missing.

    Source:
        OpenUnlearning (arXiv 2506.12618), appendix C.
    """
    if not eps:
        return 1 / (1 + truth_ratio(right_loss, wrong_losses, mean=mean))
    right = np.exp(-right_loss)
    return np.asarray(right / (right + _wrong(wrong_losses, mean) + eps))
