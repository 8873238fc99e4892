"""Recorded losses as test parameters, from the folder of `--conformance`."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.testing.conformance import ABSENT, load_loss_cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `loss_case`; absent methods and an absent folder are skips that say so."""
    if "loss_case" not in metafunc.fixturenames:
        return
    folder: Path = metafunc.config.getoption("--conformance")
    if not (folder / "losses.json").is_file():
        reason = f"no shared folder with losses.json at {folder}; set EXPUNGE_SHARED or --conformance"
        metafunc.parametrize("loss_case", [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))])
        return
    absent = pytest.mark.skip(reason="method not in expunge yet")
    metafunc.parametrize(
        "loss_case",
        [
            pytest.param(case, id=case.id, marks=[absent] if case.method in ABSENT else [])
            for case in load_loss_cases(folder)
        ],
    )
