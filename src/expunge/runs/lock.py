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
