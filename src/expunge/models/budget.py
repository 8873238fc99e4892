"""Find the micro-batch size this machine likes for this model, once."""

from __future__ import annotations

import json
import platform
import time
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from expunge.data.collate import collate, pack
from expunge.data.encode import Dataset
from expunge.errors import StoppedError, UsageError
from expunge.models.fingerprint import digest_json
from expunge.models.load import autocast
from expunge.models.score import score
from expunge.runs.cache import open_entry

CPU_BUDGETS = (512, 1024, 2048, 4096)
GPU_BUDGETS = (4096, 8192, 16384, 32768)


def tuned_budget(model: Any, dataset: Dataset, *, pad_id: int, backward: bool) -> int:
    """Padded tokens per micro-batch with the highest throughput, measured on real rows and remembered.

    Doubles the budget while tokens per second grow by more than 3 %, and stops below what fits into memory.

    Args:
        model: on its device; its weights and gradients are left as they were.
        dataset: rows to measure on.
        pad_id: padding token id.
        backward: measure training steps, not forward passes.
    """
    device = next(model.parameters()).device
    identity = {
        "machine": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "shape": {k: v for k, v in model.config.to_dict().items() if isinstance(v, int | float | str | bool)},
        "class": type(model).__name__,
        "longest": int(np.ceil(dataset.lengths().max() / 64) * 64),
        "backward": backward,
    }
    key = digest_json(identity)
    # Without a home, a cache to write to or space on its disk it is measured again by the next run.
    with suppress(UsageError):
        entry = open_entry("budget", key)
        if entry.complete:
            return int(json.loads((entry.path / "budget.json").read_text()))
    best = _search(model, dataset, pad_id, backward, GPU_BUDGETS if device.type == "cuda" else CPU_BUDGETS)
    with suppress(UsageError, StoppedError):
        open_entry("budget", key).write(
            lambda folder: (folder / "budget.json").write_text(json.dumps(best)),
            {"identity": identity, "description": f"{best} tokens for {type(model).__name__} on {device.type}"},
        )
    return best


def _search(model: Any, dataset: Dataset, pad_id: int, backward: bool, budgets: tuple[int, ...]) -> int:
    best, best_rate = budgets[0], 0.0
    for budget in budgets:
        try:
            rate = _rate(model, dataset, pad_id, backward, budget)
        except torch.OutOfMemoryError:
            break
        if rate < 1.03 * best_rate:
            break
        best, best_rate = budget, rate
    return best


def _rate(model: Any, dataset: Dataset, pad_id: int, backward: bool, budget: int) -> float:
    """Real tokens per second over a few micro-batches, best of two rounds."""
    device = next(model.parameters()).device
    sample = list(range(min(len(dataset.encoded), max(64, 4 * budget // int(dataset.lengths().max())))))
    groups = pack(dataset.lengths()[sample], budget)[:4]
    rates = []
    for _ in range(3):
        tokens, start = 0, time.perf_counter()
        for rows in groups:
            batch = collate(dataset, rows, pad_id=pad_id).to(device)
            with torch.set_grad_enabled(backward), autocast(device):
                scored = score(model, batch)
                loss = -scored.logps.mean()
            if backward:
                torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
            tokens += int(dataset.lengths()[rows].sum())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(tokens / (time.perf_counter() - start))
    return max(rates[1:])
