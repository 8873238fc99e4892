"""Who is at which trial: one process for each, and a way to see that a process is gone.

A claim is a folder `SWEEP/claims/<name>` that its process keeps locked. The system takes the lock back however the
process ends, so on one machine (and on network disks whose locks reach other machines) a free lock means that nobody
works there. For disks without such locks the folder says which process of which machine has it, and that process keeps
counting.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import UsageError
from expunge.runs.lock import exclusive

SECONDS_BETWEEN_BEATS = 10.0
SECONDS_TO_GIVE_UP = 120.0
"""A process of another machine that has not counted for so long is taken for dead."""
_OWNER, _BEATS = "owner.json", "beats"


class Owner(NamedTuple):
    """The process behind a claim."""

    host: str
    pid: int
    started: float
    """When the process began, by its own system's clock: process ids are given out again."""

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        import psutil

        return cls(platform.node(), os.getpid(), psutil.Process().create_time())

    @property
    def lives(self) -> bool:
        """Whether a process of this machine still runs."""
        import psutil

        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        except psutil.Error:
            return False


@contextmanager
def mutex(root: Path) -> Iterator[None]:
    """One process at a time, of any machine, decides who does what; others wait.

    Made of a file that only one can create, which network disks can do too; one that a killed process left is
    removed after half a minute.
    """
    from optuna.storages.journal import JournalFileOpenLock

    lock = JournalFileOpenLock(str(root / "claims"))
    lock.acquire()
    try:
        yield
    finally:
        # Removed by another process that took this one for dead: it was only slow, and has done its part.
        with contextlib.suppress(RuntimeError):
            lock.release()


class Claims:
    """The claims of one sweep. Everything here is called under `mutex`, but for what a claim does when it ends.

    Args:
        root: the sweep's folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "claims"
        self._seen: dict[str, tuple[str, float]] = {}

    def held(self, name: str) -> bool:
        """Whether a process works under this name, as far as can be known now."""
        folder = self.folder / name
        if not folder.exists():
            return False
        try:
            with exclusive(folder):
                owner = _owner(folder)
        except UsageError:
            return True
        if owner is None:
            return False
        return owner.lives if owner.host == platform.node() else self._beats(folder)

    def orphaned(self, name: str) -> bool:
        """Whether a process that had the claim ended without giving it back; asked of one that is not held."""
        return _owner(self.folder / name) is not None

    @contextmanager
    def take(self, name: str) -> Iterator[ExitStack]:
        """Claim a name that is not held; inside the block the caller may keep the claim by moving the stack's content.

        `with mutex(root), claims.take(name) as claim: kept = claim.pop_all()`, then `kept.close()` gives it back.

        Raises:
            UsageError: another process has it.
        """
        folder = self.folder / name
        with ExitStack() as stack:
            stack.callback(_remove, folder)
            stack.enter_context(exclusive(folder))
            (folder / _OWNER).write_text(json.dumps(Owner.me()._asdict()), encoding="utf-8")
            stack.callback(_forget, folder)
            stack.enter_context(_beating(folder))
            yield stack

    def _beats(self, folder: Path) -> bool:
        """Whether a process elsewhere has counted on since we last saw its number; our clock alone is asked."""
        count, now = _read(folder / _BEATS), time.monotonic()
        before, since = self._seen.get(folder.name, (None, now))
        if count != before:
            self._seen[folder.name] = (count, now)
            return True
        return now - since < SECONDS_TO_GIVE_UP


@contextmanager
def _beating(folder: Path) -> Iterator[None]:
    done = threading.Event()

    def beat() -> None:
        count = 0
        while not done.is_set():
            # A full disk or a folder that is gone is for the work itself to find.
            with contextlib.suppress(OSError):
                (folder / _BEATS).write_text(str(count), encoding="utf-8")
            count += 1
            done.wait(SECONDS_BETWEEN_BEATS)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _forget(folder: Path) -> None:
    for name in (_OWNER, _BEATS):
        (folder / name).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    # Somebody may be looking into it.
    with contextlib.suppress(OSError):
        folder.rmdir()


def _owner(folder: Path) -> Owner | None:
    try:
        found: dict[str, Any] = json.loads(_read(folder / _OWNER))
        return Owner(**found)
    except (ValueError, TypeError):
        # Killed while it was written, so that nothing had begun.
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
