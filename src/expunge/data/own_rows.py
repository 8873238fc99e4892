"""Rows of your own in named splits: a file whose rows say which split they are of, or a folder of a file per split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from expunge.data.encode import name_rows
from expunge.data.example import Example
from expunge.data.formats import FORMATS, rename, to_examples
from expunge.data.hub import is_hub_id
from expunge.data.multiple_choice import read_questions, to_example
from expunge.data.readers import ENDINGS, missing_file, read_file
from expunge.errors import DataError, UsageError

SPLIT, DEFAULT = "split", "forget"
"""The column that names a row's split, and the split of rows without it."""
OPTIONS = "options"
READ = (
    *("messages", "prompt", "completion", "question", "answer", "text", OPTIONS),
    *("id", "group", "paraphrased_answer", "perturbed_answer"),
)
"""Columns that count; all others are left alone."""
RESERVED = ("membership", "energy", "guard")
"""What metrics of no single split begin with."""

_NAME = re.compile(r"[a-z0-9_]+")
_ACCEPTED = "; ".join([*(" and ".join(form.columns) for form in FORMATS), "prompt and answer", "question and options"])
_PROMPTED = {"completion": "answer"}

Row = Mapping[str, Any]


class _Placed(NamedTuple):
    """A row where it was found."""

    origin: str
    number: int
    row: Row


def load_own_rows(source: str) -> dict[str, tuple[Example, ...]]:
    """The rows of every split.

    A row is a question or a prompt with its answer, a conversation, a text, or a question with `options` of which
    `answer` is the right one (its index from 0, or its letter); the last one's example has every option's letter as
    extra column `options`. Rows of one split have the same columns.

    Args:
        source: a file whose rows may have a column `split` (`forget` without it), or a folder of `<split>.jsonl` (or
            another ending that is read).

    Raises:
        DataError: no such file, no rows, a split whose name is not of a-z, 0-9 and _, rows of one split with other
            columns than its first one or with columns that make no row, ids that are there twice, or rows that cannot
            be used; rows are named.
        UsageError: the source is a data set of the Hub.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if is_hub_id(source):
            raise UsageError(f"{source} is no file or folder", hint="the suite custom reads local rows")
        raise missing_file(path)
    splits: dict[str, list[_Placed]] = {}
    for file, stem in _files(path):
        for number, row in enumerate(read_file(file)):
            splits.setdefault(_split_of(row, file, number, stem), []).append(
                _Placed(str(file), number, {key: value for key, value in row.items() if value is not None})
            )
    return {name: _examples(name, rows) for name, rows in splits.items()}


def _files(path: Path) -> list[tuple[Path, str | None]]:
    """Each file with the split that its name says; None where its rows say it."""
    if path.is_file():
        return [(path, None)]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
    if not found:
        raise DataError(f"{path} holds no data file", hint=f"accepted: {', '.join(ENDINGS)}")
    stems = Counter(file.stem for file in found)
    if twice := [stem for stem, count in stems.items() if count > 1]:
        names = ", ".join(file.name for file in found if file.stem == twice[0])
        raise DataError(f"{path} has several files of the split {twice[0]!r}: {names}", hint="leave one of them")
    return [(file, file.stem) for file in found]


def _split_of(row: Row, file: Path, number: int, stem: str | None) -> str:
    given = row.get(SPLIT)
    name = stem or DEFAULT if given is None else given
    where = f"{file} row {number}" if stem is None else str(file)
    if stem is not None and name != stem:
        raise DataError(
            f"{file} row {number} says it is of the split {given!r}", hint=f"the file's name says {stem!r}: mend one"
        )
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or name in RESERVED:
        raise DataError(
            f"{where} is of the split {name!r}",
            hint=f"a split's name has small letters, digits and _, and is not {' or '.join(RESERVED)}",
        )
    return name


def _examples(split: str, placed: Sequence[_Placed]) -> tuple[Example, ...]:
    _require_alike(split, placed)
    rows, numbers = [each.row for each in placed], [each.number for each in placed]
    origin = f"{placed[0].origin} (split {split})"
    if OPTIONS in rows[0]:
        questions = read_questions(rows, origin=origin, numbers=numbers, options=OPTIONS)
        found = [to_example(question, id=f"{split}:{question.row}", about=split) for question in questions]
        # There is no topic to announce.
        found = [replace(example, turns=example.turns[1:]) for example in found]
        found = [replace(example, group=_text(row, "group")) for example, row in zip(found, rows, strict=True)]
    else:
        if {"prompt", "answer"} <= rows[0].keys() and "completion" not in rows[0]:
            rows = rename(rows, _PROMPTED, origin=origin)
        found, _ = to_examples(rows, numbers, stem=split, origin=origin, group=lambda row: None)
    named = [replace(each, id=_text(row, "id") or each.id) for each, row in zip(found, rows, strict=True)]
    _require_own_ids(split, named)
    return tuple(named)


def _text(row: Row, column: str) -> str | None:
    return None if row.get(column) is None else str(row[column])


def _columns(row: Row) -> tuple[str, ...]:
    return tuple(name for name in READ if name in row)


def _require_alike(split: str, placed: Sequence[_Placed]) -> None:
    """Refuse a split without a format, and one whose rows have different columns: a metric would miss some of them."""
    first, expected = placed[0], _columns(placed[0].row)
    known = [form.columns for form in FORMATS] + [("prompt", "answer"), ("question", OPTIONS)]
    if not any(set(columns) <= set(expected) for columns in known):
        raise DataError(
            f"{first.origin} row {first.number} (split {split}) has the columns"
            f" {', '.join(map(str, first.row)) or '(none)'}; accepted: {_ACCEPTED}",
            hint="rename the columns",
        )
    other: dict[tuple[str, ...], list[int]] = {}
    for each in placed:
        if _columns(each.row) != expected:
            other.setdefault(_columns(each.row), []).append(each.number)
    if other:
        count = sum(map(len, other.values()))
        what = "; ".join(f"{name_rows(rows)}: {', '.join(names) or 'none'}" for names, rows in other.items())
        raise DataError(
            f"{count} of {len(placed)} rows of {first.origin} (split {split}) have other columns than row"
            f" {first.number}, which has {', '.join(expected)} ({what})",
            hint="give every row of a split the same columns, or put the others into a split of their own",
        )


def _require_own_ids(split: str, examples: Sequence[Example]) -> None:
    counts = Counter(example.id for example in examples)
    if twice := [name for name, count in counts.items() if count > 1]:
        rows = [example.row for example in examples if example.id in twice]
        raise DataError(
            f"{len(twice)} ids of the split {split} belong to several rows ({', '.join(twice[:5])}; {name_rows(rows)})",
            hint="make ids unique, or leave the column out",
        )
