"""`expunge world build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.output import Json, print_facts, print_json
from expunge.cli.recipe import Overwrite

app = typer.Typer(
    help="Make fictitious people to forget and to keep.",
    rich_markup_mode=None,
    no_args_is_help=False,
)


@app.callback()
def world() -> None:
    """Make fictitious people to forget and to keep."""


@app.command("build")
def build(
    people: Annotated[int, typer.Option(help="How many; a sixth is to be forgotten, a sixth never trained on.")] = 24,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write.")] = Path("world"),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a pocket world as ordinary files, the same for the same people and seed."""
    from expunge.data.worlds import build_world, write_world
    from expunge.data.worlds.files import describe

    made = build_world(people=people, seed=seed)
    folder = write_world(made, out, overwrite=overwrite)
    facts = describe(made)
    if json:
        print_json({"path": str(folder), **facts})
        return
    roles = list(facts["roles"].values())
    counts = ", ".join(f"{roles.count(role)} to {what}" for role, what in (("forget", "forget"), ("retain", "keep")))
    print_facts(
        [
            ("world", str(folder)),
            ("people", f"{people}: {counts}, {roles.count('holdout')} never trained on"),
            ("neighbours", ", ".join(facts["neighbours"])),
            *((f"{name}.jsonl", f"{rows} rows") for name, rows in facts["rows"].items()),
            ("digest", facts["digest"][:16]),
        ]
    )
