"""`expunge push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.output import Json, note, print_json

if TYPE_CHECKING:
    from expunge.integrations.hub import Pushed


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run directory.")],
    repo_id: Annotated[str | None, typer.Argument(metavar="REPO_ID", help="organisation/name; the run's name.")] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see a repository that is made.")] = True,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="A branch instead of main.")] = None,
    start: Annotated[Path | None, typer.Option(metavar="RUN", help="The evaluated starting model.")] = None,
    reference: Annotated[Path | None, typer.Option(metavar="RUN", help="The evaluated retrained model.")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="What `expunge merge` made, instead of an adapter.")] = False,
    json: Json = False,
) -> None:
    """Upload a run's model and a redacted model card to the Hugging Face Hub.

    Tables, events and rows stay here.
    """
    from expunge import api

    pushed = api.push(run, repo_id, private=private, revision=revision, merged=merged, start=start, reference=reference)
    if json:
        print_json(pushed._asdict())
        return
    typer.echo(pushed.url)
    tell(pushed)


def tell(pushed: Pushed) -> None:
    """What was pushed, on stderr."""
    who = "private" if pushed.private else "public"
    note(f"{len(pushed.files)} files are in {pushed.repo_id} ({who})")
    if pushed.left_out:
        note(f"not pushed: {', '.join(pushed.left_out)}")
    if pushed.own_card:
        note("the model card is your own and was pushed as it is: what it says was not redacted")
