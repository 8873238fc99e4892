"""Recorded losses as test parameters, from the folder of `--conformance`."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.testing.conformance import load_loss_cases


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
