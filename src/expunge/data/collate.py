"""Rows to tensors: which positions are scored, what each predicts, and how rows share a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from expunge.data.encode import Dataset

Positions = Literal["predict", "attended", "all", "held"]


@dataclass(frozen=True)
class Batch:
    """One micro-batch, right-padded, and its scored positions flat: T padded tokens, N scored positions."""

    rows: Tensor  # (B,) int64, dataset indices
    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, from lengths, so that a padding id that is also the EOS harms nothing
    predict_mask: Tensor  # (B, T) bool, positions whose logits are wanted
    targets: Tensor  # (N,) int64, the token each of them predicts; 0 where there is no next token
    row: Tensor  # (N,) int64, which of the B sequences it belongs to
    is_end: Tensor  # (N,) bool, the target is the end token of an answer
    answer: Tensor  # (N,) bool, the target is a supervised token

    @property
    def num_tokens(self) -> int:
        """Padded tokens, B * T: what the token budget limits."""
        return self.input_ids.numel()

    def to(self, device: Any) -> Batch:
        """The same batch on `device`; `rows` stays on the CPU, where tables are read, so that no one waits for it."""
        moved = {
            item.name: getattr(self, item.name).to(device, non_blocking=True)
            for item in fields(self)
            if item.name != "rows"
        }
        return Batch(rows=self.rows, **moved)


def collate(
    dataset: Dataset, rows: Sequence[int], *, pad_id: int, positions: Positions = "predict", skip_first: int = 0
) -> Batch:
    """Lay rows out as one micro-batch.

    Position t is scored, with target `input_ids[t + 1]`, for
        predict: every t whose next token is supervised;
        attended: every real token (the last one of a row has no target: 0);
        all: every position, padding included (targets 0 there);
        held: every t whose own token is supervised (labels that were not shifted, published practice).

    Args:
        dataset: encoded rows.
        rows: indices into it, at least one, in the order of the batch.
        pad_id: fills the padding; its value never matters.
        positions: which positions are scored.
        skip_first: how many of each row's `predict` positions are left out at its start.
    """
    items = [dataset.encoded[row] for row in rows]
    lengths = np.array([len(item.input_ids) for item in items])
    shape = (len(items), int(lengths.max()))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    following = np.zeros(shape, dtype=np.int64)
    supervised, is_end, held = (np.zeros(shape, dtype=bool) for _ in range(3))
    for place, (item, length) in enumerate(zip(items, lengths, strict=True)):
        input_ids[place, :length] = item.input_ids
        following[place, : length - 1] = item.input_ids[1:]
        supervised[place, : length - 1] = item.supervised[1:]
        is_end[place, : length - 1] = item.is_end[1:]
        held[place, :length] = item.supervised
    attended = np.arange(shape[1]) < lengths[:, None]
    predict = supervised & (supervised.cumsum(axis=1) > skip_first) if skip_first else supervised
    masks = {"predict": predict, "attended": attended, "all": np.ones(shape, dtype=bool), "held": held}
    mask = masks[positions]
    return Batch(
        rows=torch.tensor(list(rows), dtype=torch.int64),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attended.astype(np.int64)),
        predict_mask=torch.from_numpy(mask),
        targets=torch.from_numpy(following[mask]),
        row=torch.from_numpy(np.nonzero(mask)[0]),
        is_end=torch.from_numpy(is_end[mask]),
        answer=torch.from_numpy(supervised[mask]),
    )


def pack(lengths: Sequence[int] | np.ndarray, budget: int) -> list[list[int]]:
    """Group rows into micro-batches of similar length, longest first.

    Args:
        lengths: tokens of each row.
        budget: padded tokens (rows x longest) of a group; a row longer than that goes alone.

    Returns:
        Indices into `lengths`; each appears once. Equal lengths keep their order, so the grouping is deterministic.
    """
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -int(lengths[i])):
        if groups and (len(groups[-1]) + 1) * longest <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = int(lengths[index])
    return groups
