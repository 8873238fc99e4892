"""Speed, memory and time left: the fields of an event that no result depends on."""

from __future__ import annotations

import os
from typing import Any

import psutil
import torch

VOLATILE = frozenset({"seconds", "tokens_per_s", "eta_s", "memory_mb", "time"})
"""Event fields that may differ between two runs of the same recipe."""


def memory_mb(device: torch.device) -> float:
    """Peak allocated memory on a GPU; resident memory of the process elsewhere. In MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return float(psutil.Process(os.getpid()).memory_info().rss) / 1e6


class Monitor:
    """Exponential averages over steps."""

    def __init__(self, device: torch.device, step: int, total: int) -> None:
        self.device, self.total = device, total
        self.seconds_per_step: float | None = None
        self.first = step

    def measure(self, step: int, tokens: int, seconds: float) -> dict[str, Any]:
        """The volatile fields of one step's event."""
        average = self.seconds_per_step
        self.seconds_per_step = seconds if average is None else 0.9 * average + 0.1 * seconds
        return {
            "seconds": round(seconds, 4),
            "tokens_per_s": round(tokens / seconds, 1) if seconds > 0 else 0.0,
            "eta_s": round((self.total - step) * self.seconds_per_step, 1),
            "memory_mb": round(memory_mb(self.device), 1),
        }
