"""Build, store and read the starting model's table: what a frozen reference says about every row, computed once.

One entry holds flat arrays over the scored tokens of a dataset (memory-mapped) and where each row's tokens start. The
key covers everything that could change a number: weights, token ids, positions, dtype, attention, the question asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from expunge.data.collate import Batch, Positions
from expunge.data.encode import Dataset
from expunge.errors import DataError, ModelError, UsageError
from expunge.models.fingerprint import digest_json
from expunge.models.head import Head, Projected, frozen_head
from expunge.models.load import compute_dtype
from expunge.models.processes import Processes, processes
from expunge.models.reference import OwnTables, Reference, ReferenceValues, StoredRows
from expunge.models.reference_build import Draft, Progress, Questions, build, checksum, require_seen
from expunge.runs.cache import Entry, open_entry
from expunge.runs.text import size

SCHEMA = 2
KIND = "reference"
_NO_MATTER = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"})
"""What a model's config says of where it came from, not of what it computes."""


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
    seconds: float = 0.0
    """What building it took, in this run or in the one it was read from."""

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
    elsewhere: Path | None = None,
) -> ReferenceTable:
    """Read the table of `dataset` from the cache, or build it with one forward pass over the rows.

    Several processes call it together: each asks about its share of the rows, and all read the same files.

    Args:
        model: the starting model, in evaluation mode on its device.
        dataset: the rows, encoded.
        references: the quantities a method declared.
        model_key: SHA-256 of the weights; what the model does with them is read off its config.
        pad_id: padding token id (its value never matters).
        positions: which positions are scored.
        skip_first: how many of each row's are left out at its start.
        token_budget: padded tokens of one forward; changes the numbers only by rounding and is not in the key.
        progress: called with `{"event": "phase", ...}`, and with a note of size and time at the end.
        elsewhere: where the table is built, and then found, if the cache cannot be written to; None: that is an error.

    Raises:
        DataError: the cached table is damaged.
        ModelError: the model changes its logits after the output head, so hidden states cannot stand for them.
        StoppedError: the disk is full.
        UsageError: the cache cannot be written to, or is not the same folder on every machine.
    """
    device = next(model.parameters()).device
    identity = {
        "schema": SCHEMA,
        "model": model_key,
        "config": digest_json({k: v for k, v in model.config.to_dict().items() if k not in _NO_MATTER}),
        "data": dataset.digest,
        "positions": positions,
        **({"skip_first": skip_first} if skip_first else {}),
        "dtype": str(compute_dtype(device)),
        "attention": model.config._attn_implementation,
        "references": [asdict(item) for item in references],
    }
    key, where = digest_json(identity), processes()
    kinds = sorted({item.kind for item in references})
    head = frozen_head(model) if "hidden" in kinds else None
    elsewhere = elsewhere and elsewhere.absolute()
    show = progress or (lambda event: None)
    entry = where.first(lambda: _find(key, elsewhere))
    cached = entry is not None
    if entry is None:
        offsets = _offsets(dataset, positions, skip_first)
        entry = build(
            Questions(model, dataset, references, offsets, positions, skip_first, pad_id, token_budget, head),
            lambda stack: _begin(stack, key, elsewhere, show),
            {"identity": identity, "description": f"{'+'.join(kinds)} of {len(dataset.encoded)} {dataset.role} rows"},
            where=where,
            progress=progress,
        )
    found = entry
    table = where.everywhere(lambda: _read(found, head, where, kinds, cached=cached))
    show({"event": "note", "text": _told(dataset.role, kinds, table)})
    return table


def _find(key: str, elsewhere: Path | None) -> Entry | None:
    """The complete entry of a key, if there is one."""
    places = [Entry(KIND, key, elsewhere / key)] if elsewhere else []
    # Without a home there is no cache to look into.
    with suppress(UsageError):
        places.insert(0, open_entry(KIND, key))
    return next((entry for entry in places if entry.complete), None)


def _begin(stack: ExitStack, key: str, elsewhere: Path | None, progress: Progress) -> Draft:
    """A draft in the cache, else elsewhere."""
    try:
        entry = open_entry(KIND, key)
        return Draft(entry, stack.enter_context(entry.draft()))
    except UsageError as error:
        if elsewhere is None:
            raise
        text = f"{error.message}; the starting model's table is kept in {elsewhere}, for this run alone"
    entry = Entry(KIND, key, elsewhere / key)
    draft = Draft(entry, stack.enter_context(entry.draft()))
    progress({"event": "warning", "text": text})
    return draft


def _read(entry: Entry, head: Head | None, where: Processes, kinds: Sequence[str], *, cached: bool) -> ReferenceTable:
    require_seen(entry.path / "meta.json", where)
    meta = entry.meta
    try:
        if cached and where.main:
            _require_whole(entry)
        arrays = {kind: np.load(entry.path / f"{kind}.npy", mmap_mode="r") for kind in kinds}
        offsets = np.load(entry.path / "offsets.npy")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the cached table {entry.path} is damaged: {error}",
            hint=f"remove it with {_removal(entry)}; it is built again when needed",
        ) from error
    num_bytes = sum(array.nbytes for array in arrays.values())
    return ReferenceTable(arrays, offsets, head, cached, num_bytes, entry.name, seconds=float(meta.get("seconds", 0.0)))


def _require_whole(entry: Entry) -> None:
    """Compare every file with the checksum it was written with: a wrong number in a table is a wrong experiment."""
    files = entry.meta.get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError("its meta.json names no files")
    for name, expected in files.items():
        if checksum(entry.path / name) != expected:
            raise ValueError(f"{name} is not what was written")


def _removal(entry: Entry) -> str:
    own = entry.path.parent.name == KIND
    return f"`expunge cache rm {entry.key[:12]}`" if own else f"`rm -r {entry.path}`"


def _told(role: str, kinds: Sequence[str], table: ReferenceTable) -> str:
    how = "reused" if table.cached else f"built in {table.seconds:.1f} s"
    return f"reference tables: {role} {'+'.join(kinds)} {size(table.num_bytes)} {how}"


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
    """What the log of a run says of a table: size, kinds, what building it took, and whether it was reused."""
    return {
        "bytes": table.num_bytes,
        "cached": table.cached,
        "kinds": sorted(table.arrays),
        "build_seconds": round(table.seconds, 3),
    }
