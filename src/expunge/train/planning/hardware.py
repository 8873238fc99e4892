"""The machine a run is planned for: this one, or one that is only named."""

from __future__ import annotations

import re
from typing import NamedTuple

import psutil
import torch

from expunge.errors import UsageError
from expunge.models.load import pick_device

GB = 10**9


class Card(NamedTuple):
    """What a GPU's data sheet says."""

    teraflops: float
    """Dense bfloat16 products with float32 sums, 10^12 a second."""
    memory: float
    """In GB of 10^9 bytes."""


CARDS = {
    "B200": Card(2250, 180),
    "H200": Card(989, 141),
    "H100": Card(989, 80),
    "A100": Card(312, 80),
    "L40S": Card(362, 48),
    "L40": Card(181, 48),
    "A6000": Card(155, 48),
    "4090": Card(165, 24),
    "3090": Card(71, 24),
    "A10": Card(125, 24),
    "L4": Card(121, 24),
}
"""By a part of the name the driver gives."""

RESERVED = {"cuda": 1.0 * GB, "cpu": 0.6 * GB, "mps": 0.6 * GB}
"""What a process takes beside its tensors: driver context and kernels' workspaces, or the libraries themselves."""
SLACK = 1.05
"""Allocators hold some more than is in use."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Hardware(NamedTuple):
    """Where a run is to happen."""

    kind: str
    """`cpu`, `cuda` or `mps`."""
    name: str
    """As printed; of a GPU that is not here, its name in `CARDS` or `cuda`."""
    memory: int | None
    """Bytes each process can have; None where nobody says."""
    card: Card | None
    """Its data sheet, where it is a GPU that is known."""
    here: bool
    """Whether it is this machine's own, so that it can be measured."""
    processes: int = 1

    def needed(self, num_bytes: int) -> int:
        """What has to be free on a device for so many bytes of tensors."""
        return round(num_bytes * SLACK + RESERVED[self.kind])

    def fits(self, num_bytes: int) -> bool | None:
        """Whether there is room for so many bytes of tensors; None where the memory is not known."""
        return None if self.memory is None else self.needed(num_bytes) <= self.memory


def hardware(device: str | None, *, memory: str | None = None, processes: int = 1) -> Hardware:
    """The machine meant.

    Args:
        device: `cpu`, `cuda`, `mps`, or a GPU of `CARDS` (`h100`), here or not; the best one here unless given.
        memory: of one GPU, or of the whole machine for a CPU: `24GB`, `80GiB`; its own unless given.
        processes: how many share the work: one per GPU, or several on a CPU, which share its memory.

    Raises:
        UsageError: an unknown device, or a memory that is no size.
    """
    given = None if memory is None else parse_size(memory)
    name = (device or pick_device(None).type).upper()
    known = next((card for card in CARDS if card == name), None)
    if known is not None:
        here = known in _own_gpu().upper()
        return Hardware("cuda", known, given or round(CARDS[known].memory * GB), CARDS[known], here, processes)
    kind = name.lower().partition(":")[0]
    if kind not in RESERVED:
        raise UsageError(f"unknown device {device!r}", hint=f"cpu, cuda, mps, or a GPU: {', '.join(CARDS).lower()}")
    if kind != "cuda":
        own = given or psutil.virtual_memory().total
        here = kind == "cpu" or torch.backends.mps.is_available()
        return Hardware(kind, kind, own // processes, None, here, processes)
    gpu = _own_gpu()
    sheet = next((CARDS[card] for card in CARDS if card in gpu.upper()), None)
    own_memory = given or (torch.cuda.get_device_properties(0).total_memory if gpu else None)
    return Hardware("cuda", gpu or "cuda", own_memory, sheet, bool(gpu), processes)


def _own_gpu() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def parse_size(text: str) -> int:
    """`80GB` (10^9 bytes), `24GiB` (2^30), `800M`, or plain bytes.

    Raises:
        UsageError: it is no such size, or nothing.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if found is None or found[2] == "I" or float(found[1]) == 0:
        raise UsageError(f"{text!r} is no size of a memory", hint="write it like 24GB or 80GiB")
    return round(float(found[1]) * _UNITS[found[2]])
