"""Who's Harry Potter: what a model would say had it not read the text, from one that read it twice."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from expunge.losses.logprobs import normalise, wide_dtype

Difference = Literal["centred", "log_softmax", "raw"]


def generic_logits(
    base: Tensor,  # (N, V)
    reinforced: Tensor,  # (N, V)
    *,
    strength: float,
    translated: Tensor | None = None,  # (N, V)
    difference: Difference = "centred",
) -> Tensor:  # (N, V)
    """`v_generic = v_base(u') - strength relu(v_reinforced(u) - v_base(u))`: what reinforcing raised is lowered.

    The difference is taken between logits whose mean over the vocabulary is 0 (ours): a constant added to one model's
    logits changes nothing that it says, but would decide which `raw` differences, as printed, are positive. Between
    log-probabilities, nothing is raised any more where the starting model is certain already, which is what a text to
    be forgotten looks like.

    Args:
        base: (N, V) logits of the starting model on the text.
        reinforced: (N, V) of the model that was trained on it further.
        strength: at least 0; 0 gives the starting model's logits back.
        translated: (N, V) of the starting model on the text with its anchors replaced, at the aligned positions; `base`
            itself unless given.
        difference: `centred`, `log_softmax` or `raw`.

    Returns:
        (N, V) logits, float32 or wider, without gradient.

    Source:
        Eldan and Russinovich, Who's Harry Potter?, arXiv 2310.02238, section 2; RECONSTRUCTED where anchors and
        reinforcement are combined.
    """
    wide = wide_dtype(base.dtype)
    ours, theirs = base.detach().to(wide), reinforced.detach().to(wide)
    start = ours if translated is None else translated.detach().to(wide)
    raised = theirs - ours
    if difference == "centred":
        raised = raised - raised.mean(-1, keepdim=True)
    elif difference == "log_softmax":
        raised = raised - (theirs.logsumexp(-1, keepdim=True) - ours.logsumexp(-1, keepdim=True))
    return start - strength * raised.relu()


def whp_loss(
    logits: Tensor,  # (N, V)
    labels: Tensor,  # (N,)
) -> Tensor:  # (N,)
    """`l_t = -log p_t(label_t)`, and 0 where the label is negative (a position inside an anchor).

    Args:
        logits: (N, V) of the trained model.
        labels: (N,) generic token of each position, or negative: left out.

    Returns:
        (N,) nats, at least 0; not reduced (published with a token mean over the positions that have a label).
    """
    kept = labels >= 0
    return torch.where(kept, -normalise(logits, labels.clamp(min=0)).logp, 0.0)
