"""The energy score: how unfamiliar a prompt looks to a model, from the log-sum-exp of its logits.

Energies shift with any constant added to the logits: compare ranks inside one model, never values between models.
"""

from __future__ import annotations

from expunge.metrics.ragged import Array, Ragged


def prompt_energy(
    lse: Ragged,  # R rows of log-sum-exp of z / temperature, one per answer token
    *,
    temperature: float = 1.0,
) -> Array:  # (R,)
    """`E = -T logsumexp(z / T)` at the last prompt token, which predicts the answer's first: higher = unknown.

    Args:
        lse: over the vocabulary, of the logits divided by the temperature.
        temperature: T > 0.

    Returns:
        (R,) not reduced; NaN for a row without tokens.

    Source:
        Liu et al. (arXiv 2010.03759), equation 4.
    """
    return -temperature * lse.first()
