"""One set of made-up runs for the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import Made, make_runs

from expunge.report.write import write_report


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def page(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(made.unlearned, out=tmp_path_factory.mktemp("page") / "report.html").path
