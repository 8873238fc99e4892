"""A folder of ours: what an earlier command wrote there, and a refusal to touch one that is somebody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.errors import UsageError


def earlier_state(root: Path, name: str, *, what: str) -> dict[str, Any]:
    """What an earlier command wrote into the state file of a folder; empty where the folder is.

    Args:
        root: the folder, which exists.
        name: of the state file.
        what: makes such folders: `demo`, `bench`.

    Raises:
        UsageError: the folder holds something else, or a state file of another making. Folders beside such a file may
            be somebody's work, and are not cleared.
    """
    state = root / name
    others = [item for item in root.iterdir() if not item.name.startswith(".") and item != state]
    if not state.exists():
        if others:
            raise UsageError(f"{root} is not empty and no {what} lies there", hint="choose another folder with --out")
        return {}
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _not_ours(state, what) from error
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict) or "seeds" not in found["settings"]:
        raise _not_ours(state, what)
    return found


def _not_ours(state: Path, what: str) -> UsageError:
    return UsageError(
        f"{state} is not what a {what} writes, or is damaged",
        hint=f"delete {state.parent} if it holds nothing else, or choose another folder with --out",
    )
