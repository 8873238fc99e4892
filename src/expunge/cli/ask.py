"""`expunge ask`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.output import Json, number, print_json
from expunge.cli.progress import showing

if TYPE_CHECKING:
    from expunge.guards.ask import Answer


def ask(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, a model folder or a Hub id.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask; - reads it from stdin.")],
    guard: Annotated[bool, typer.Option("--guard/--no-guard", help="Let the calibrated guard refuse.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Limit on the answer.")] = 200,
    template: Annotated[str | None, typer.Option(help="A chat template (`expunge ls templates`).")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best one there is unless given.")] = None,
    json: Json = False,
) -> None:
    """Ask a model, with its guard in front of it or without.

    Prints the answer, its energy and the decision.
    """
    from expunge import api
    from expunge.report.text import visible

    asked = _from_stdin() if question == "-" else _as_utf8(question)
    with showing() as progress:
        answer = api.ask(
            run,
            asked,
            guard=guard,
            max_new_tokens=max_new_tokens,
            template=template,
            device=device,
            progress=progress,
        )
    if json:
        print_json(answer._asdict())
        return
    # What a model writes must not reach the terminal as commands.
    typer.echo(visible(answer.answer))
    typer.echo(_decision(answer))


def _from_stdin() -> str:
    """What stdin holds; bytes that are no UTF-8 are kept, and refused like those of an argument."""
    stream = sys.stdin
    read = stream.buffer.read().decode("utf-8", "surrogateescape") if hasattr(stream, "buffer") else stream.read()
    return read.strip()


def _as_utf8(text: str) -> str:
    """In a locale without UTF-8 Python keeps the bytes it cannot read; most often they are UTF-8 all the same."""
    try:
        return text.encode(sys.getfilesystemencoding(), "surrogateescape").decode("utf-8")
    except UnicodeError:
        return text


def _decision(answer: Answer) -> str:
    energy = f"energy {number(answer.energy)}"
    if answer.threshold is None:
        return f"{energy}; no guard is calibrated"
    side = "above" if answer.refused else "not above"
    if answer.guarded:
        word = "refused" if answer.refused else "answered"
    else:
        word = "the guard would refuse" if answer.refused else "the guard would answer"
    return f"{energy}, {side} the threshold {number(answer.threshold)}: {word}"
