"""Tables built by two processes together: equal to one process's, and no process waits for one that failed."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import encoded

from expunge.data.collate import collate
from expunge.errors import ExpungeError
from expunge.models import reference_build
from expunge.models.fingerprint import model_digest
from expunge.models.processes import join, processes
from expunge.models.reference import Reference
from expunge.models.reference_table import reference_table
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.slow

KINDS = (
    Reference("seq_logp"),
    Reference("token_logp"),
    Reference("eua_margin", ratio=0.2),
    Reference("hidden"),
    Reference("block", layer=1),
)
Found = dict[str, Any]


def ask(folder: Path, cache: str, *, seed: int = 1) -> Found:
    """What a table says on this process."""
    os.environ["EXPUNGE_CACHE"] = str(folder / cache)
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), seed=seed)
    dataset = encoded(tokenizer)["retain"]
    events: list[dict[str, Any]] = []
    found = reference_table(
        model,
        dataset,
        KINDS,
        model_key=model_digest(model),
        pad_id=0,
        positions="predict",
        token_budget=128,
        progress=events.append,
        elsewhere=folder / "run" / "tables" if cache == "read-only" else None,
    )
    values = found.values(collate(dataset, [16, 0, 3], pad_id=0))
    assert values.token_logp is not None
    return {
        "arrays": {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in found.arrays.items()},
        "some": values.token_logp.tolist(),
        "cached": found.cached,
        "folder": str(Path(found.arrays["hidden"].filename).parents[1].relative_to(folder)),  # type: ignore[attr-defined]
        "asked": max((event["total"] for event in events if event["event"] == "phase"), default=0),
        "drafts": len(list((folder / cache).glob("*/.*"))),
    }


def refused(work: Callable[[], Found]) -> Found:
    try:
        return work()
    except ExpungeError as error:
        return {"error": type(error).__name__, "text": str(error)}


def full_disk_on_one(folder: Path) -> Found:
    write = reference_build._Sink.write

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if not processes().main:
        reference_build._Sink.write = fail  # type: ignore[method-assign]
    try:
        return refused(lambda: ask(folder, "full"))
    finally:
        reference_build._Sink.write = write  # type: ignore[method-assign]


def another_folder_of_the_same_name(folder: Path, cache: str) -> Found:
    """One process looks into a folder where the other one's files are not."""
    exists = Path.exists
    if not processes().main:
        Path.exists = lambda path, **keys: exists(path, **keys) and "tables-of" not in str(path)  # type: ignore[method-assign]
    try:
        return refused(lambda: ask(folder, cache))
    finally:
        Path.exists = exists  # type: ignore[method-assign]


def damaged(folder: Path) -> Found:
    if processes().main:
        path = next((folder / "shared").glob("reference/*/hidden.npy"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    processes().wait()
    return refused(lambda: ask(folder, "shared"))


def read_only(folder: Path) -> Found:
    make = Path.mkdir

    def mkdir(path: Path, *args: Any, **keys: Any) -> None:
        if "read-only" in path.parts:
            raise OSError(errno.EROFS, "Read-only file system")
        make(path, *args, **keys)

    Path.mkdir = mkdir  # type: ignore[assignment, method-assign]
    try:
        return refused(lambda: ask(folder, "read-only"))
    finally:
        Path.mkdir = make  # type: ignore[method-assign]


def scenes(folder: Path) -> dict[str, Found]:
    """Everything two processes are asked, in order."""
    return {
        "built": ask(folder, "shared"),
        "reused": ask(folder, "shared"),
        "full": full_disk_on_one(folder),
        "after": ask(folder, "full"),
        "unseen": another_folder_of_the_same_name(folder, "tables-of-one"),
        "damaged": damaged(folder),
        "read-only": read_only(folder),
    }


def work(folder: Path, environment: dict[str, str], path: list[str]) -> None:
    os.environ.update(environment, LOCAL_RANK=environment["RANK"])
    sys.path[:] = path
    torch.set_num_threads(1)
    where = join(torch.device("cpu"))
    (folder / f"{where.rank}.json").write_text(json.dumps(scenes(folder)))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    workers = [
        context.Process(target=work, args=(folder, {**environment, "RANK": str(rank)}, sys.path)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Found]:
    """What one process finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", "")
        yield ask(tmp_path, "alone")


def test_two_processes_build_what_one_builds(two: list[dict[str, Found]], one: Found) -> None:
    assert two[0]["built"]["asked"] + two[1]["built"]["asked"] == one["asked"] == 17, "each asks about its share"
    for found in two:
        # Rows are packed as for one process, so not even rounding differs.
        assert found["built"]["arrays"] == one["arrays"]
        assert found["built"]["some"] == one["some"]
        assert (found["built"]["cached"], found["reused"]["cached"]) == (False, True)
        assert found["reused"]["arrays"] == one["arrays"]
        assert found["built"]["drafts"] == 0


def test_a_full_disk_on_one_stops_both(two: list[dict[str, Found]], one: Found) -> None:
    for found in two:
        assert found["full"]["error"] == "StoppedError"
        assert "no space left" in found["full"]["text"]
        assert found["after"]["arrays"] == one["arrays"]
        assert found["after"]["cached"] is False
        assert found["after"]["drafts"] == 0
    assert two[0]["full"] == two[1]["full"]


def test_folders_that_are_not_shared_are_named(two: list[dict[str, Found]]) -> None:
    for found in two:
        assert found["unseen"]["error"] == "UsageError"
        assert "process 1 of 2" in found["unseen"]["text"]
        assert "point EXPUNGE_CACHE to a folder that all machines share" in found["unseen"]["text"]


def test_damage_is_told_once_to_all(two: list[dict[str, Found]]) -> None:
    for found in two:
        assert found["damaged"]["error"] == "DataError"
        assert "hidden.npy is not what was written" in found["damaged"]["text"]
        assert "expunge cache rm" in found["damaged"]["text"]


def test_a_table_that_cannot_be_cached_is_kept_with_the_run(two: list[dict[str, Found]], one: Found) -> None:
    for found in two:
        assert found["read-only"]["arrays"] == one["arrays"]
        assert found["read-only"]["folder"] == "run/tables"
