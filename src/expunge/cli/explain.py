"""`expunge explain`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.output import Json, print_json, spelled

if TYPE_CHECKING:
    from expunge.metrics.explain import Explained

WIDTH = 100
_LABEL = 16


def explain(
    metric: Annotated[
        str, typer.Argument(metavar="METRIC", help="As a suite (`expunge ls metrics`), a profile or a log reports it.")
    ],
    json: Json = False,
) -> None:
    """Say what a metric measures, which way is better, what it cannot tell and where it comes from."""
    from expunge.metrics.explain import explain as find
    from expunge.metrics.explain import known_names

    found = find(spelled(metric, known_names()))
    if json:
        print_json(found.to_json())
        return
    typer.echo(found.name)
    typer.echo(textwrap.fill(found.card.definition, WIDTH, initial_indent="  ", subsequent_indent="  "))
    typer.echo()
    for label, text in _lines(found):
        typer.echo(
            textwrap.fill(
                text,
                WIDTH,
                initial_indent=label.ljust(_LABEL),
                subsequent_indent=" " * _LABEL,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def _lines(found: Explained) -> Iterator[tuple[str, str]]:
    from expunge.metrics.cards.profiles import SAME
    from expunge.metrics.explain import said_of

    card = found.card
    if found.version is not None:
        yield "profile", found.version.profile
        if canonical := " and ".join(found.version.versions()):
            yield "the same as" if found.version.differs == SAME else "a version of", canonical
        if canonical and found.version.differs != SAME:
            yield "differs", found.version.differs
    yield "formula", card.formula
    yield "direction", found.direction
    yield "ideal", card.ideal_in_words
    yield "cannot tell", card.cannot_tell
    yield "source", card.source
    for suite, splits in card.where.items():
        yield f"in {suite}", f"of {', '.join(splits)}" if splits else "of the whole evaluation"
    for place, others in enumerate(said_of(found.others)):
        yield "" if place else "elsewhere", others
