"""Writing a run so that a kill or a full disk at any moment leaves the last good state readable."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.errors import DataError, StoppedError, UsageError

Event = dict[str, Any]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Let the block write a temporary file beside `path`, then put it in `path`'s place in one step.

    Readers see the old file or the new one, never a part. If the block raises, the old file stays as it was and the
    temporary one is removed.

    Yields:
        The temporary path to write to.

    Raises:
        StoppedError: the disk or the quota is full; what was there before is untouched.
        UsageError: it must not be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with stops_when_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, on disk before it returns.

    Raises:
        StoppedError: the disk is full; the old file is untouched.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8 text."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: Any) -> None:
    """`atomic_write_text` of indented JSON; NaN and infinities are refused, since no JSON reader has to take them.

    Raises:
        ValueError: `value` holds a NaN or an infinity.
        StoppedError: the disk is full; the old file is untouched.
    """
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_event(path: Path, event: Mapping[str, Any]) -> None:
    """Add one line to an append-only JSON Lines file and flush it, so that a kill loses no finished step.

    Raises:
        ValueError: the event holds a NaN or an infinity.
        StoppedError: the disk is full; the lines before are readable.
    """
    line = json.dumps(event, ensure_ascii=False, allow_nan=False)
    with stops_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            # A killed writer may have left half a line: start a new one, so that only that half is lost.
            prefix = b"" if _ends_in_newline(path) else b"\n"
            file.write(prefix + line.encode() + b"\n")
            file.flush()


def read_events(path: Path) -> list[Event]:
    """The events of a run as they hold now, oldest first; empty where nothing was written yet.

    A resumed run repeats steps: of every step the last record is kept, and `{"event": "resumed", "step": s}` takes
    back what was recorded beyond step s. A line cut short by a kill is dropped.

    Raises:
        DataError: a line other than a cut one is not JSON.
    """
    if not path.exists():
        return []
    kept: dict[Any, Event] = {}
    for number, event in enumerate(_lines(path)):
        step = event.get("step")
        if event.get("event") == "resumed" and isinstance(step, int):
            kept = {key: old for key, old in kept.items() if not _beyond(old, step)}
        key = (event.get("event"), step) if step is not None else number
        kept.pop(key, None)
        kept[key] = event
    return list(kept.values())


def _beyond(event: Event, step: int) -> bool:
    own = event.get("step")
    return event.get("event") != "resumed" and isinstance(own, int) and own > step


def _lines(path: Path) -> Iterator[Event]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            if _is_cut(line):
                continue
            raise DataError(
                f"{path}: line {number} is not JSON ({error})", hint="remove that line; the others are independent"
            ) from error
        if isinstance(event, dict):
            yield event


def _is_cut(line: bytes) -> bool:
    """Whether the line is the beginning of an event whose end was never written."""
    return line.startswith(b"{") and not line.rstrip().endswith(b"}")


@contextmanager
def stops_when_full(path: Path) -> Iterator[None]:
    """Turn what the system says to writing inside the block into an error a person can act on.

    Raises:
        StoppedError: the disk or the quota is full, or the file would be larger than files may be there.
        UsageError: the place cannot be written to: read-only, not ours, or not a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NOT_ALLOWED:
            raise UsageError(
                f"{path} cannot be written: {error.strerror}",
                hint="choose a folder that you may write to (output_dir, --out, or EXPUNGE_CACHE for what is cached)",
            ) from error
        if error.errno not in _NO_SPACE:
            raise
        raise StoppedError(
            f"no space left on the disk while writing {path}",
            hint="free some space (`expunge cache ls`, `expunge cache rm`), then repeat the same command to resume",
        ) from error


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _sync(path: Path) -> None:
    """Force `path` to disk; a folder too, where the system can (it is what makes a rename durable)."""
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_files(folder: Path) -> None:
    """Force the files of a folder to disk, before a rename makes them count."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def leftovers(folder: Path, name: str = "*") -> list[Path]:
    """Temporary files that killed writers of `name` left in a folder; they may hold what the whole file would have."""
    return sorted(folder.glob(f".{name}.*.tmp"))
