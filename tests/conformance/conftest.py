"""Recorded losses as test parameters, from the folder of `--conformance`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.testing.conformance import load_loss_cases


@pytest.fixture(scope="session")
def read_recorded(conformance_dir: Path) -> Callable[[str], Any]:
    """Reads a file of the folder, which need not hold every kind of recorded value; what it lacks is skipped."""

    def read(name: str) -> Any:
        path = conformance_dir / name
        if not path.is_file():
            pytest.skip(f"no {name} in {conformance_dir}")
        return json.loads(path.read_text())

    return read


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `loss_case`; an absent folder is a skip that says so."""
    if "loss_case" not in metafunc.fixturenames:
        return
    folder: Path = metafunc.config.getoption("--conformance")
    if not (folder / "losses.json").is_file():
        reason = f"no shared folder with losses.json at {folder}; set EXPUNGE_SHARED or --conformance"
        metafunc.parametrize("loss_case", [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))])
        return
    metafunc.parametrize("loss_case", [pytest.param(case, id=case.id) for case in load_loss_cases(folder)])
