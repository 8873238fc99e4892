"""Run command lines in this process, with a cache of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from invocation import Invoke, Result

from expunge.cli.main import main


@pytest.fixture
def invoke(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Invoke:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))

    def run(*argv: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        return Result(code, *capsys.readouterr())

    return run
