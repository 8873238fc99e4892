"""Ask the starting model about every row once and write what it says, by one process or by several together.

Every process asks about its share of the rows and writes the answers to their places in the same files, so that no
table ever travels between processes.
"""

from __future__ import annotations

import math
import os
import platform
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge.data.collate import Batch, Positions, collate, pack
from expunge.data.encode import Dataset
from expunge.errors import ModelError, UsageError
from expunge.losses.eua import eua_margins
from expunge.models.head import Head, Projected
from expunge.models.load import autocast
from expunge.models.processes import Processes
from expunge.models.reference import Reference, ReferenceKind
from expunge.models.score import Scored, score
from expunge.runs.cache import Entry
from expunge.runs.store import stops_when_full

_BLOCK = 1 << 20
Progress = Callable[[dict[str, Any]], None]


class Draft(NamedTuple):
    """An entry whose files are being filled."""

    entry: Entry
    folder: Path


@dataclass(frozen=True)
class Questions:
    """What is asked of the starting model, about which rows."""

    model: Any
    dataset: Dataset
    references: tuple[Reference, ...]
    offsets: np.ndarray
    """(rows + 1,) where each row's scored positions begin."""
    positions: Positions
    skip_first: int
    pad_id: int
    token_budget: int
    head: Head | None
    """The frozen output head, where `hidden` is asked for."""

    def shape(self, item: Reference) -> tuple[int, ...]:
        """Of the array one quantity fills."""
        tokens = int(self.offsets[-1])
        if item.kind == "seq_logp":
            return (len(self.offsets) - 1,)
        if item.kind == "token_logp":
            return (tokens,)
        if item.kind == "eua_margin":
            return (tokens, 2)
        if item.kind == "hidden":
            return (tokens, self.model.get_output_embeddings().weight.shape[1])
        return (tokens, self.model.config.get_text_config().hidden_size)


def build(
    questions: Questions,
    begin: Callable[[ExitStack], Draft],
    meta: Mapping[str, Any],
    *,
    where: Processes,
    progress: Progress | None = None,
) -> Entry:
    """Fill a cache entry with one forward pass over the rows; called by every process together.

    Args:
        questions: what is asked.
        begin: opens the entry's draft inside the given stack; called on the main process alone.
        meta: kept with the entry.
        where: the processes of this run.
        progress: called with `{"event": "phase", ...}`, counting this process's share of the rows.

    Raises:
        StoppedError: the disk is full; nothing is left behind.
        UsageError: the folder cannot be written to, or is not the same one on every machine.
        ModelError: see `expunge.models.reference_table.reference_table`.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        entry, folder = where.first(lambda: _begun(begin(stack), questions))
        where.everywhere(lambda: require_seen(folder / "offsets.npy", where))
        where.everywhere(lambda: _fill(entry, folder, questions, where, progress))

        def finish() -> None:
            with stops_when_full(entry.path):
                files = {path.name: checksum(path) for path in sorted(folder.glob("*.npy"))}
            entry.finish(folder, {**meta, "files": files, "seconds": round(time.perf_counter() - started, 3)})

        where.first(finish)
    return entry


def require_seen(path: Path, where: Processes) -> None:
    """Refuse a machine that does not see what the main process wrote.

    Raises:
        UsageError: naming it.
    """
    if not path.exists():
        raise UsageError(
            f"process {where.rank} of {where.world} ({platform.node()}) does not see {path.parent}, where the main "
            "process keeps the starting model's table",
            hint="point EXPUNGE_CACHE to a folder that all machines share, or run on one machine",
        )


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found


def _begun(draft: Draft, questions: Questions) -> Draft:
    """The draft with all its files in full size: a disk too small for them says so before the first forward."""
    with stops_when_full(draft.entry.path):
        for item in questions.references:
            path = draft.folder / f"{item.kind}.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=questions.shape(item))
            if hasattr(os, "posix_fallocate"):
                with path.open("rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        np.save(draft.folder / "offsets.npy", questions.offsets)
    return draft


class _Sink:
    """Writes rows of an `.npy` file in place.

    Not through a memory map: processes on several machines would write whole pages, with each other's rows in them.
    """

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r")
        self.start, self.width = array.offset, array.itemsize * math.prod(array.shape[1:])
        # Open for writing alone, a network disk writes the bytes given to it and not the page around them.
        self.file: IO[bytes] = os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0)), "wb")

    def write(self, at: int, values: np.ndarray) -> None:
        """Put values at index `at` and following."""
        self.file.seek(self.start + at * self.width)
        self.file.write(np.ascontiguousarray(values, dtype=np.float32).tobytes())


def _fill(entry: Entry, folder: Path, questions: Questions, where: Processes, progress: Progress | None) -> None:
    dataset, offsets = questions.dataset, questions.offsets
    device = next(questions.model.parameters()).device
    groups = where.share(pack(dataset.lengths(), questions.token_budget))
    total, done = sum(map(len, groups)), 0
    with stops_when_full(entry.path), ExitStack() as stack:
        sinks = {item.kind: _Sink(folder / f"{item.kind}.npy") for item in questions.references}
        for sink in sinks.values():
            stack.callback(sink.file.close)
        for rows in groups:
            batch = collate(
                dataset,
                rows,
                pad_id=questions.pad_id,
                positions=questions.positions,
                skip_first=questions.skip_first,
            ).to(device)
            for kind, tensor in _answers(questions, batch, examine=not done).items():
                values, start = tensor.float().cpu().numpy(), 0
                expected = len(rows) if kind == "seq_logp" else len(batch.targets)
                if len(values) != expected:
                    raise ValueError(f"{len(values)} values of {kind} for {expected} places")
                for place, row in enumerate(rows):
                    if kind == "seq_logp":
                        sinks[kind].write(row, values[place : place + 1])
                        continue
                    count = int(offsets[row + 1] - offsets[row])
                    sinks[kind].write(int(offsets[row]), values[start : start + count])
                    start += count
            done += len(rows)
            if progress:
                progress({"event": "phase", "name": "reference", "done": done, "total": total})


@torch.inference_mode()
def _answers(questions: Questions, batch: Batch, *, examine: bool) -> dict[ReferenceKind, Tensor]:
    """Every quantity of a micro-batch, by kind.

    Args:
        questions: what is asked.
        batch: of its rows.
        examine: compare the logits that hidden states give with the model's own; of one micro-batch that is enough,
            since what a model does after its head does not depend on the rows, and it costs as much as the forward.
    """
    layer = next((item.layer for item in questions.references if item.kind == "block"), None)
    seen: list[Tensor] = []
    hook = questions.model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with autocast(batch.input_ids.device):
            scored = score(questions.model, batch, hidden=layer)
    finally:
        hook.remove()
    # The last forward is the batch's: a model may have been examined by one of its own before.
    head = questions.head
    if examine and head is not None and not bool(scored.per_position(_close, Projected(seen[-1], head)).all()):
        raise ModelError(
            f"{type(questions.model).__name__} changes its logits after the output head in a way its config does not "
            "say, so a KL retain term cannot be re-projected from hidden states",
            hint="use method.retain=nll for this model",
        )
    return {item.kind: _quantity(item, scored, seen[-1]) for item in questions.references}


def _quantity(item: Reference, scored: Scored, hidden: Tensor) -> Tensor:
    if item.kind == "seq_logp":
        return scored.seq_logps
    if item.kind == "token_logp":
        return scored.logps
    if item.kind == "block" and scored.hidden is not None:
        return scored.hidden
    if item.kind == "eua_margin":
        return scored.per_position(partial(_margins, item))
    return hidden


def _margins(item: Reference, logits: Tensor, targets: Tensor) -> Tensor:
    """(N, 2) the EUA margins a reference asks for, of (N, V) logits."""
    return eua_margins(
        logits,
        ratio=item.ratio,
        temperature=item.temperature,
        fill=item.fill,
        leading_temperature=item.leading_temperature,
    )


def _close(logits: Tensor, targets: Tensor, again: Tensor) -> Tensor:
    """(N,) whether two models' logits are the same but for rounding."""
    return torch.isclose(again.float(), logits.float(), atol=0.05, rtol=0.02).all(-1)
