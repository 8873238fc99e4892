"""The energy score: how unfamiliar a prompt looks to a model, from the log-sum-exp of its logits.

Energies shift with any constant added to the logits: compare ranks inside one model, never values between models.
"""

from __future__ import annotations

from expunge.metrics.auc import auc, fpr_at_95
from expunge.metrics.ragged import Array, Ragged


def prompt_energy(
    lse: Ragged,  # R rows of log-sum-exp, one per answer token
) -> Array:  # (R,)
    """`E = -logsumexp(z)` at the last prompt token, which predicts the answer's first: higher = unknown.

    Returns:
        (R,) not reduced; NaN for a row without tokens.

    Source:
        Liu et al. (arXiv 2010.03759), equation 4, at temperature 1.
    """
    return -lse.first()


def energy_auroc(
    forget: Array,  # (n,) energies
    retain: Array,  # (m,) energies
) -> float:
    """P(a forget prompt has a higher energy than a retain prompt), ties counting half; 0.5 for a model that knows both.

    Raises:
        MetricError: a group is empty or an energy is not a number.
    """
    return auc(forget, retain)


def energy_fpr95(
    forget: Array,  # (n,) energies
    retain: Array,  # (m,) energies
) -> float:
    """Share of forget prompts that look known at the threshold that accepts at least 95 % of retain prompts.

    The score is -E and the threshold the largest that still accepts 95 %; 0 = forget prompts are all told apart.

    Raises:
        MetricError: a group is empty or an energy is not a number.
    """
    return fpr_at_95(-retain, -forget)
