"""What a method made itself, in the run directory: written whole or not at all, read back on resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from expunge.data.example import Example, Turn
from expunge.errors import DataError
from expunge.methods.workshop import Provision
from expunge.runs.store import stops_when_full, sync_files

_ROWS, _TABLES, _CONSTANTS = "rows.json", "tables.npz", "constants.safetensors"


def write_provision(folder: Path, provision: Provision) -> None:
    """Put a provision at `folder`.

    Raises:
        StoppedError: the disk is full; nothing is left half written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with stops_when_full(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        rows = {
            name: [[_plain(example) for example in variant] for variant in variants]
            for name, variants in provision.rows.items()
        }
        (partial / _ROWS).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        named = {f"{dataset}/{name}": array for dataset, own in provision.tables.items() for name, array in own.items()}
        np.savez(partial / _TABLES, **named)  # type: ignore[arg-type]
        constants = {name: tensor.detach().cpu().contiguous() for name, tensor in provision.constants.items()}
        save_file(constants, partial / _CONSTANTS)
        sync_files(partial)
        partial.replace(folder)


def read_provision(folder: Path) -> Provision:
    """What `write_provision` wrote.

    Raises:
        DataError: it is damaged; making it anew in the middle of a run would change the run.
    """
    try:
        rows = json.loads((folder / _ROWS).read_text(encoding="utf-8"))
        with np.load(folder / _TABLES) as file:
            arrays = {name: file[name] for name in file.files}
        constants = load_file(folder / _CONSTANTS)
    except Exception as error:
        raise DataError(
            f"what the method prepared in {folder} cannot be read: {type(error).__name__}",
            hint="start the run anew with --overwrite",
        ) from error
    tables: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        dataset, _, own = name.partition("/")
        tables.setdefault(dataset, {})[own] = array
    made = {name: [[_example(item) for item in variant] for variant in variants] for name, variants in rows.items()}
    return Provision(made, tables, constants)


def _plain(example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "row": example.row,
        "turns": [list(turn) for turn in example.turns],
        "text": example.text,
        "group": example.group,
    }


def _example(item: Mapping[str, Any]) -> Example:
    turns = tuple(Turn(role, content) for role, content in item["turns"])
    return Example(item["id"], item["row"], turns=turns, text=item["text"], group=item["group"])
