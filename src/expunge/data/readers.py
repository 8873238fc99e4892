"""Local files to rows, by what they hold: TOFU's `.json` are JSON Lines. Plain lines are a `.txt`, or asked for."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.errors import DataError

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_JSON = (".jsonl", ".json")
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")

Rows = list[dict[str, Any]]


def read_file(path: Path, *, plain: bool = False) -> Rows:
    """All rows of a JSON Lines, JSON, CSV, Parquet or plain-text file, in order.

    Args:
        path: the file.
        plain: a `.jsonl` or `.json` may hold plain lines, as TOFU's refusals do; otherwise they are broken JSON.

    Raises:
        DataError: no rows, or content that cannot be read; the line is named.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PAR1":
        rows = _parquet(path)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from error
        if "\0" in text:
            raise DataError(f"{path} is not text: it holds NUL bytes", hint=f"accepted: {', '.join(ENDINGS)}")
        rows = _csv(text, path) if path.suffix.lower() == ".csv" else _text(text, path, plain=plain)
    if not rows:
        raise DataError(f"{path} is empty", hint="it must hold at least one row")
    return rows


def read_folder(folder: Path, split: str | None, *, plain: bool = False) -> tuple[Rows, list[Path]]:
    """The rows of one split of a folder of data files (`split.jsonl`, or Hub shards `split-00000-of-00002.parquet`).

    Without `split`: the only one there is, else `train`. `plain` as in `read_file`.

    Raises:
        DataError: no data files, or several splits and none chosen.
    """
    files = [path for place in (folder, folder / "data") for path in sorted(place.glob("*")) if path.suffix in ENDINGS]
    splits: dict[str, list[Path]] = {}
    for path in files:
        match = _SHARD.fullmatch(path.stem)
        splits.setdefault(match["split"] if match else path.stem, []).append(path)
    if not splits:
        raise DataError(f"{folder} holds no data file", hint=f"accepted: {', '.join(ENDINGS)}")
    wanted = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if wanted not in splits:
        raise DataError(
            f"{folder} has {', '.join(splits)}" + (f" but no {split!r}" if split else ""),
            hint="name the file itself, or set split",
        )
    return [row for path in splits[wanted] for row in read_file(path, plain=plain)], splits[wanted]


def missing_file(path: Path) -> DataError:
    """The error for a file that is not there; its hint is what lies beside it under a similar name."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    if folder == path.absolute().parent:
        names = sorted(entry.name for entry in folder.iterdir())
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
        close = [str(path.with_name(name)) for name in near]
        hint = f"did you mean {' or '.join(close)}?" if close else f"nothing in {folder} has a name like it"
    else:
        hint = f"{path.parent} does not exist either; {folder} does"
    return DataError(f"no such file: {path}", hint=hint)


def some_names(names: Sequence[str], limit: int = 5) -> str:
    """`a, b, c, d, e and 4 more`, or `no files`, for error messages."""
    shown = ", ".join(names[:limit]) or "no files"
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: Rows = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", hint="write it again") from error
    return rows


def _csv(text: str, path: Path) -> Rows:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: Rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path} line {reader.line_num}: {'more' if None in row else 'fewer'} cells than columns",
                    hint="quote cells that hold commas or line breaks",
                )
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}", hint="quote the cell") from error
    return rows


def _text(text: str, path: Path, *, plain: bool) -> Rows:
    """JSON Lines of objects or texts, one JSON array, or plain lines: told by the ending and the first character."""
    first, ending = text.lstrip()[:1], path.suffix.lower()
    if ending == ".txt" or (first not in ("{", "[") and (plain or ending not in _JSON)):
        return (_quoted(text) if first == '"' and ending in _JSON else None) or _lines(text)
    values = _array(text, path) if first == "[" else _json_lines(text, path)
    return [_row(value, number, path) for number, value in enumerate(values)]


def _lines(text: str) -> Rows:
    return [{"text": line.strip()} for line in text.splitlines() if line.strip()]


def _quoted(text: str) -> Rows | None:
    """Lines that are a JSON text each; None where one of them only begins with a quotation mark."""
    try:
        values = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError:
        return None
    return [{"text": value} for value in values] if all(isinstance(value, str) for value in values) else None


def _array(text: str, path: Path) -> list[Any]:
    try:
        values: list[Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: invalid JSON ({error.msg})", hint="mend that line") from error
    return values


def _json_lines(text: str, path: Path) -> list[Any]:
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path} line {number}: invalid JSON ({error.msg})",
                hint="JSON Lines has one object per line, a JSON file one array; plain lines belong in a .txt",
            ) from error
    return values


def _row(value: Any, number: int, path: Path) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, dict):
        return value
    raise DataError(f"{path} row {number} is {type(value).__name__}, not an object or a text", hint="mend that row")
