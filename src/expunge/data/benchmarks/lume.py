"""LUME (Ramakrishna et al., 2502.15097), the data of SemEval-2025 task 4: three tasks, each asked in two ways.

Rows are `id`, `input`, `output`, `task`; an id ends in `sc1` where a beginning is to be gone on with, in `qa0` and so
on where a question is to be answered. What stands before that is the document's own id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from expunge.config.schema import SourceSpec
from expunge.data.encode import name_rows
from expunge.data.example import Example
from expunge.data.readers import ENDINGS
from expunge.data.source import Loaded, load_examples
from expunge.errors import DataError, MetricError
from expunge.metrics.lume import Kind, lume_kind

HUB = "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public"
"""Where the task published it; the Hub asks for permission first."""
SIDES = ("forget", "retain")
TASKS = ("task1", "task2", "task3")
"""Creative documents, invented people, real documents."""
KINDS: dict[Kind, str] = {"regurgitation": "sc", "knowledge": "qa"}
"""How a row is scored -> how its id, and our split, calls it."""
MEMBERS, OTHERS = "member", "nonmember"
"""Texts that the model was trained on and is to forget, and texts that it never saw."""
MMLU = "mmlu"
"""Folder beside the rows with a copy of MMLU's questions."""

# Two of our columns stand for what no other data set has: they are taken off the examples again.
_FIELDS = {"question": "input", "answer": "output", "fact": "id", "form": "task"}
_SHARD = r"(-\d{5}-of-\d{5})?"
_ENDING = re.compile(r"(sc|qa)\d$")


class Lume(NamedTuple):
    """What a source holds."""

    rows: dict[str, tuple[Example, ...]]
    """`forget_task1_sc`, ... -> its rows, whose groups are the documents; without those that the source lacks."""
    members: tuple[Example, ...] = ()
    others: tuple[Example, ...] = ()
    mmlu: Path | None = None
    """The folder of MMLU's questions; None: there is none."""


def split_name(side: str, task: str, kind: Kind) -> str:
    """`forget_task1_sc`."""
    return f"{side}_{task}_{KINDS[kind]}"


SPLITS = tuple(split_name(side, task, kind) for side in SIDES for task in TASKS for kind in KINDS)


def load_lume(source: str) -> Lume:
    """Everything of LUME that a source holds; each part may be missing, but not all of them.

    Args:
        source: a folder, or a Hub id, of which the training folds are read. In a folder, or its `data` folder, lie
            `forget` and `retain` (also named `forget_train`, or one file per task: `forget_task2`); beside them or in
            `mia_data` the texts `member` and `nonmember`; in `mmlu` a copy of MMLU.

    Raises:
        DataError: no such folder, nothing of LUME in it, columns that are missing, ids that are there twice or do not
            say how their row is scored, or an unknown task; rows are named.
        UsageError: the Hub without the `hub` extra.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if folder.is_file():
            raise DataError(f"{source} is a file", hint="name the folder: forget and retain rows lie beside each other")
        return Lume(_by_split([part for side in SIDES for part in _load(_hub(source, side), side)]))
    files = {side: list(_files(folder, rf"{side}(_train|_task[123])?")) for side in SIDES}
    parts = [part for side, paths in files.items() for path in paths for part in _load(_spec(path), side)]
    rows = _by_split(parts)
    if not rows:
        names = ", ".join(path.name for path in sorted(folder.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{folder} has neither forget nor retain rows of LUME, but {names}",
            hint="name the folder of forget.jsonl and retain.jsonl",
        )
    mmlu = folder / MMLU
    return Lume(rows, _texts(folder, MEMBERS), _texts(folder, OTHERS), mmlu if mmlu.is_dir() else None)


class _Part(NamedTuple):
    split: str
    example: Example


def _files(folder: Path, names: str, *, within: Sequence[str] = ("", "data")) -> Iterator[Path]:
    for place in within:
        for path in sorted((folder / place).glob("*")):
            if path.suffix.lower() in ENDINGS and re.fullmatch(names + _SHARD, path.stem):
                yield path


def _spec(path: Path) -> SourceSpec:
    return SourceSpec(path=str(path), fields=_FIELDS)


def _hub(repo: str, side: str) -> SourceSpec:
    return SourceSpec(path=repo, split=f"{side}_train", fields=_FIELDS)


def _load(spec: SourceSpec, side: str) -> list[_Part]:
    loaded = load_examples(spec, tofu="", role=side, published=tuple(_FIELDS.values()))
    parts: list[_Part] = []
    bad: dict[str, list[int]] = {}
    for example in loaded.examples:
        try:
            parts.append(_part(example, side))
        except (DataError, MetricError) as reason:
            bad.setdefault(reason.message, []).append(example.row)
    if bad:
        raise _unusable(loaded, bad)
    return parts


def _unusable(loaded: Loaded, bad: dict[str, list[int]]) -> DataError:
    what = [f"{reason} ({name_rows(rows)})" for reason, rows in bad.items()]
    more = f"; and {len(what) - 3} others" if len(what) > 3 else ""
    count = sum(map(len, bad.values()))
    return DataError(
        f"{count} of {len(loaded.examples)} rows of {loaded.origin} cannot be used: {'; '.join(what[:3])}{more}",
        hint="LUME's tasks are Task1, Task2 and Task3, and its ids end in sc or qa and one digit",
    )


def _part(example: Example, side: str) -> _Part:
    given = {ours: example.extra.get(ours) for ours in ("fact", "form")}
    if missing := [_FIELDS[ours] for ours, value in given.items() if value is None]:
        raise DataError(f"{missing[0]!r} is missing")
    own_id, task = str(given["fact"]), str(given["form"]).lower()
    if task not in TASKS:
        raise DataError(f"task is {given['form']!r}")
    kind = lume_kind(own_id)
    row = replace(example, id=own_id, group=_ENDING.sub("", own_id), extra=MappingProxyType({}))
    return _Part(split_name(side, task, kind), row)


def _by_split(parts: Sequence[_Part]) -> dict[str, tuple[Example, ...]]:
    for side in SIDES:
        counts = Counter(part.example.id for part in parts if part.split.startswith(side))
        if twice := [name for name, count in counts.items() if count > 1]:
            more = ", ..." if len(twice) > 5 else ""
            raise DataError(
                f"{len(twice)} ids of the {side} rows are there twice ({', '.join(twice[:5])}{more})",
                hint="leave one file of them in the folder, and one row of each id in the file",
            )
    found = {split: tuple(part.example for part in parts if part.split == split) for split in SPLITS}
    return {split: rows for split, rows in found.items() if rows}


def _texts(folder: Path, name: str) -> tuple[Example, ...]:
    paths = list(_files(folder, name, within=("", "mia_data", "data")))
    if len(paths) > 1:
        raise DataError(f"{paths[0]} and {paths[1]} both hold {name} texts", hint="leave one of them")
    if not paths:
        return ()
    spec = SourceSpec(path=str(paths[0]), fields={"text": "document"})
    examples = load_examples(spec, tofu="", role=name, published=("document",)).examples
    return tuple(replace(example, id=f"{name}:{example.row}") for example in examples)
