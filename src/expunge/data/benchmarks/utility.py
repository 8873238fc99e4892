"""What a model should still be able to do: ARC, HellaSwag, OpenBookQA and TruthfulQA, as questions with whole answers.

Prompts and options are those of lm-evaluation-harness, letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from expunge.data.benchmarks.utility_rows import Item, Reader, arc, hellaswag, mc1, mc2, openbookqa, read_items
from expunge.data.hub import load_hub
from expunge.data.readers import ENDINGS, Rows, missing_file, read_file, read_folder
from expunge.errors import DataError


class Hub(NamedTuple):
    """Where a task is published."""

    repo: str
    config: str | None
    split: str


class Task(NamedTuple):
    """One set of questions."""

    file: str
    """What the name of its file or folder holds, in letters and digits alone."""
    hub: Hub
    read: Reader


_TRUTHFUL = Hub("truthfulqa/truthful_qa", "multiple_choice", "validation")
TASKS: dict[str, Task] = {
    "arc_easy": Task("arceasy", Hub("allenai/ai2_arc", "ARC-Easy", "test"), arc),
    "arc_challenge": Task("arcchallenge", Hub("allenai/ai2_arc", "ARC-Challenge", "test"), arc),
    "hellaswag": Task("hellaswag", Hub("Rowan/hellaswag", None, "validation"), hellaswag),
    "openbookqa": Task("openbookqa", Hub("allenai/openbookqa", "main", "test"), openbookqa),
    "truthfulqa_mc1": Task("truthfulqa", _TRUTHFUL, mc1),
    "truthfulqa_mc2": Task("truthfulqa", _TRUTHFUL, mc2),
}
"""Name of a split, which is the harness's name of the task -> what it is."""


class Questions(NamedTuple):
    """Items by task."""

    items: dict[str, list[Item]]
    revisions: dict[str, str]
    """Task -> commit on the Hub; empty for local files."""


def load_utility(source: str | None) -> Questions:
    """The questions of each task.

    Args:
        source: a folder with a file or folder per task, the task as part of its name (`arc_easy.jsonl`,
            `TruthfulQA.csv`, `ARC-Challenge/test-00000-of-00001.parquet`), some of the tasks being enough; or one such
            file. None: all of them from the Hub.

    Raises:
        DataError: no such file, no task in it, two files of one task, or rows that cannot be used.
        UsageError: the Hub without the `hub` extra.
    """
    if source is None:
        return _from_hub()
    path = Path(source).expanduser()
    if not path.exists():
        raise missing_file(path)
    entries = [path] if path.is_file() else sorted(each for each in path.iterdir() if _holds_rows(each))
    items = {name: read_items(rows, task.read, origin=where) for name, task, rows, where in _local(entries, path)}
    if not items:
        raise DataError(
            f"{path} holds no questions of a task; it has {', '.join(each.name for each in entries) or 'no data file'}",
            hint=f"name a file after its task: {', '.join(TASKS)}, or TruthfulQA for both of its forms",
        )
    return Questions(items, {})


def _from_hub() -> Questions:
    items: dict[str, list[Item]] = {}
    revisions: dict[str, str] = {}
    for name, (_, hub, read) in TASKS.items():
        part = load_hub(hub.repo, name=hub.config, split=hub.split, revision=None)
        items[name] = read_items(part.rows, read, origin=f"{hub.repo}:{hub.split}")
        if part.revision:
            revisions[name] = part.revision
    return Questions(items, revisions)


def _local(entries: Sequence[Path], folder: Path) -> Iterator[tuple[str, Task, Rows, str]]:
    for name, task in TASKS.items():
        named = [each for each in entries if task.file in re.sub("[^a-z0-9]", "", each.stem.lower())]
        if len(named) > 1:
            raise DataError(
                f"{folder} holds {len(named)} files named after {name}: {', '.join(each.name for each in named)}",
                hint="leave one of them there, or name the file itself",
            )
        for each in named:
            yield name, task, _rows(each, task.hub.split), str(each)


def _rows(path: Path, split: str) -> Rows:
    """The rows of a file, or of the published split of a folder, or of the only one that it has."""
    if path.is_file():
        return read_file(path)
    published = any(any(place.glob(f"{split}*")) for place in (path, path / "data"))
    return read_folder(path, split if published else None)[0]


def _holds_rows(path: Path) -> bool:
    return path.is_dir() if path.suffix.lower() not in ENDINGS else path.is_file()
