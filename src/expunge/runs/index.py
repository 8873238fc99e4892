"""The runs under a folder, from their manifests; a cache of summaries makes the second look fast.

The cache is only that: delete it and it is built again. Nothing runs in the background.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import ExpungeError, UsageError
from expunge.runs.cache import cache_root
from expunge.runs.manifest import Manifest, load_manifest
from expunge.runs.store import atomic_write_json

_INDEX = 1
_INSIDE_A_RUN = {"model", "checkpoints"}


class RunSummary(NamedTuple):
    """One line of `expunge runs`."""

    path: str
    kind: str
    status: str
    """`running`, `finished`, `stopped`, or `unreadable` (with the reason as `problem`)."""
    created: str
    method: str | None = None
    model: str | None = None
    steps: int | None = None
    total_steps: int | None = None
    problem: str | None = None


def list_runs(root: Path) -> list[RunSummary]:
    """Every run at or under `root`, oldest first. A manifest that cannot be read is listed as such, never skipped."""
    known = _read_index()
    fresh: dict[str, dict[str, Any]] = {}
    found = []
    for manifest_path in _manifests(root):
        stat = manifest_path.stat()
        key, stamp = str(manifest_path.resolve()), [stat.st_mtime_ns, stat.st_size]
        entry = known.get(key)
        if entry is None or entry["stamp"] != stamp:
            entry = fresh[key] = {"stamp": stamp, "summary": _summary(manifest_path)._asdict()}
        found.append(RunSummary(**{**entry["summary"], "path": str(manifest_path.parent)}))
    if fresh:
        _write_index({**known, **fresh})
    return sorted(found, key=lambda run: (run.created, run.path))


def index_path() -> Path:
    """Where the summaries are kept."""
    return cache_root() / "runs.json"


def _manifests(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(".") and name not in _INSIDE_A_RUN)
        path = Path(folder) / "manifest.json"
        if "manifest.json" in files and _is_ours(path):
            yield path


def _is_ours(path: Path) -> bool:
    """Whether it looks like a manifest of expunge: others use that file name too."""
    with path.open("rb") as file:
        start = file.read(64)
    return start.lstrip()[:1] == b"{" and b'"schema"' in start


def _summary(path: Path) -> RunSummary:
    try:
        manifest = load_manifest(path)
    except ExpungeError as error:
        return RunSummary(str(path.parent), "?", "unreadable", "", problem=error.message)
    return RunSummary(
        path=str(path.parent),
        kind=manifest.kind,
        status=manifest.status,
        created=manifest.created,
        method=_method(manifest),
        model=manifest.model.name if manifest.model else None,
        steps=manifest.steps,
        total_steps=manifest.total_steps,
    )


def _method(manifest: Manifest) -> str | None:
    method = manifest.resolved.get("method")
    return method.get("name") if isinstance(method, dict) else None


def _read_index() -> dict[str, dict[str, Any]]:
    try:
        raw = json.loads(index_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, UsageError):
        return {}
    runs = raw.get("runs") if isinstance(raw, dict) and raw.get("index") == _INDEX else None
    return runs if isinstance(runs, dict) else {}


def _write_index(runs: dict[str, dict[str, Any]]) -> None:
    kept = {path: entry for path, entry in runs.items() if Path(path).exists()}
    try:
        atomic_write_json(index_path(), {"index": _INDEX, "runs": kept})
    except ExpungeError:
        # A cache that cannot be written (a read-only home, a full disk) costs time at the next look, nothing else.
        return
