"""Help, versions, names, errors and exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from invocation import Invoke

from expunge import __version__, api
from expunge.cli.main import COMMANDS
from expunge.errors import DataError, StoppedError

ROOT = Path(__file__).parents[2]


def start(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-m", "expunge", *argv], capture_output=True, text=True, env=env, check=False
    )


GROUPS = ("world", "guard", "cache", "bench")
"""Commands that have commands."""


@pytest.mark.parametrize("command", [*COMMANDS, "env", *GROUPS])
def test_every_command_has_help(invoke: Invoke, command: str) -> None:
    result = invoke(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert "Usage: expunge" in result.out


def test_every_command_has_its_row_in_the_table() -> None:
    text = (ROOT / "design" / "cli.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z]+)", text, re.MULTILINE)
    assert [row for row in rows if row not in GROUPS] == [*COMMANDS, "env"]
    assert sorted(rows) == sorted([*COMMANDS, "env", *GROUPS])


def test_without_arguments_help_is_printed(invoke: Invoke) -> None:
    assert "Commands:" in invoke().out


def test_the_version(invoke: Invoke) -> None:
    assert invoke("--version").out == f"{__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["eval", "--help"], ["ls", "methods"], ["runs", "."], ["cache", "ls"]])
def test_light_commands_import_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from expunge.cli.main import main
code = main({argv!r})
heavy = {{"torch", "transformers", "pyarrow", "scipy"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else code)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "EXPUNGE_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["unlern", "x"], "unlearn"),
        (["eval"], "TARGET"),
        (["eval", "x", "--sweet", "tofu"], "--sweet"),
        (["eval", "x", "--limit", "0"], "--limit"),
        (["eval", "x", "--profile", "canonicle"], "unknown profile 'canonicle'"),
        (["ls", "method"], "unknown kind 'method'"),
        (["cache", "rm"], "nothing to remove was named"),
        (["unlearn", "missing.yaml"], "no recipe file missing.yaml"),
    ],
)
def test_usage_errors(invoke: Invoke, argv: list[str], message: str) -> None:
    result = invoke(*argv)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert message in result.err
    assert "hint: " in result.err


@pytest.mark.parametrize(("error", "code"), [(DataError("rows 3, 4", hint="do this"), 3), (StoppedError("full"), 4)])
def test_errors_of_a_run(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(api, "unlearn", fail)
    result = invoke("unlearn", "r.yaml")
    assert result.code == code
    assert result.err.splitlines() == [f"error: {error.args[0]}", *(["hint: do this"] if code == 3 else [])]


def test_a_bug_keeps_its_traceback(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(api, "unlearn", fail)
    with pytest.raises(KeyError):
        invoke("unlearn", "r.yaml")


@pytest.mark.parametrize(("argv", "resumes"), [(["unlearn", "r.yaml"], True), (["plan", "r.yaml"], False)])
def test_ctrl_c(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, argv: list[str], resumes: bool) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, argv[0], interrupt)
    result = invoke(*argv)
    assert result.code == 130
    assert ("same command resumes" in result.err) == resumes


def test_a_real_process_ends_with_the_code(tmp_path: Path) -> None:
    done = start("purge", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: {tmp_path} is not a run directory: it has no manifest.json"


def test_a_closed_pipe_is_quiet() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "expunge.cli.main", "ls", "metrics"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=env,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
