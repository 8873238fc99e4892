"""Caches that cannot be written, are damaged, have no place, or are filled by several processes at once."""

from __future__ import annotations

import pwd
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hostile_process import Fault, Processes
from hostile_result import DATA, INTERRUPTED, USAGE, Invoke, assert_refused, assert_same_run, manifest
from hostile_world import World
from test_hostile_run import damaged, read_only

from expunge.runs import manifest as manifests
from expunge.runs.cache import Entry
from expunge.runs.store import read_events
from expunge.train.engine import Engine

BUILT = r"reference tables: forget seq_logp 48 B built in \d+\.\d s"
REUSED = "reference tables: forget seq_logp 48 B reused"
FINISH = "expunge.runs.cache.Entry.finish"


def tables(folder: Path) -> list[Path]:
    """Complete tables in a folder of them."""
    return sorted(path.parent for path in folder.glob("*/meta.json"))


def drafts(world: World) -> list[Path]:
    return list((world / "cache").glob("*/.*"))


def referenced(run: Path) -> list[Mapping[str, Any]]:
    """What the log says of the forget table, once per start of the run."""
    return [event["forget"] for event in read_events(run / "events.jsonl") if event["event"] == "references"]


def interrupt(world: World, invoke: Invoke, step: int = 5) -> None:
    """Run the recipe until after some step."""
    take = Engine.train_step

    def until(engine: Engine, *args: Any) -> Any:
        if engine.step == step:
            raise KeyboardInterrupt
        return take(engine, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "train_step", until)
        assert invoke("unlearn", world.recipe()).code == INTERRUPTED


def test_the_next_run_reuses_the_table_and_says_so(world: World, invoke: Invoke) -> None:
    assert re.search(BUILT, invoke("unlearn", world.recipe(train__max_steps=1)).err)
    other = world.recipe(train__max_steps=1, seed=4, output_dir=str(world / "other"))
    assert REUSED in invoke("unlearn", other).err
    (key,) = tables(world / "cache" / "reference")
    for run, cached in ((world.run, False), (world / "other", True)):
        assert manifest(run)["caches"] == [f"reference/{key.name}"]
        (said,) = referenced(run)
        assert (said["bytes"], said["cached"], said["kinds"]) == (48, cached, ["seq_logp"])


def test_a_cache_that_may_only_be_read(world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("unlearn", world.recipe(train__max_steps=1)).code == 0
    read_only(monkeypatch, world / "cache")
    other = world.recipe(train__max_steps=1, train__token_budget=None, output_dir=str(world / "other"))
    assert REUSED in invoke("unlearn", other).err
    assert not (world / "other" / "tables").exists()


def test_a_table_that_cannot_be_cached_is_kept_with_the_run(
    world: World, invoke: Invoke, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_only(monkeypatch, world / "cache")
    interrupt(world, invoke)
    result = invoke("unlearn", world.recipe())
    assert result.code == 0
    assert (REUSED in result.err, "warning" in result.err) == (True, False)
    assert [said["cached"] for said in referenced(world.run)] == [False, True]
    assert len(tables(world.run / "tables")) == 1
    assert_same_run(world.run, uninterrupted)
    assert invoke("purge", world.run).code == 0
    assert not (world.run / "tables").exists()


def test_no_home(world: World, invoke: Invoke, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("EXPUNGE_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert_refused(invoke("cache", "ls"), USAGE, "no home directory for the cache", "EXPUNGE_CACHE")
    result = invoke("unlearn", world.recipe())
    assert result.code == 0
    assert "warning: there is no home directory" in result.err
    assert_same_run(world.run, uninterrupted)
    assert invoke("runs", world.folder).code == 0


@pytest.mark.parametrize("name", ["HOME", "EXPUNGE_CACHE"])
def test_a_home_relative_to_where_one_is(
    world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("EXPUNGE_CACHE")
    monkeypatch.setenv(name, "here")
    assert invoke("unlearn", world.recipe(train__max_steps=1)).code == 0
    cache = world / "here" if name == "EXPUNGE_CACHE" else world / "here" / ".cache" / "expunge"
    assert len(tables(cache / "reference")) == 1


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("seq_logp.npy", lambda path: damaged(path, 150)),
        ("seq_logp.npy", flipped),
        ("seq_logp.npy", Path.unlink),
        ("offsets.npy", flipped),
        ("offsets.npy", lambda path: path.write_bytes(b"")),
    ],
)
def test_a_damaged_table_is_named(world: World, invoke: Invoke, name: str, damage: Callable[[Path], None]) -> None:
    recipe = world.recipe(train__max_steps=1)
    assert invoke("unlearn", recipe).code == 0
    (table,) = tables(world / "cache" / "reference")
    damage(table / name)
    result = invoke("unlearn", recipe, "--overwrite")
    assert_refused(result, DATA, f"the cached table {table} is damaged", f"expunge cache rm {table.name[:12]}`")
    assert invoke("cache", "rm", table.name[:12]).code == 0
    assert invoke("unlearn", recipe).code == 0


def test_a_table_that_no_longer_says_what_it_is_is_built_again(world: World, invoke: Invoke) -> None:
    recipe = world.recipe(train__max_steps=1)
    assert invoke("unlearn", recipe).code == 0
    (table,) = tables(world / "cache" / "reference")
    damaged(table / "meta.json", 20)
    assert re.search(BUILT, invoke("unlearn", recipe, "--overwrite").err)


def test_two_processes_build_the_same_table_at_once(
    world: World, processes: Processes, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = world.recipe("ours.yaml", train__max_steps=1, output_dir=str(world / "ours"))
    theirs = world.recipe("theirs.yaml", train__max_steps=1, output_dir=str(world / "theirs"))
    finish, met = Entry.finish, []

    def meanwhile(entry: Entry, folder: Path, meta: Mapping[str, Any]) -> None:
        """Another process comes, builds the same and ends, when everything but the last step is done here."""
        met.append(processes("unlearn", theirs))
        assert folder.is_dir(), "what is being written is nobody else's to remove"
        finish(entry, folder, meta)

    monkeypatch.setattr(Entry, "finish", meanwhile)
    result = invoke("unlearn", ours)
    assert (result.code, met[0].code) == (0, 0)
    assert re.search(BUILT, result.err)
    assert re.search(BUILT, met[0].err)
    assert len(tables(world / "cache" / "reference")) == 1
    assert drafts(world) == []
    assert_same_run(world / "ours", world / "theirs")


def test_what_a_killed_builder_left_is_removed(
    world: World, processes: Processes, invoke: Invoke, uninterrupted: Path
) -> None:
    assert processes("unlearn", world.recipe(), fault=Fault(at=FINISH)).code == -signal.SIGKILL
    assert len(drafts(world)) == 1
    assert invoke("unlearn", world.recipe()).code == 0
    assert drafts(world) == []
    assert_same_run(world.run, uninterrupted)


def test_clocks_that_jump_back_and_forth(
    world: World, invoke: Invoke, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1_000_000))

    class Jumping:
        """A day on, two days back, three days on: no two readings are in order."""

        @staticmethod
        def now(zone: Any) -> datetime:
            call = next(calls)
            return datetime(2001, 1, 1, tzinfo=UTC) + timedelta(days=call * (-1) ** call)

    monkeypatch.setattr(manifests, "datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: float(Jumping.now(UTC).timestamp()))
    interrupt(world, invoke)
    shutil.rmtree(world / "cache")
    assert invoke("unlearn", world.recipe()).code == 0
    assert_same_run(world.run, uninterrupted)
    assert all(event.get("eta_s", 0) >= 0 for event in read_events(world.run / "events.jsonl"))
    assert invoke("cache", "ls").code == 0
    assert invoke("runs", world.folder).code == 0
