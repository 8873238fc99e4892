"""How much memory a piece of work needs at its peak."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class PeakMemory:
    """Peak memory above what was there when this was made: after the imports, before models and data.

    On a GPU that is `max_memory_allocated`; elsewhere the peak resident set, in a process that does nothing else.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            import torch

            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats(device)
            return
        _give_back()
        # Importing briefly needs more than it leaves behind; where the kernel allows it, forget that peak.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.base = _status_mb("VmRSS")

    def mb(self) -> float:
        """Megabytes (10^6 bytes)."""
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return _status_mb("VmHWM") - self.base


def _give_back() -> None:
    """Hand freed memory back to the system, so that earlier work does not make later work look small."""
    gc.collect()
    # Where the C library cannot, nothing is lost but this.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status_mb(name: str) -> float:
    path = Path("/proc/self/status")
    if path.exists():
        line = next(line for line in path.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024 / 1e6
    return _whole_process_mb()


def _whole_process_mb() -> float:
    """Without procfs there is only the peak of the whole process, in kilobytes or, on macOS, bytes."""
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if os.uname().sysname == "Darwin" else peak * 1024 / 1e6
