"""`expunge merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.output import Json, note, print_json, size
from expunge.cli.progress import showing
from expunge.cli.recipe import Overwrite


def merge(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that trained adapters, or an adapter's folder.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; RUN/merged unless given.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a run's adapter and its base as one plain model folder."""
    from expunge import api

    with showing():
        folder = api.merge(run, out=out, overwrite=overwrite)
    written = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if json:
        print_json({"path": str(folder), "bytes": written})
        return
    typer.echo(str(folder))
    note(f"{size(written)} of weights; loads with AutoModelForCausalLM.from_pretrained")
