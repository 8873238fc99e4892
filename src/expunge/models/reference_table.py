"""Build, store and read the starting model's table: what a frozen reference says about every row, computed once.

One entry holds flat arrays over the scored tokens of a dataset (memory-mapped) and where each row's tokens start. The
key covers everything that could change a number: weights, token ids, positions, dtype, attention, the question asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.collate import Batch, Positions, collate, pack
from expunge.data.encode import Dataset
from expunge.errors import DataError, ModelError
from expunge.losses.eua import eua_margins
from expunge.models.fingerprint import digest_json
from expunge.models.head import Head, Projected, frozen_head
from expunge.models.load import autocast, compute_dtype
from expunge.models.reference import OwnTables, Reference, ReferenceValues, StoredRows
from expunge.models.score import Scored, score
from expunge.runs.cache import Entry, open_entry

SCHEMA = 1
_BLOCK = 1 << 20
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ReferenceTable:
    """The stored answers of the starting model for one dataset."""

    arrays: Mapping[str, np.ndarray]
    """`seq_logp` (rows,), `token_logp` (tokens,), `eua_margin` (tokens, 2), `hidden` and `block` (tokens, width)."""
    offsets: np.ndarray
    """(rows + 1,) where each row's tokens start."""
    head: Head | None = None
    """The frozen output head, only with `hidden`."""
    cached: bool = False
    """Whether it was read from an earlier run's cache."""
    num_bytes: int = 0
    name: str = ""
    """Its cache entry, `reference/<key>`; empty where nothing was asked of the starting model."""
    own: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(tokens, ...) what a method made itself."""

    def values(self, batch: Batch) -> ReferenceValues:
        """The slice of a micro-batch, on its device, in the order of its flat positions."""
        rows = batch.rows.tolist()
        index = np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])
        device = batch.input_ids.device

        def take(name: str, where: np.ndarray) -> Tensor | None:
            return StoredRows(self.arrays[name], where, device)[:] if name in self.arrays else None

        hidden = take("hidden", index)
        return ReferenceValues(
            seq_logp=take("seq_logp", batch.rows.cpu().numpy()),
            token_logp=take("token_logp", index),
            eua_margin=take("eua_margin", index),
            distribution=Projected(hidden, self.head) if hidden is not None and self.head is not None else None,
            block=take("block", index),
            own=OwnTables({name: StoredRows(array, index, device) for name, array in self.own.items()}),
        )

    def with_own(self, tables: Mapping[str, np.ndarray], *, dataset: str) -> ReferenceTable:
        """This table with what a method made itself beside it.

        Raises:
            DataError: a table has not one entry per scored position: it would speak of other tokens.
        """
        for name, array in tables.items():
            if len(array) != self.offsets[-1]:
                raise DataError(
                    f"the method's table {name!r} of {dataset} has {len(array)} entries, not {self.offsets[-1]}"
                )
        return replace(self, own=dict(tables))


def empty_table(dataset: Dataset, *, positions: Positions, skip_first: int = 0) -> ReferenceTable:
    """A table that asks nothing of the starting model: where each row's scored positions begin."""
    return ReferenceTable({}, _offsets(dataset, positions, skip_first))


def reference_table(
    model: Any,
    dataset: Dataset,
    references: tuple[Reference, ...],
    *,
    model_key: str,
    pad_id: int,
    positions: Positions,
    skip_first: int = 0,
    token_budget: int,
    progress: Progress | None = None,
) -> ReferenceTable:
    """Read the table of `dataset` from the cache, or build it with one forward pass over the rows.

    Args:
        model: the starting model, in evaluation mode on its device.
        dataset: the rows, encoded.
        references: the quantities a method declared.
        model_key: SHA-256 of the weights.
        pad_id: padding token id (its value never matters).
        positions: which positions are scored.
        skip_first: how many of each row's are left out at its start.
        token_budget: padded tokens of one forward; changes the numbers only by rounding and is not in the key.
        progress: called with `{"event": "phase", ...}`.

    Raises:
        DataError: the cached table is damaged.
        ModelError: the model changes its logits after the output head, so hidden states cannot stand for them.
    """
    device = next(model.parameters()).device
    identity = {
        "schema": SCHEMA,
        "model": model_key,
        "data": dataset.digest,
        "positions": positions,
        **({"skip_first": skip_first} if skip_first else {}),
        "dtype": str(compute_dtype(device)),
        "attention": model.config._attn_implementation,
        "references": [asdict(item) for item in references],
    }
    kinds = {item.kind for item in references}
    head = frozen_head(model) if "hidden" in kinds else None
    entry = open_entry("reference", digest_json(identity))
    if not entry.complete:
        build = _Build(model, dataset, references, positions, skip_first, pad_id, head)
        entry.write(
            lambda folder: build.run(folder, token_budget, progress),
            {
                "identity": identity,
                "description": f"{'+'.join(sorted(kinds))} of {len(dataset.encoded)} {dataset.role} rows",
            },
        )
        return _read(entry, head, cached=False)
    return _read(entry, head, cached=True)


def _read(entry: Entry, head: Head | None, *, cached: bool) -> ReferenceTable:
    try:
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in sorted(entry.path.glob("*.npy"))}
        offsets = np.asarray(arrays.pop("offsets"))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the cached table {entry.path} is damaged: {error}",
            hint=f"remove it with `expunge cache rm {entry.key[:12]}`; it is built again when needed",
        ) from error
    size = sum(array.nbytes for array in arrays.values())
    return ReferenceTable(arrays, offsets, head, cached, size, entry.name)


class _Build:
    """One forward pass over a dataset, writing every declared quantity."""

    def __init__(
        self,
        model: Any,
        dataset: Dataset,
        references: tuple[Reference, ...],
        positions: Positions,
        skip_first: int,
        pad_id: int,
        head: Head | None,
    ) -> None:
        self.model, self.dataset, self.references = model, dataset, references
        self.positions, self.skip_first, self.pad_id, self.head = positions, skip_first, pad_id, head
        self.layer = next((item.layer for item in references if item.kind == "block"), None)

    def run(self, folder: Any, token_budget: int, progress: Progress | None) -> None:
        offsets = _offsets(self.dataset, self.positions, self.skip_first)
        np.save(folder / "offsets.npy", offsets)
        sinks: dict[str, np.ndarray] = {
            item.kind: np.lib.format.open_memmap(
                folder / f"{item.kind}.npy", mode="w+", dtype=np.float32, shape=self._shape(item, offsets)
            )
            for item in self.references
        }
        for kind in sinks:
            _reserve(folder / f"{kind}.npy")
        device = next(self.model.parameters()).device
        lengths, done = self.dataset.lengths(), 0
        for rows in pack(lengths, token_budget):
            batch = collate(
                self.dataset, rows, pad_id=self.pad_id, positions=self.positions, skip_first=self.skip_first
            ).to(device)
            for kind, values in self._ask(batch).items():
                if kind == "seq_logp":
                    sinks[kind][rows] = values.float().cpu().numpy()
                else:
                    scatter(sinks[kind], values.float().cpu().numpy(), rows, offsets)
            done += len(rows)
            if progress:
                progress({"event": "phase", "name": "reference", "done": done, "total": len(lengths)})
        # Dropping a writable memory map flushes it; np.load reads the files next.
        sinks.clear()

    def _shape(self, item: Reference, offsets: np.ndarray) -> tuple[int, ...]:
        tokens = int(offsets[-1])
        width = self.model.get_output_embeddings().weight.shape[1]
        state = self.model.config.get_text_config().hidden_size
        return {
            "seq_logp": (len(offsets) - 1,),
            "token_logp": (tokens,),
            "eua_margin": (tokens, 2),
            "hidden": (tokens, width),
            "block": (tokens, state),
        }[item.kind]

    @torch.inference_mode()
    def _ask(self, batch: Batch) -> dict[str, Tensor]:
        head = self.model.get_output_embeddings()
        seen: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with autocast(batch.input_ids.device):
                scored = score(self.model, batch, hidden=self.layer)
        finally:
            hook.remove()
        return {item.kind: self._quantity(item, scored, seen[0]) for item in self.references}

    def _quantity(self, item: Reference, scored: Scored, hidden: Tensor) -> Tensor:
        if item.kind == "seq_logp":
            return scored.seq_logps
        if item.kind == "token_logp":
            return scored.logps
        if item.kind == "block" and scored.hidden is not None:
            return scored.hidden
        if item.kind == "eua_margin":
            return scored.per_position(partial(_margins, item))
        if self.head is not None and not bool(scored.per_position(_close, Projected(hidden, self.head)).all()):
            raise ModelError(
                f"{type(self.model).__name__} changes its logits after the output head in a way its config does not "
                "say, so a KL retain term cannot be re-projected from hidden states",
                hint="use method.retain=nll for this model",
            )
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


def _reserve(path: Path) -> None:
    """Take the space of a memory-mapped file now: a disk that fills up under a map kills the process by a signal."""
    with path.open("rb+") as file:
        size = path.stat().st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        start = file.read(_BLOCK)
        file.seek(0)
        file.write(start)
        for place in range(len(start), size, _BLOCK):
            file.write(bytes(min(_BLOCK, size - place)))


def _offsets(dataset: Dataset, positions: Positions, skip_first: int) -> np.ndarray:
    """(rows + 1,) where each row's scored positions begin."""
    if positions == "all":
        raise ModelError(
            "positions 'all' depend on the padding of a batch, so no table can hold them",
            hint="use kl_positions=attended, or profile=canonical",
        )
    counts = dataset.lengths() if positions == "attended" else dataset.supervised()
    if positions == "predict":
        counts = np.maximum(counts - skip_first, 0)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def scatter(sink: np.ndarray, values: np.ndarray, rows: Sequence[int], offsets: np.ndarray) -> None:
    """Write the flat values of a micro-batch, row after row, to the places of its rows."""
    start = 0
    for row in rows:
        stop = start + int(offsets[row + 1] - offsets[row])
        sink[offsets[row] : offsets[row + 1]] = values[start:stop]
        start = stop


def describe(table: ReferenceTable) -> dict[str, Any]:
    """What the manifest and the log say of a table: size and whether it was reused."""
    return {"bytes": table.num_bytes, "cached": table.cached, "kinds": sorted(table.arrays)}
