"""A world as ordinary files, written all or not at all, and read back."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from expunge.data.worlds.build import VERSION, World
from expunge.errors import DataError, UsageError
from expunge.runs.store import atomic_write_json, stops_when_full

SCHEMA = 1
ROWS = ("forget", "retain", "multi_hop", "holdout", "documents")
"""The row files, `<name>.jsonl`."""


def write_world(world: World, folder: Path, *, overwrite: bool = False) -> Path:
    """Write `world.json` and a JSON Lines file for each set of rows.

    Args:
        world: what to write.
        folder: made if it is not there; the same world that lies there already is left alone.
        overwrite: replace another world.

    Returns:
        The folder.

    Raises:
        UsageError: something else lies there.
        StoppedError: the disk is full; nothing is left behind.
    """
    if (folder / "world.json").exists() and not overwrite:
        if read_world(folder).get("digest") == world.digest:
            return folder
        raise UsageError(f"{folder} holds another world", hint="choose another folder, or add --overwrite")
    if folder.exists() and any(folder.iterdir()) and not (folder / "world.json").exists():
        raise UsageError(f"{folder} is not empty and not a world", hint="choose another folder with --out")
    with stops_when_full(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            for name in ROWS:
                lines = [json.dumps(row, ensure_ascii=False) for row in getattr(world, name)]
                (partial / f"{name}.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
            atomic_write_json(partial / "world.json", describe(world))
            partial.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


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
    path = folder / "world.json"
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
