"""Who may import whom, and what must work without torch."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import expunge

SRC = Path(expunge.__file__).parent

ORDER = (
    *("errors", "catalog", "config"),
    *("losses", "metrics", "runs"),
    "data",
    "models",
    *("guards", "edits", "methods"),
    "evals",
    "train",
    *("attacks", "diagnose", "report"),
    "serve",
    "integrations",
    "api",
    "demo",
    "bench",
    "sweep",
    "cli",
)
"""From the ground up: a package imports only from its left (and itself)."""

FREE_OF_TORCH = (
    *("expunge.errors", "expunge.catalog", "expunge.config", "expunge.metrics", "expunge.runs", "expunge.report"),
    *("expunge.data", "expunge.evals.suite", "expunge.evals.suites", "expunge.evals.recompute"),
    "expunge.evals.logs",
    *("expunge.api", "expunge.demo", "expunge.bench", "expunge.sweep", "expunge.cli"),
)
NEEDS_TORCH = {"expunge.data.collate"}


class Import(NamedTuple):
    """One import of our own code."""

    module: str
    target: str
    line: int


def modules() -> list[str]:
    return sorted(
        info.name for info in pkgutil.walk_packages([str(SRC)], "expunge.") if not info.name.endswith("__main__")
    )


def source(module: str) -> Path:
    path = SRC.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def own_imports(module: str) -> Iterator[Import]:
    """Every import of expunge, at module level or inside a function."""
    for node in ast.walk(ast.parse(source(module).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            root = node.module == "expunge"
            names = [f"expunge.{alias.name}" if root else str(node.module) for alias in node.names]
        yield from (Import(module, name, node.lineno) for name in names if name.split(".")[0] == "expunge")


def package(module: str) -> str:
    return [*module.split("."), ""][1]


def forbidden(found: Import) -> bool:
    ours, theirs = package(found.module), package(found.target)
    if ours == theirs or theirs not in (*ORDER, "testing") or ours == "testing":
        return False
    return theirs == "testing" or ORDER.index(theirs) > ORDER.index(ours)


def test_every_package_has_a_place() -> None:
    packages = {package(module) for module in modules()} - {"testing"}
    assert packages <= set(ORDER)


def test_imports_go_to_the_left() -> None:
    bad = [found for module in modules() for found in own_imports(module) if forbidden(found)]
    assert not bad, "\n".join(f"{found.module}:{found.line} imports {found.target}" for found in bad)


@pytest.mark.parametrize(
    ("module", "target"), [("expunge.methods.npo", "expunge.train.engine"), ("expunge.runs.run", "expunge.testing")]
)
def test_a_wrong_import_would_be_found(module: str, target: str) -> None:
    assert forbidden(Import(module, target, 1))


@pytest.mark.parametrize("module", modules())
def test_every_module_imports(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.slow
def test_measuring_and_reading_runs_work_without_torch() -> None:
    free = [
        module
        for module in modules()
        if module not in NEEDS_TORCH and any(module == name or module.startswith(name + ".") for name in FREE_OF_TORCH)
    ]
    assert {"expunge.evals.recompute", "expunge.cli.main", "expunge.metrics.score"} <= set(free)
    code = f"""
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "transformers", "accelerate"}}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
for module in {free!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_are_short() -> None:
    lengths = {module: len(source(module).read_text(encoding="utf-8").splitlines()) for module in modules()}
    assert max(lengths.values()) <= 500, max(lengths, key=lambda module: lengths[module])
