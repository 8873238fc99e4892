"""Which of several processes this one is, as its launcher says in the environment; known without torch."""

from __future__ import annotations

import os

LAUNCHER = "EXPUNGE_LAUNCHER"
"""Set for processes that `--num_processes` started: their launcher says which of them failed first."""

PEER_LOST = 99
"""Exit code, under that launcher, of a process that ended because another one had."""


def rank() -> int:
    """0-based, over every machine; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes the launcher started; 1 alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """Whether a launcher (torchrun, accelerate launch, `--num_processes`) started this process as one of several."""
    return world() > 1


def watched() -> bool:
    """Whether our own launcher watches this process."""
    return LAUNCHER in os.environ
