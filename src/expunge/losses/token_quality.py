"""Fine-tuning that forgets: tokens a reference learned from are learned, the others are unlearned under a ramp."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def token_quality(base_logps: np.ndarray, reference_logps: np.ndarray) -> np.ndarray:
    """`Q_t = ce_base,t - ce_reference,t`: how much training on a trusted subset improved this token, nats.

    Args:
        base_logps: (N,) log-probability of each answer token under the starting model, nats.
        reference_logps: (N,) the same under the reference.
    """
    difference: np.ndarray = reference_logps.astype(np.float64) - base_logps.astype(np.float64)
    return difference


def positive_tokens(quality: np.ndarray, *, rho: float) -> np.ndarray:
    """(N,) bool: the `int(rho N)` tokens of highest quality; the others are negative. Equal ones: the earlier first.

    The published code takes `int((1 - rho) N)` from the other end, which can lose a token; here every token is one or
    the other.

    Args:
        quality: (N,) of all tokens of the data, not of a batch.
        rho: share that is learned, in [0, 1].
    """
    positive = np.zeros(len(quality), dtype=bool)
    # Of a share such as 0.29 of 100, int() alone would take one too few.
    count = int(rho * len(quality) + 1e-9)
    positive[np.argsort(-quality, kind="stable")[:count]] = True
    return positive


def ramp(progress: float, *, t_min: float, t_max: float) -> float:
    """`lambda(s) = (t_max - t_min) s / S`: weight of the negative tokens after a share `progress` of the steps.

    As in the authors' code, which starts at 0: the `+ t_min` that its names suggest is not there.
    """
    return (t_max - t_min) * progress


def forgetting_loss(
    logps: Tensor,  # (N,)
    positive: Tensor,  # (N,) bool
    *,
    num_positive: float,
    num_negative: float,
    weight: float,
) -> Tensor:  # (N,)
    """`l_t = ce_t / |pos|` for a positive token, `-weight ce_t / |neg|` for a negative one: add them up.

    Args:
        logps: (N,) log-probability of each answer token, nats.
        positive: (N,) which tokens are learned.
        num_positive: positive tokens of the whole step.
        num_negative: negative ones; 0 of either divides by 1.
        weight: lambda, at least 0.

    Returns:
        (N,) per token; their sum over the step is `mean_pos ce - weight mean_neg ce`.

    Source:
        Taheri et al., Forgetting: A New Mechanism Towards Better LLM Fine-tuning, arXiv 2508.04329.
    """
    share = positive.to(logps.dtype)
    return -logps * (share / max(num_positive, 1) - weight * (1 - share) / max(num_negative, 1))
