"""Fixtures over the small world."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_world import build_engine, encoded

from expunge.data.encode import Dataset
from expunge.testing.tiny import tiny_tokenizer
from expunge.train.engine import Engine


@pytest.fixture(autouse=True)
def operations_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan takes seconds to carry out every operation of a step; `test_stopwatch.py` alone waits for that."""
    monkeypatch.setattr("expunge.train.planning.stopwatch._seconds", lambda call, shelf, pace: 1e-3)
    monkeypatch.setattr("expunge.train.planning.stopwatch._pace", lambda device: None)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def datasets(tokenizer: Any) -> dict[str, Dataset]:
    return encoded(tokenizer)


@pytest.fixture
def make_engine(
    tokenizer: Any, datasets: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Engine]:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    return partial(build_engine, tokenizer, datasets, folder=tmp_path / "provision")
