"""One process at a time in a folder: a lock that the system takes back however its holder ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from expunge.errors import UsageError
from expunge.runs.rank import rank
from expunge.runs.store import stops_when_full

NAME = ".lock"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder` while the block runs; makes it if it does not exist.

    Nothing is left behind: not the lock, nor the folder if it was made here and nothing was put into it. Where the
    system has no such locks (Windows, some network disks) nobody is kept out. The processes of one distributed run
    count as one.

    Raises:
        UsageError: another process is in it, or the folder cannot be made.
    """
    if sys.platform == "win32" or rank() != 0:
        yield
        return
    made = not folder.exists()
    with stops_when_full(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked(folder / NAME)
    try:
        yield
    finally:
        # Removed while it is still held: whoever opened it meanwhile sees that it is another file, and tries again.
        with contextlib.suppress(OSError):
            (folder / NAME).unlink()
        handle.close()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def mark(folder: Path) -> None:
    """Say that `folder`, inside `exclusive`, holds nothing of worth to others once its lock is free."""
    (folder / NAME).write_bytes(b"of no worth without its process\n")


def is_abandoned(folder: Path) -> bool:
    """Whether the process that marked `folder` was killed in it; False where nobody can tell."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        with (folder / NAME).open("rb+") as handle:
            # It is empty while a process is about to take it, whom a try must not stop.
            if not handle.read(1):
                return False
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locked(path: Path) -> IO[bytes]:
    import fcntl

    while True:
        handle = path.open("ab")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise UsageError(
                f"another process is working in {path.parent}", hint="wait until it has ended, or choose another folder"
            ) from None
        except OSError:
            # A disk without locks.
            return handle
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
                return handle
        handle.close()
