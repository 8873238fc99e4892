"""`expunge cache ls` and `expunge cache rm`."""

from __future__ import annotations

from typing import Annotated

import typer

from expunge.cli.output import Json, note, print_json, print_table, size

app = typer.Typer(
    help="List or remove what is kept between runs.",
    rich_markup_mode=None,
    no_args_is_help=False,
)


@app.command("ls")
def ls(json: Json = False) -> None:
    """List the cache entries."""
    from expunge.runs.cache import cache_root, entries

    found = entries()
    if json:
        print_json([{**info._asdict(), "path": str(info.path)} for info in found])
        return
    rows = [(f"{info.kind}/{info.key[:12]}", size(info.size_bytes), info.created, info.description) for info in found]
    print_table(("entry", "size", "created", "what"), rows, right=("size",))
    note(f"{len(found)} entries, {size(sum(info.size_bytes for info in found))} in {cache_root()}")


@app.command("rm")
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="[ENTRY]...", help="Keys or their beginnings.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every entry.")] = False,
    json: Json = False,
) -> None:
    """Remove cache entries; they are built again when needed."""
    from expunge.errors import UsageError
    from expunge.runs.cache import remove, remove_all

    if bool(names) == everything:
        raise UsageError("nothing to remove was named", hint="name entries of `expunge cache ls`, or give --all alone")
    gone = remove_all() if everything else remove(*(names or ()))
    if json:
        print_json([info.name for info in gone])
        return
    for info in gone:
        typer.echo(info.name)
    note(f"{len(gone)} entries, {size(sum(info.size_bytes for info in gone))} removed")
