"""DPO between a wanted answer (a refusal, an alternative) and the answer to forget."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(
    win_logps: Tensor,  # (B,)
    lose_logps: Tensor,  # (B,)
    *,
    ref_win_logps: Tensor,  # (B,)
    ref_lose_logps: Tensor,  # (B,)
    beta: float,
) -> Tensor:  # (B,)
    """`l_b = -(2 / beta) log sigmoid(beta (D_win - D_lose))` with `D = S - S_o`, sums of token log-probabilities.

    The factor 2 / beta, twice the usual DPO loss over beta, puts the forget term on the scale of NPO.

    Args:
        win_logps: (B,) log-probability of each wanted answer under the trained model, nats.
        lose_logps: (B,) log-probability of each answer to forget, nats.
        ref_win_logps: (B,) the wanted answer under the frozen starting model; no gradient reaches it.
        ref_lose_logps: (B,) the answer to forget under the frozen starting model; no gradient reaches it.
        beta: inverse temperature, > 0.

    Returns:
        (B,) per pair, at least 0; not reduced (published with a mean over pairs).

    Source:
        Rafailov et al., DPO, arXiv 2305.18290, equation 7; as used for unlearning in Maini et al., arXiv 2401.06121.
    """
    margin = (win_logps - ref_win_logps.detach()) - (lose_logps - ref_lose_logps.detach())
    return (-2 / beta) * logsigmoid(beta * margin)
