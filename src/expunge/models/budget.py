"""Find the micro-batch size this machine likes for this model, once."""

from __future__ import annotations

import json
import platform
import time
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch

from expunge.data.collate import collate, pack
from expunge.data.encode import Dataset
from expunge.errors import StoppedError, UsageError
from expunge.models.adapters import is_adapted
from expunge.models.fingerprint import digest_json
from expunge.models.load import autocast
from expunge.models.score import score
from expunge.runs.cache import open_entry

CPU_BUDGETS = (512, 1024, 2048, 4096)
GPU_BUDGETS = (4096, 8192, 16384, 32768)


class Measured(NamedTuple):
    """What a machine was found to like for a model."""

    tokens: int
    """Padded tokens per micro-batch."""
    tokens_per_s: float | None
    """Real tokens per second at that size; None where nothing fitted."""


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
    # Without a home, a cache to write to or space on its disk it is measured again by the next run.
    found = remembered_budget(model, dataset, device=device, backward=backward)
    if found is not None:
        return found
    best = _search(model, dataset, pad_id, backward, GPU_BUDGETS if device.type == "cuda" else CPU_BUDGETS)
    identity = _identity(model, dataset, device, backward)
    with suppress(UsageError, StoppedError):
        open_entry("budget", digest_json(identity)).write(
            lambda folder: (folder / "budget.json").write_text(json.dumps(best._asdict())),
            {"identity": identity, "description": f"{best.tokens} tokens for {type(model).__name__} on {device.type}"},
        )
    return best.tokens


def remembered_budget(model: Any, dataset: Dataset, *, device: torch.device, backward: bool) -> int | None:
    """What `tuned_budget` found on this machine before, or None.

    Args:
        model: its shape only; it may be without weights.
        dataset: rows as long as those that were measured on.
        device: where it was measured.
        backward: of training steps, not forward passes.
    """
    with suppress(UsageError):
        entry = open_entry("budget", digest_json(_identity(model, dataset, device, backward)))
        if entry.complete:
            return int(json.loads((entry.path / "budget.json").read_text())["tokens"])
    return None


def _identity(model: Any, dataset: Dataset, device: torch.device, backward: bool) -> dict[str, Any]:
    return {
        "machine": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "shape": {k: v for k, v in model.config.to_dict().items() if isinstance(v, int | float | str | bool)},
        "class": type(model).__name__,
        "longest": int(np.ceil(dataset.lengths().max() / 64) * 64),
        "backward": backward,
        # No gradient of the weights themselves is computed then.
        **({"adapters": True} if backward and is_adapted(model) else {}),
    }


def _search(model: Any, dataset: Dataset, pad_id: int, backward: bool, budgets: tuple[int, ...]) -> Measured:
    best = Measured(budgets[0], None)
    for budget in budgets:
        try:
            rate = _rate(model, dataset, pad_id, backward, budget)
        except torch.OutOfMemoryError:
            break
        if rate < 1.03 * (best.tokens_per_s or 0.0):
            break
        best = Measured(budget, rate)
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
