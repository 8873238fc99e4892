"""`expunge`: the commands, and what becomes of their errors. Imports nothing heavy, so that help is instant."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from expunge import __version__
from expunge.cli import (
    ask,
    bench,
    cache,
    compare,
    cp,
    demo,
    env,
    evaluate,
    explain,
    guard,
    import_,
    ls,
    merge,
    metrics,
    plan,
    purge,
    push,
    report,
    runs,
    samples,
    sweep,
    train,
    unlearn,
    validate,
    world,
)
from expunge.errors import ExpungeError, PeerLostError, StoppedError
from expunge.runs.rank import PEER_LOST, rank, watched

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_AFTER_CTRL_C = {
    "demo": "the same command continues",
    "bench": "the same command continues; finished cells stay",
    "sweep": "the same command continues; trials that ended stay",
    "unlearn": "the same command resumes this run",
    "train": "the same command resumes this run",
    "eval": "the same command goes on from the last finished pass",
}


def _hyphens(name: str) -> str:
    """`--forget_split` is `--forget-split`."""
    return name.replace("_", "-")


app = typer.Typer(
    name="expunge",
    help="Make a causal language model forget, keep the rest, and measure both.",
    context_settings={"token_normalize_func": _hyphens, "help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "unlearn": unlearn.unlearn,
    "train": train.train,
    "sweep": sweep.sweep,
    "eval": evaluate.evaluate,
    "metrics": metrics.metrics,
    "samples": samples.samples,
    "import": import_.import_log,
    "report": report.report,
    "compare": compare.compare,
    "merge": merge.merge,
    "ask": ask.ask,
    "validate": validate.validate,
    "plan": plan.plan,
    "ls": ls.ls,
    "explain": explain.explain,
    "cp": cp.cp,
    "runs": runs.runs,
    "push": push.push,
    "purge": purge.purge,
}
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)
app.add_typer(world.app, name="world")
app.add_typer(bench.app, name="bench")
app.add_typer(guard.app, name="guard")
app.add_typer(cache.app, name="cache")
app.command("env")(env.env)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the arguments; those of the process unless given.

    Returns:
        The exit code (`design/cli.md`): 0 fine, 2 usage, 3 data, 4 stopped, 5 a `--fail-if` condition is met, 130
        Ctrl-C.

    Raises:
        Exception: a bug; Python prints its traceback and exits with 1.
    """
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    _open_streams()
    _print_anything()
    if rank() != 0:
        _print_nowhere()
    try:
        code = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has seen enough.
        _print_nowhere()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _print_nowhere()
        _say("error: no space left on the disk", "free some space, then repeat the same command")
        return StoppedError.exit_code
    return code


def _open_streams() -> None:
    """A caller may have closed them (`>&-`); what is written there goes nowhere, and nothing can be read."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open as long as this process


def _print_nowhere() -> None:
    """From now on, and when Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_anything() -> None:
    """Where the terminal's encoding lacks a character, print its escape rather than end with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(args: list[str]) -> int:
    command = get_command(app)
    try:
        with command.make_context("expunge", args, obj=args) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted", _AFTER_CTRL_C.get(args[0]))
        return INTERRUPTED
    except PeerLostError as error:
        # Our launcher shows what the process that failed first had to say.
        if watched():
            return PEER_LOST
        _say(f"error: {error.message}", error.hint)
        return error.exit_code
    except ExpungeError as error:
        _say(f"error: {error.message}", error.hint)
        return error.exit_code
    except typer.TyperException as error:
        _say(f"error: {_message(error)}", f"see `{_command_path(error)} --help`")
        return ExpungeError.exit_code
    return 0


def _message(error: typer.TyperException) -> str:
    shown = getattr(error, "format_message", None)
    return str(shown() if shown else error).rstrip(".")


def _command_path(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "expunge"


def _say(line: str, hint: str | None) -> None:
    typer.echo(line, err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)


if __name__ == "__main__":
    sys.exit(main())
