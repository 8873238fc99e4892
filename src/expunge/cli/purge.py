"""`expunge purge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.output import Json, note, print_json, print_table, size


def purge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where the run was killed while it ran.")] = False,
    json: Json = False,
) -> None:
    """Remove the forgotten text that a run stored.

    Empties the tables' text columns and deletes checkpoints, reports and caches; the model and the numbers stay.
    """
    from expunge.runs.purge import purge as remove
    from expunge.runs.run import Run

    report = remove(Run.open(run), dry_run=dry_run, force=force)
    removed = [
        *((str(table.path), f"{', '.join(table.columns)} of {table.rows} rows") for table in report.tables),
        *((str(path), "checkpoint") for path in report.checkpoints),
        *((name, "cache entry") for name in report.caches),
        *((str(path), "half-written file") for path in report.leftovers),
        *((str(path), "report") for path in report.reports),
    ]
    if json:
        print_json({"removed": [{"item": item, "what": what} for item, what in removed], "dry_run": dry_run})
        return
    print_table(("would remove" if dry_run else "removed", "what"), removed)
    freed = f"{size(report.freed_bytes)} of checkpoints, caches, reports and leftovers"
    note(freed if removed else "nothing left to remove")
