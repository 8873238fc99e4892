"""A world as ordinary files: written so that no half of one is taken for a world, and read back."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.data.worlds.build import VERSION, World
from expunge.errors import DataError, UsageError
from expunge.runs.store import stops_when_full

SCHEMA = 1
ROWS = ("forget", "retain", "multi_hop", "holdout", "documents")
"""The row files, `<name>.jsonl`."""
DESCRIPTION = "world.json"


def write_world(world: World, folder: Path, *, overwrite: bool = False) -> Path:
    """Write `world.json` and a JSON Lines file for each set of rows.

    Args:
        world: what to write.
        folder: made if it is not there; the same world that lies there already is left alone.
        overwrite: replace another world, or one that was edited. Files beside it stay.

    Returns:
        The folder.

    Raises:
        UsageError: something else lies there.
        DataError: without `overwrite`, the `world.json` that lies there is damaged.
        StoppedError: the disk is full; no half of a world is left behind.
    """
    files = {f"{name}.jsonl": _lines(getattr(world, name)) for name in ROWS}
    files[DESCRIPTION] = json.dumps(describe(world), indent=2, ensure_ascii=False) + "\n"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="choose a folder with --out")
    with stops_when_full(folder):
        changed = [name for name, text in files.items() if not _holds(folder / name, text)]
        if not changed:
            return folder
        if not overwrite and (folder / DESCRIPTION).exists():
            raise _other(world, folder, changed)
        visible = {item.name for item in folder.glob("*") if not item.name.startswith(".")}
        if DESCRIPTION not in visible and (visible - files.keys() if overwrite else visible):
            raise UsageError(f"{folder} is not empty and not a world", hint="choose another folder with --out")
        _write(files, folder)
    return folder


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join([*(json.dumps(row, ensure_ascii=False) for row in rows), ""])


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _other(world: World, folder: Path, changed: Sequence[str]) -> UsageError:
    if read_world(folder).get("digest") != world.digest:
        return UsageError(f"{folder} holds another world", hint="choose another folder, or add --overwrite")
    return UsageError(
        f"{folder} holds this world, but {', '.join(changed)} was edited or is missing",
        hint="add --overwrite to write it anew, or choose another folder",
    )


def _write(files: Mapping[str, str], folder: Path) -> None:
    """Write everything beside its place first; `world.json`, which makes the folder a world, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    try:
        for name, text in files.items():
            (partial / name).write_bytes(text.encode())
        (folder / DESCRIPTION).unlink(missing_ok=True)
        for name in files:
            (partial / name).replace(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe(world: World) -> dict[str, Any]:
    """What `world.json` says: how to make the world again, who is who, and how many rows there are."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "people": len(world.people),
        "seed": world.seed,
        "digest": world.digest,
        "roles": {person.name: person.role for person in world.people},
        "neighbours": list(world.neighbours),
        "relations": [
            {"from": person.name, "relation": relation, "to": other}
            for person in world.people
            for relation, other in person.ties.items()
        ],
        "rows": {name: len(getattr(world, name)) for name in ROWS},
    }


def read_world(folder: Path) -> dict[str, Any]:
    """`world.json` of a world folder.

    Raises:
        DataError: there is none, it is not readable, or it is of another schema.
    """
    path = folder / DESCRIPTION
    again = f"make it with `expunge world build --out {folder}`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder} is not a world: {error.strerror} (world.json)", hint=again) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})", hint=again) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise DataError(f"{path} is not a world of schema {SCHEMA}", hint=again)
    return found
