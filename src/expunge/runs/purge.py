"""Remove the forgotten text a run still holds, and keep its numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from expunge.errors import DataError, UsageError
from expunge.runs.cache import CacheInfo, entries, open_entry, remove
from expunge.runs.prompt_order import with_prompt_order
from expunge.runs.run import Run, request_paths
from expunge.runs.store import atomic_file, leftovers
from expunge.runs.tables import PURGEABLE


class PurgedTable(NamedTuple):
    """One table and the columns that held text."""

    path: Path
    columns: tuple[str, ...]
    rows: int


class Purged(NamedTuple):
    """What `purge` removed, or would remove."""

    tables: tuple[PurgedTable, ...]
    checkpoints: tuple[Path, ...]
    caches: tuple[str, ...]
    """`<kind>/<key>` of cache entries made from this run's data."""
    freed_bytes: int
    """Of checkpoints, caches, reports and leftovers."""
    leftovers: tuple[Path, ...] = ()
    """Half-written files of writers that were killed."""
    reports: tuple[Path, ...] = ()
    """Reports inside the run, whose examples show its rows."""


def purge(run: Run, *, dry_run: bool = False, force: bool = False) -> Purged:
    """Empty the text columns of every table, delete the checkpoints, the reports and the caches of `run`; idempotent.

    What stays: the model, the manifest, the events, and every number metrics are computed from, so metrics still
    recompute. An unfinished run cannot be resumed afterwards.

    Args:
        run: the run; of a sequence, with the runs of its requests.
        dry_run: only say what would be removed.
        force: also where the manifest says that the run is running (it was killed).

    Returns:
        What was removed; empty parts where there was nothing left to remove.

    Raises:
        UsageError: the run says that it is running; its process would write text again.
        DataError: a table cannot be read, so that nobody can say which text it holds; nothing was removed.
        StoppedError: the disk is full; the table at hand is as it was before.
    """
    if run.manifest.status == "running" and not force:
        raise UsageError(
            f"{run.path} is running or was killed while it ran",
            hint="stop it first; if it was killed, add --force (it cannot be resumed afterwards)",
        )
    tables = tuple(table for path in _tables(run) if (table := _text_left(path)).columns)
    runs = [run, *(Run.open(path) for path in request_paths(run.path))]
    checkpoints = tuple(path for each in runs for path in _states(each))
    caches = {info.name: info for each in runs for info in _own_caches(each)}.values()
    folders = [folder for each in runs for folder in (each.path, *each.evals_dir.glob("*"), *each.watch_dir.glob("*"))]
    halves = tuple(path for folder in folders for path in leftovers(folder))
    pages = tuple(path for each in runs for path in sorted(each.path.glob("*.html")))
    freed = sum(_size(path) for path in checkpoints) + sum(info.size_bytes for info in caches)
    freed += sum(path.stat().st_size for path in (*halves, *pages))
    report = Purged(tables, checkpoints, tuple(info.name for info in caches), freed, halves, pages)
    if not dry_run:
        _apply(run, report)
    return report


def _apply(run: Run, report: Purged) -> None:
    for table in report.tables:
        _empty(table)
    for checkpoint in report.checkpoints:
        shutil.rmtree(checkpoint)
    for half in (*report.leftovers, *report.reports):
        half.unlink(missing_ok=True)
    if report.caches:
        remove(*report.caches)
    run.append({"event": "purged", "tables": len(report.tables), "checkpoints": len(report.checkpoints)})


def _states(run: Run) -> list[Path]:
    """What serves resuming: checkpoints, what a method made itself (sampled answers, refusals), tables beside them."""
    made = [folder for folder in (run.provision_dir, run.tables_dir) if folder.is_dir()]
    return [*run.checkpoints(), *sorted(run.checkpoints_dir.glob(".partial-*")), *made]


def _tables(run: Run) -> list[Path]:
    names = ("trace", "generations", "samples")
    return [path for name in names for path in sorted(run.path.glob(f"**/{name}.parquet"))]


def _text_left(path: Path) -> PurgedTable:
    try:
        present = [name for name in PURGEABLE if name in pq.read_schema(path).names]
        table = pq.read_table(path, columns=present)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read, so its text cannot be emptied: {str(error).splitlines()[0]}",
            hint=f"delete {path.parent}, or evaluate again with --overwrite",
        ) from error
    columns = tuple(name for name in present if table[name].null_count < table.num_rows)
    return PurgedTable(path, columns, table.num_rows)


def _empty(purged: PurgedTable) -> None:
    table = pq.read_table(purged.path)
    if purged.path.stem == "trace" and "prompt" in purged.columns:
        table = with_prompt_order(table)
    for name in purged.columns:
        index = table.schema.get_field_index(name)
        field = table.schema.field(index)
        table = table.set_column(index, field, pa.nulls(table.num_rows, field.type))
    with atomic_file(purged.path) as temporary:
        pq.write_table(table, temporary)


def _own_caches(run: Run) -> list[CacheInfo]:
    """Entries the manifest names, and those made from the same rows."""
    names = set(run.manifest.caches)
    rows = {item.encoded_digest for item in run.manifest.data} - {None}
    return [info for info in entries() if info.name in names or _rows_of(info) in rows]


def _rows_of(info: CacheInfo) -> str | None:
    entry = open_entry(info.kind, info.key)
    digest = entry.meta.get("identity", {}).get("data")
    return str(digest) if digest else None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
