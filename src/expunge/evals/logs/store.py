"""Import a foreign log: read it, write it as a stored evaluation, compute its own summary again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from expunge.catalog import unknown
from expunge.errors import UsageError
from expunge.evals.logs.measure import LoggedSide, measure_logged
from expunge.evals.logs.muse import read_muse
from expunge.evals.logs.openunlearning import read_openunlearning
from expunge.evals.logs.record import Log, LogTables
from expunge.evals.logs.tofu import read_tofu
from expunge.runs.store import atomic_file, atomic_write_json
from expunge.runs.tables import read_table

SPEC, VALUES, GENERATIONS = "spec.json", "values.parquet", "generations.parquet"
AGAIN = "import the log again with --overwrite"
SPEC_SCHEMA = 1
READERS: dict[str, Callable[[Path], Log]] = {
    "openunlearning": read_openunlearning,
    "tofu": read_tofu,
    "muse": read_muse,
}
NEEDS_REFERENCE = ("forget_quality", "privleak")
"""Aggregates that another log went into."""
TOLERANCE = 1e-5
"""Relative; logs were written by float32 code."""


class Imported(NamedTuple):
    """What was read from a log."""

    path: Path
    """The folder of the tables: for `expunge metrics`, also as its `--reference`."""
    origin: str
    suite: str
    profile: str
    rows: dict[str, int]
    """Split -> rows."""
    equal: tuple[str, ...]
    """Aggregates of the log that its rows give again."""
    differing: dict[str, tuple[float, float]]
    """Aggregate -> what the rows give, what the log says."""
    unread: tuple[str, ...]
    """Metrics of the log that this version does not know."""


def import_log(file: Path, *, origin: str, out: Path, overwrite: bool = False) -> Imported:
    """Write a published evaluation log as a stored evaluation, and check its summary against its rows.

    Args:
        file: the log: OpenUnlearning's `*_EVAL.json`; TOFU's `eval_log_aggregated.json`; MUSE's `out.json`,
            `history.json`, `auc.json` or the folder that holds them.
        origin: which software wrote it: `openunlearning`, `tofu` or `muse`.
        out: the folder that is written.
        overwrite: replace an import that lies there.

    Returns:
        What was read, and which aggregates follow from the rows.

    Raises:
        UsageError: unknown software, no such file, or `out` holds something.
        DataError: not such a log, a key that is missing, a value that is not a finite number.
    """
    if origin not in READERS:
        raise unknown("log format", origin, list(READERS))
    if not file.exists():
        raise UsageError(f"there is no {file}", hint="name the file that the evaluation wrote")
    _check_free(out, overwrite=overwrite)
    log = READERS[origin](file)
    tables = log.rows.tables()
    side = LoggedSide(tables, log.alone, log.unread)
    found = measure_logged(side, reference=None, suite=log.suite, profile=log.profile).measured.scores
    checked = {
        name: (found[name].value, value)
        for name, value in log.summary.items()
        if name in found and name not in NEEDS_REFERENCE and name not in log.alone
    }
    differing = {
        name: pair for name, pair in checked.items() if not np.isclose(*pair, rtol=TOLERANCE, atol=TOLERANCE / 100)
    }
    _write(out, tables, _spec(log, file, origin))
    return Imported(
        path=out,
        origin=origin,
        suite=log.suite,
        profile=log.profile,
        rows={split: len(rows) for split, rows in log.rows.rows().items()},
        equal=tuple(name for name in checked if name not in differing),
        differing=differing,
        unread=log.unread,
    )


def read_log(folder: Path, spec: Mapping[str, Any]) -> LoggedSide:
    """An imported log from its folder.

    Raises:
        DataError: a table is missing, unreadable, or of a schema this version does not know.
    """
    tables = LogTables(*(read_table(folder / name, again=AGAIN) for name in (VALUES, GENERATIONS)))
    log = spec["log"]
    return LoggedSide(tables, dict(log.get("alone", {})), tuple(log.get("unread", ())))


def _check_free(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="name a folder with --out")
    present = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not present:
        return
    if VALUES not in present:
        raise UsageError(f"{out} holds other files ({', '.join(present[:5])})", hint="name a new folder with --out")
    if not overwrite:
        raise UsageError(f"{out} holds an imported log", hint="give another folder, or add --overwrite")


def _spec(log: Log, file: Path, origin: str) -> dict[str, Any]:
    digest = None if file.is_dir() else hashlib.sha256(file.read_bytes()).hexdigest()
    rows = log.rows.rows()
    return {
        "schema": SPEC_SCHEMA,
        "suite": log.suite,
        "profile": log.profile,
        # A log does not say which template was used.
        "template": {"name": "unknown", "digest": ""},
        "splits": {split: {"rows": len(numbers)} for split, numbers in rows.items()},
        "log": {
            "from": origin,
            "file": file.name,
            "sha256": digest,
            "summary": dict(log.summary),
            "alone": dict(log.alone),
            "unread": list(log.unread),
        },
    }


def _write(out: Path, tables: LogTables, spec: Mapping[str, Any]) -> None:
    # The spec goes first and comes back last: tables without it are taken for unfinished.
    for path in (out / SPEC, *out.glob("metrics*.json")):
        path.unlink(missing_ok=True)
    for name, table in ((VALUES, tables.values), (GENERATIONS, tables.generations)):
        with atomic_file(out / name) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    atomic_write_json(out / SPEC, spec)
