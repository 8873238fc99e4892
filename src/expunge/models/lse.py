"""Log-sum-exp of the logits at the last positions of rows: what energies of prompts and drafts are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from expunge.data.collate import pack
from expunge.losses.logprobs import normalise
from expunge.models.load import autocast, vocabulary_size

LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30, "mps": 512 << 20}
"""Logits held at one time; a long batch is read in pieces over a cache, so that no (B, T, V) tensor exists."""

Progress = Callable[[int], None]


@torch.inference_mode()
def tail_lse(
    model: Any,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    pad_id: int,
    temperature: float = 1.0,
    token_budget: int = 4096,
    logit_bytes: int | None = None,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """`logsumexp(z_t / T)` at the positions t = start, ..., end of each row.

    Args:
        model: evaluation mode, on its device.
        rows: token ids, none empty, in any order.
        starts: first position of each row that is wanted, from 0 to the row's last.
        pad_id: fills the right; it lies after every real token, so its value never matters.
        temperature: T > 0.
        token_budget: padded tokens of one batch.
        logit_bytes: float32 logits held at one time; what the device allows unless given.
        progress: called with the number of rows done.

    Returns:
        One float32 array (length - start,) per row, in the order of the rows.
    """
    device = next(model.parameters()).device
    entries = (logit_bytes or LOGIT_BYTES.get(device.type, LOGIT_BYTES["cpu"])) // (4 * vocabulary_size(model))
    found: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(rows)
    done = 0
    for members in pack([len(row) for row in rows], token_budget):
        width = max(len(rows[i]) for i in members)
        ids = torch.tensor([[*rows[i], *[pad_id] * (width - len(rows[i]))] for i in members], device=device)
        wanted = torch.tensor([[starts[i] <= t < len(rows[i]) for t in range(width)] for i in members], device=device)
        values = _batch_lse(model, ids, wanted, temperature, max(1, entries))
        for place, i in enumerate(members):
            found[i] = values[place, starts[i] : len(rows[i])]
        done += len(members)
        if progress:
            progress(done)
    return found


def _batch_lse(
    model: Any,
    ids: Tensor,  # (B, T)
    wanted: Tensor,  # (B, T) bool
    temperature: float,
    most: int,
) -> np.ndarray:  # (B, T)
    """Filled where wanted. In one piece where the logits are few, else column by column group over a cache."""
    pieces = -(-int(wanted.sum()) // most)
    width = ids.shape[1] if pieces == 1 else max(1, most // len(ids))
    cache = DynamicCache(config=model.config) if width < ids.shape[1] else None
    filled = torch.zeros(ids.shape, device=ids.device)
    for start in range(0, ids.shape[1], width):
        part = slice(start, start + width)
        with autocast(ids.device):
            logits = model(
                input_ids=ids[:, part],
                logits_to_keep=wanted[:, part],
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits
        if len(logits):
            targets = torch.zeros(len(logits), dtype=torch.long, device=ids.device)
            filled[:, part][wanted[:, part]] = normalise(logits, targets, temperature=temperature).lse.float()
    return np.asarray(filled.cpu().numpy())
