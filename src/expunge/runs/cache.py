"""What is kept between runs: folders `<kind>/<key>/`, complete once their meta.json is there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import UsageError
from expunge.runs.lock import NAME as LOCK
from expunge.runs.lock import exclusive, is_abandoned, mark
from expunge.runs.manifest import now
from expunge.runs.store import atomic_write_json, stops_when_full, sync_files


class CacheInfo(NamedTuple):
    """One entry, for listing."""

    name: str
    """`<kind>/<key>`."""
    kind: str
    key: str
    size_bytes: int
    created: str
    """UTC, ISO 8601; empty for an entry whose writing was cut short."""
    description: str
    path: Path


@dataclass(frozen=True)
class Entry:
    """One place in the cache, filled or not."""

    kind: str
    key: str
    path: Path

    @property
    def name(self) -> str:
        """`<kind>/<key>`, what `manifest.caches` and `expunge cache rm` name."""
        return f"{self.kind}/{self.key}"

    @property
    def complete(self) -> bool:
        """Whether it was written to the end and still says what it is."""
        return bool(self.meta)

    @property
    def meta(self) -> dict[str, Any]:
        """What `write` was told about it; empty where that is missing or damaged."""
        try:
            meta = json.loads((self.path / "meta.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return meta if isinstance(meta, dict) else {}

    def write(self, build: Callable[[Path], object], meta: Mapping[str, Any]) -> None:
        """Fill the entry in one step: a reader or a kill sees all of it or nothing.

        Two processes that build the same entry both succeed; the first one in place stays, since a key says all that
        its content depends on.

        Args:
            build: writes its files into the (temporary) folder it is given.
            meta: kept beside them; `description` is what listings show.

        Raises:
            StoppedError: the disk is full; nothing is left behind.
            UsageError: the cache cannot be written to.
        """
        with self.draft() as folder:
            with stops_when_full(self.path):
                build(folder)
            self.finish(folder, meta)

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A temporary folder to write the entry's files to; `finish` puts it in place, else the block's end removes it.

        What killed writers of this entry left behind is removed first.

        Raises:
            StoppedError: the disk is full.
            UsageError: the cache cannot be written to.
        """
        prefix = f".{self.key[:16]}."
        with ExitStack() as stack:
            with stops_when_full(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                for left in self.path.parent.glob(f"{prefix}*"):
                    if is_abandoned(left):
                        shutil.rmtree(left, ignore_errors=True)
                folder = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=prefix))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(exclusive(folder))
            with stops_when_full(self.path):
                mark(folder)
            yield folder

    def finish(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Make the entry of a draft's files, once they are all written; see `write`.

        Raises:
            StoppedError: the disk is full; the entry is as it was.
        """
        with stops_when_full(self.path):
            sync_files(folder)
            atomic_write_json(folder / "meta.json", {"kind": self.kind, "created": now(), **meta})
            (folder / LOCK).unlink(missing_ok=True)
            self._put(folder)

    def _put(self, folder: Path) -> None:
        if self.path.exists() and not self.complete:
            shutil.rmtree(self.path)
        try:
            folder.rename(self.path)
        except OSError:
            if not self.complete:
                raise


def cache_root() -> Path:
    """`EXPUNGE_CACHE`, else `~/.cache/expunge`; absolute.

    Raises:
        UsageError: neither is known (no HOME, and the system does not know this user).
    """
    named = os.environ.get("EXPUNGE_CACHE") or "~/.cache/expunge"
    try:
        return Path(named).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(
            f"there is no home directory for the cache {named}", hint="set EXPUNGE_CACHE to a folder"
        ) from error


def open_entry(kind: str, key: str) -> Entry:
    """The place for `key` (a content digest) among the entries of `kind`; it need not exist."""
    return Entry(kind, key, cache_root() / kind / key)


def entries() -> list[CacheInfo]:
    """Everything in the cache, by kind and age."""
    found = [
        _info(folder) for folder in cache_root().glob("*/*") if folder.is_dir() and not folder.name.startswith(".")
    ]
    return sorted(found, key=lambda info: (info.kind, info.created, info.key))


def remove(*names: str) -> list[CacheInfo]:
    """Remove entries by key, `<kind>/<key>`, or the beginning of either; returns what was removed.

    Raises:
        UsageError: a name that fits no entry; nothing was removed.
    """
    known = entries()
    chosen: dict[str, CacheInfo] = {}
    for name in names:
        fitting = [info for info in known if info.name.startswith(name) or info.key.startswith(name)]
        if not name or not fitting:
            raise UsageError(f"no cache entry begins with {name!r}", hint="list them with `expunge cache ls`")
        chosen.update({info.name: info for info in fitting})
    for info in chosen.values():
        shutil.rmtree(info.path)
    return list(chosen.values())


def remove_all() -> list[CacheInfo]:
    """Empty the cache of every kind, with what killed writers left half; returns the entries removed."""
    known = entries()
    for folder in (*(info.path for info in known), *cache_root().glob("*/.*")):
        shutil.rmtree(folder, ignore_errors=True)
    return known


def _info(folder: Path) -> CacheInfo:
    entry = Entry(folder.parent.name, folder.name, folder)
    meta = entry.meta
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    description = str(meta.get("description", "" if meta else "incomplete"))
    return CacheInfo(entry.name, entry.kind, entry.key, size, str(meta.get("created", "")), description, folder)
