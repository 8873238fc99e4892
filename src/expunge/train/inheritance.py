"""What the masks of one request leave to the next request of a sequence, in the run directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import DataError
from expunge.runs.store import atomic_file
from expunge.train.wrappers.base import GradientMask

_NAME = "inheritance.safetensors"


def write_inheritance(run: Path, masks: Iterable[GradientMask]) -> None:
    """Put what masks hand on into a run directory; no file where they hand on nothing.

    Raises:
        StoppedError: the disk is full.
    """
    left: dict[str, Tensor] = {}
    for mask in masks:
        left |= {name: tensor.detach().cpu().contiguous() for name, tensor in mask.bequest().items()}
    if left:
        with atomic_file(run / _NAME) as temporary:
            save_file(left, temporary)


def read_inheritance(run: Path) -> dict[str, Tensor]:
    """What the masks of a finished run handed on; empty where they handed on nothing.

    Raises:
        DataError: the file is damaged.
    """
    path = run / _NAME
    if not path.exists():
        return {}
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="start the sequence anew with --overwrite") from error
    return found
