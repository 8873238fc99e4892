"""EUA: separate forget from retain by energy, between margins read off the starting model."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from expunge.errors import UsageError
from expunge.losses.logprobs import rows_per_chunk, wide_dtype


def energy(
    lse: Tensor,  # (N,)
    *,
    temperature: float,
    leading_temperature: bool = True,
) -> Tensor:  # (N,)
    """`E_t = -T logsumexp(z_t / T)`: low where the model is confident, high where it does not know.

    Args:
        lse: (N,) `logsumexp(z / T)` of each position, with the same T.
        temperature: T > 0.
        leading_temperature: False drops the factor T in front, as the published code does; the same at T = 1.

    Returns:
        (N,) not reduced. Adding c to every logit changes it by -c although the distribution stays the same, so
        energies of two models are not comparable.

    Source:
        Yang et al., Distinguishable Deletion, arXiv 2605.16776.
    """
    return -temperature * lse if leading_temperature else -lse


def eua_retain_loss(
    energy: Tensor,  # (N,)
    m_in: Tensor,  # (N,)
) -> Tensor:  # (N,)
    """`l_t = relu(E_t - m_in,t)^2`: keeps retain energy below the margin of the starting model's preferred tokens.

    Args:
        energy: (N,) of retain positions.
        m_in: (N,) margin at the same positions; no gradient reaches it.

    Returns:
        (N,) per token, 0 with zero gradient below the margin; not reduced (published with a token mean).

    Source:
        Yang et al., Distinguishable Deletion, arXiv 2605.16776.
    """
    return (energy - m_in.detach()).relu().square()


def eua_forget_loss(
    energy: Tensor,  # (N,)
    m_out: Tensor,  # (N,)
) -> Tensor:  # (N,)
    """`l_t = relu(m_out,t - E_t)^2`: lifts forget energy over the margin of the starting model's least liked tokens.

    Args:
        energy: (N,) of forget positions.
        m_out: (N,) margin at the same positions; no gradient reaches it.

    Returns:
        (N,) per token, 0 with zero gradient above the margin; not reduced (published with a token mean).

    Source:
        Yang et al., Distinguishable Deletion, arXiv 2605.16776.
    """
    return (m_out.detach() - energy).relu().square()


@torch.no_grad()
def eua_margins(
    logits: Tensor,  # (N, V)
    *,
    ratio: float,
    temperature: float,
    fill: str,
    leading_temperature: bool = True,
) -> Tensor:  # (N, 2)
    """Energies of the starting model's k most and k least preferred tokens, `k = int(ratio V)`.

    `m_in = -T log(sum_top e^(z/T) + (V - k))`, `m_out` the same over the k smallest logits: the published code sets
    the V - k logits left out to 0, and each adds e^0. With `fill="neg_inf"` they add nothing, which makes the forget
    margin far more aggressive.

    Args:
        logits: (N, V) of the starting model.
        ratio: share of the vocabulary on each side, in (0, 1].
        temperature: T > 0.
        fill: `zero` or `neg_inf`, what the logits left out become.
        leading_temperature: False drops the factor T in front; must be the one `energy` is given.

    Returns:
        (N, 2) `m_in, m_out`, float32 (float64 for float64 logits), without gradient; not reduced.

    Raises:
        UsageError: `ratio` selects no token or more than there are (a margin of nothing would be infinite), or an
            unknown `fill`.

    Source:
        Yang et al., Distinguishable Deletion, arXiv 2605.16776; the fill is the published code's.
    """
    vocab = logits.shape[-1]
    k = int(vocab * ratio)
    if not 1 <= k <= vocab:
        raise UsageError(
            f"EUA's ratio {ratio} selects {k} of {vocab} tokens",
            hint=f"ratio must be in [{1 / vocab:.2g}, 1] for this vocabulary",
        )
    if fill not in ("zero", "neg_inf"):
        raise UsageError(f"unknown EUA fill {fill!r}", hint="zero or neg_inf")
    rest = math.log(vocab - k) if fill == "zero" and k < vocab else -math.inf
    margins = torch.empty(logits.shape[0], 2, dtype=wide_dtype(logits.dtype), device=logits.device)
    step = rows_per_chunk(logits)
    for start in range(0, logits.shape[0], step):
        chunk = logits[start : start + step].to(margins.dtype) / temperature
        for side, selected in enumerate(_extremes(chunk, k)):
            lse = torch.logaddexp(selected.logsumexp(-1), torch.full_like(chunk[:, 0], rest))
            margins[start : start + step, side] = energy(
                lse, temperature=temperature, leading_temperature=leading_temperature
            )
    return margins


def _extremes(chunk: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest and the k smallest entries of each row, in no order."""
    if chunk.device.type != "cpu":
        return chunk.topk(k, sorted=False).values, chunk.topk(k, largest=False, sorted=False).values
    # numpy's vectorised quickselect is several times faster than topk on a CPU.
    array = chunk.numpy()
    split = array.shape[-1] - k
    top = np.partition(array, split, axis=-1)[:, split:]
    return torch.from_numpy(top), torch.from_numpy(np.partition(array, k - 1, axis=-1)[:, :k])
