"""What every test shares: one torch thread, where the shared material lies, and how much was skipped without it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch

# Tiny models are fastest on one thread, and the suite already runs in several processes.
torch.set_num_threads(1)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

MISSING = "no shared folder"


def shared_folder() -> Path:
    """`EXPUNGE_SHARED`, else `../shared` beside the repository."""
    return Path(os.environ.get("EXPUNGE_SHARED") or Path(__file__).parents[2] / "shared")


def _existing_folder(name: str) -> Path:
    if not Path(name).is_dir():
        raise argparse.ArgumentTypeError(f"no folder {name}")
    return Path(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--conformance",
        metavar="DIR",
        type=_existing_folder,
        default=shared_folder() / "conformance",
        help="folder with losses.json, metrics.json and tofu_logs.json (default: the shared folder's)",
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models, data and conformance files; skips where it is absent."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"{MISSING} at {folder}; set EXPUNGE_SHARED")
    return folder


@pytest.fixture(scope="session")
def conformance_dir(pytestconfig: pytest.Config) -> Path:
    """The folder of recorded values, from `--conformance`; skips where it is absent."""
    folder: Path = pytestconfig.getoption("--conformance")
    if not folder.is_dir():
        pytest.skip(f"{MISSING} with recorded values at {folder}; set EXPUNGE_SHARED or --conformance")
    return folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if count := sum(MISSING in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"{count} tests were skipped because there is {MISSING}", yellow=True)
