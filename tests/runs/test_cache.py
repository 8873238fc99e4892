"""Entries are whole or absent, and can be listed and removed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from expunge.errors import StoppedError, UsageError
from expunge.runs.cache import Entry, cache_root, entries, open_entry, remove, remove_all


def fill(kind: str, key: str, text: str = "12345") -> Entry:
    entry = open_entry(kind, key)
    entry.write(lambda folder: (folder / "data").write_text(text), {"description": f"{kind} of a test"})
    return entry


def test_an_entry_is_written_and_read(cache: Path) -> None:
    assert cache_root() == cache
    assert not open_entry("reference", "abc").complete
    entry = fill("reference", "abc")
    assert entry.complete
    assert entry.meta["description"] == "reference of a test"
    assert (entry.path / "data").read_text() == "12345"
    info = entries()[0]
    assert (info.name, info.description) == ("reference/abc", "reference of a test")
    assert info.size_bytes > 5


def test_a_failed_build_leaves_nothing(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(StoppedError):
        open_entry("reference", "abc").write(build, {})
    assert not open_entry("reference", "abc").complete
    assert list((cache / "reference").iterdir()) == []


def test_the_first_of_two_builders_stays() -> None:
    fill("budget", "k", "first")
    fill("budget", "k", "second")
    assert (open_entry("budget", "k").path / "data").read_text() == "first"


def test_an_incomplete_folder_is_replaced(cache: Path) -> None:
    (cache / "budget" / "k").mkdir(parents=True)
    assert entries()[0].description == "incomplete"
    assert fill("budget", "k").complete


def test_entries_are_removed_by_the_beginning_of_a_key() -> None:
    for kind, key in (("reference", "aab"), ("reference", "abb"), ("budget", "bbb")):
        fill(kind, key)
    assert [info.name for info in remove("aa", "budget/b")] == ["reference/aab", "budget/bbb"]
    with pytest.raises(UsageError, match="'zz'"):
        remove("abb", "zz")
    assert [info.name for info in entries()] == ["reference/abb"]
    assert len(remove_all()) == 1
    assert entries() == []


def test_an_empty_name_removes_nothing() -> None:
    fill("reference", "aab")
    with pytest.raises(UsageError):
        remove("")
    assert len(entries()) == 1
