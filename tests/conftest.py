"""What every test shares: one torch thread, and where the shared material lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def shared_folder() -> Path:
    """`EXPUNGE_SHARED`, else `../shared` beside the repository."""
    return Path(os.environ.get("EXPUNGE_SHARED") or Path(__file__).parents[2] / "shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--conformance",
        metavar="DIR",
        type=Path,
        default=shared_folder() / "conformance",
        help="folder with losses.json, metrics.json and tofu_logs.json (default: the shared folder's)",
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models, data and conformance files; skips where it is absent."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; set EXPUNGE_SHARED")
    return folder
