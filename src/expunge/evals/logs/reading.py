"""What the readers of foreign logs share: errors that name the log, the key and the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import DataError, UsageError

_MOST = 10


def read_json(path: Path) -> Any:
    """The content of a log.

    Raises:
        UsageError: there is no such file.
        DataError: not JSON, or a key stands twice in one object, of which a JSON reader would keep the last.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise UsageError(f"there is no {path}", hint="name the file that the evaluation wrote") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}", hint="copy the log again; it may be cut") from error


def listed(items: Iterable[Any]) -> str:
    """The first ten items, separated by commas."""
    names = [str(item) for item in items]
    return ", ".join(names[:_MOST]) + (", ..." if len(names) > _MOST else "")


def mapping(value: Any, *, what: str) -> Mapping[str, Any]:
    """`value`, which must be a JSON object.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{what} is {_kind(value)}, not an object", hint="check which software wrote this log (--from)")
    return value


def require_keys(value: Mapping[str, Any], keys: Iterable[str], *, what: str) -> None:
    """Refuse an object that lacks a key.

    Raises:
        DataError: naming what is missing and what was found.
    """
    if missing := [key for key in keys if key not in value]:
        raise DataError(
            f"{what} lacks {listed(missing)} (it has: {listed(value) or 'nothing'})",
            hint="check which software wrote this log (--from), and that it is the whole file",
        )


def by_row(value: Any, *, what: str) -> dict[int, Any]:
    """Row number -> entry: of an object with row numbers as keys, or of a list, as older logs have it.

    Raises:
        DataError: neither, or a key that is no row number.
    """
    if isinstance(value, list):
        return dict(enumerate(value))
    entries = mapping(value, what=what)
    if odd := [key for key in entries if not key.isdecimal()]:
        raise DataError(f"{what}: {listed(odd)} is no row number", hint="rows are counted from 0")
    found = {int(key): entry for key, entry in entries.items()}
    if len(found) < len(entries):
        raise DataError(f"{what}: a row stands there twice, written differently", hint="each row once")
    return dict(sorted(found.items()))


def field(entries: Mapping[int, Any], name: str, *, what: str) -> dict[int, Any]:
    """Row number -> one field of each row's object.

    Raises:
        DataError: a row is no object, or lacks the field.
    """
    found: dict[int, Any] = {}
    for row, entry in entries.items():
        require_keys(mapping(entry, what=f"{what}, row {row},"), (name,), what=f"{what}, row {row},")
        found[row] = entry[name]
    return found


def numbers(values: Mapping[int, Any], *, what: str) -> dict[int, float]:
    """The rows that have a number; null is a row that could not be measured, and left out.

    Raises:
        DataError: a value is NaN, infinite or no number; the rows are named.
    """
    _refuse(values, {row: [value] for row, value in values.items()}, what)
    return {row: float(value) for row, value in values.items() if value is not None}


def number(value: Any, *, what: str) -> float:
    """A single number.

    Raises:
        DataError: NaN, infinite, null or no number.
    """
    if not _is_number(value, null=False):
        raise DataError(f"{what} is {value!r}, not a finite number", hint="evaluate again")
    return float(value)


def number_lists(values: Mapping[int, Any], *, what: str) -> dict[int, list[float]]:
    """The rows that have a list of numbers; one number alone is a list of one, and null a row that is left out.

    Raises:
        DataError: as `numbers`; an entry of a list that is null as well.
    """
    lists = {row: value if isinstance(value, list) else [value] for row, value in values.items() if value is not None}
    _refuse(lists, lists, what, null=False)
    return {row: [float(value) for value in entries] for row, entries in lists.items()}


def text(value: Any) -> str | None:
    """`value` if it is text; None for anything else."""
    return value if isinstance(value, str) else None


def _refuse(rows: Mapping[int, Any], lists: Mapping[int, list[Any]], what: str, *, null: bool = True) -> None:
    bad = [row for row, values in lists.items() if not all(_is_number(value, null=null) for value in values)]
    if bad:
        raise DataError(
            f"{what}: {len(bad)} of {len(rows)} rows are not a finite number (rows {listed(bad)};"
            f" row {bad[0]} has {rows[bad[0]]!r})",
            hint="the model gave NaN or infinite logits there; evaluate it again",
        )


def _is_number(value: Any, *, null: bool) -> bool:
    if value is None:
        return null
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{listed(sorted({key for key in names if names.count(key) > 1}))} stands there twice")
    return found
