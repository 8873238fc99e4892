"""Where a benchmark lies that is more than one test: a folder or a Hub id, and which part of it is meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.data.example import Example
from expunge.data.formats import BadRowError, read_each, require_columns
from expunge.data.hub import is_hub_id, load_hub
from expunge.data.readers import ENDINGS, missing_file, read_file
from expunge.errors import DataError

Row = Mapping[str, Any]


class Place(NamedTuple):
    """A source as it is written: `FOLDER`, `ORG/NAME`, or either with `#PART` behind it."""

    where: str
    part: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder, where it is one."""
        path = Path(self.where).expanduser()
        return path if path.is_dir() else None


class Rows(NamedTuple):
    """Rows of one file or Hub split."""

    rows: Sequence[Row]
    origin: str
    """For messages."""


def find_place(source: str) -> Place:
    """Where a source lies; what follows its last `#` is the part, unless a folder is called so.

    Raises:
        DataError: it is neither a folder nor like a Hub id.
    """
    where, mark, part = source.rpartition("#")
    place = Place(where, part.strip() or None) if mark and not Path(source).expanduser().is_dir() else Place(source)
    if place.folder is None and not is_hub_id(place.where):
        raise missing_file(Path(place.where).expanduser())
    return place


def local_file(folder: Path, *stems: str) -> Path | None:
    """The data file of a folder that is called like one of the stems; None: it has none."""
    paths = (folder / f"{stem}{ending}" for stem in stems for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def read_rows(path: Path) -> Rows:
    """The rows of a file, whatever it is called; one JSON object is one row, over however many lines.

    Raises:
        DataError: it holds no rows, or cannot be read.
    """
    if path.suffix in (".json", ".jsonl"):
        try:
            whole = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError:
            # Lines of JSON, or nothing that can be read: then it is said where.
            whole = None
        if isinstance(whole, dict):
            return Rows([whole], str(path))
    return Rows(read_file(path), str(path))


def hub_rows(repo: str, *, name: str | None, split: str) -> Rows:
    """The rows of a Hub split.

    Raises:
        UsageError: as `load_hub`.
        DataError: as `load_hub`.
    """
    found = load_hub(repo, name=name, split=split, revision=None)
    return Rows(found.rows, f"{repo}{f' {name}' if name else ''}:{split}")


def read_examples(
    found: Rows,
    columns: Sequence[str],
    read: Callable[[Row, int], Example | Sequence[Example]],
) -> tuple[Example, ...]:
    """Rows to examples, one or several of each.

    Args:
        found: the rows.
        columns: what every row must have.
        read: makes them of a row and its number; raises `BadRowError` where the row cannot be used.

    Raises:
        DataError: no rows, missing columns (with those that were found), or rows that cannot be used; they are named.
    """
    if not found.rows:
        raise DataError(f"{found.origin} is empty", hint="it must hold at least one row")
    require_columns(found.rows, columns, origin=found.origin, what="the published file")
    made = read_each(found.rows, range(len(found.rows)), read, origin=found.origin)
    return tuple(example for each in made for example in ([each] if isinstance(each, Example) else each))


def text(row: Row, column: str) -> str:
    """A column that must say something.

    Raises:
        BadRowError: it is absent, not text or empty.
    """
    value = row.get(column)
    if not isinstance(value, str):
        raise BadRowError(f"{column!r} is not text" if column in row else f"{column!r} is missing")
    if not value.strip():
        raise BadRowError(f"{column!r} is empty")
    return value


def texts(row: Row, column: str) -> tuple[str, ...]:
    """A column that must be a list of at least one text, each saying something.

    Raises:
        BadRowError: it is not.
    """
    value = row.get(column)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRowError(f"{column!r} is not a list of texts")
    if not all(isinstance(item, str) and item.strip() for item in value):
        raise BadRowError(f"{column!r} holds an entry that is empty or not text")
    return tuple(value)
