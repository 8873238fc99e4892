"""Extraction strength of given rows, without tables: what a sequence of requests is watched by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from expunge.data.collate import collate, pack
from expunge.data.encode import Dataset
from expunge.evals.trace import token_stats
from expunge.metrics.memorization import extraction_strength
from expunge.metrics.ragged import Array, Ragged
from expunge.models.load import autocast
from expunge.models.score import score

Progress = Callable[[dict[str, Any]], None]


@torch.inference_mode()
def row_strengths(
    model: Any, dataset: Dataset, *, pad_id: int, token_budget: int, progress: Progress | None = None
) -> Array:  # (R,)
    """Extraction strength of every row, as `<split>.extraction_strength` defines it (without the end token).

    Args:
        model: evaluation mode, on its device.
        dataset: encoded rows.
        pad_id: padding token id (its value never matters).
        token_budget: padded tokens of one forward.
        progress: called with `{"event": "phase", "name": "measure", "done", "total"}` in rows.

    Returns:
        (R,) in [0, 1], in row order, not reduced; NaN for a row whose answer is an end token alone.
    """
    device = next(model.parameters()).device
    lengths = dataset.lengths()
    hits: list[list[bool]] = [[] for _ in lengths]
    done = 0
    for rows in pack(lengths, token_budget):
        batch = collate(dataset, rows, pad_id=pad_id).to(device)
        with autocast(device):
            scored = score(model, batch)
        found = scored.per_position(partial(token_stats, moments=False)).hit.cpu().numpy()
        ends, row = batch.is_end.cpu().numpy(), scored.row.cpu().numpy()
        for place, number in enumerate(rows):
            hits[number] = found[(row == place) & ~ends].tolist()
        done += len(rows)
        if progress:
            progress({"event": "phase", "name": "measure", "done": done, "total": len(lengths)})
    flat = np.array([hit for own in hits for hit in own], dtype=bool)
    return extraction_strength(Ragged.from_lengths(flat, np.array([len(own) for own in hits], dtype=np.int64)))


def first_rows(dataset: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows; all of them for None."""
    return replace(dataset, examples=dataset.examples[:limit], encoded=dataset.encoded[:limit])
