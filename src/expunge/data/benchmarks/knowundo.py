"""KnowUnDo (Tian et al., 2407.01920): what is to be unlearned, and what is near it and to be kept, in two domains.

Each domain (`copyright`, `privacy`) has two files, `unlearn` and `retention`, and each of those one object with the
lists `train` and `val`; a row has a question in `text` and its answer in `labels`. The release measures on `val`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expunge.data.benchmarks.place import Place, Row, Rows, hub_rows, local_file, read_examples, read_rows, text
from expunge.data.example import ASKED, Example, Turn
from expunge.data.readers import some_names
from expunge.errors import DataError, UsageError

HUB = "zjunlp/KnowUnDo"
"""Where KnowUnDo is published."""
DOMAINS = ("copyright", "privacy")
FILES = {"forget": "unlearn", "retain": "retention"}
"""Split -> the file its rows are in."""
COLUMNS = ("text", "labels")
MEASURED = "val"
_BETWEEN = "\n\n"
"""What stands between question and answer in the release, which uses no chat template."""


def domain_of(place: Place) -> str:
    """Which domain is meant: the one that is named, else the only one there.

    Raises:
        UsageError: an unknown domain, or none is named and there are two.
        DataError: a folder holds neither.
    """
    if place.part is not None:
        if place.part not in DOMAINS:
            raise UsageError(f"KnowUnDo has no domain {place.part!r}", hint=f"it has: {', '.join(DOMAINS)}")
        return place.part
    there = list(DOMAINS)
    if place.folder is not None:
        if _holds(place.folder):
            return place.folder.resolve().name
        there = [name for name in DOMAINS if _holds(place.folder / name)]
    if not there:
        raise DataError(
            f"{place.where} holds no domain of KnowUnDo: it has {_names(place)}, but neither unlearn.json and"
            " retention.json nor a folder copyright or privacy that has them",
            hint="name the folder of a domain, or the one that holds them",
        )
    if len(there) > 1:
        raise UsageError(
            f"{place.where} holds {' and '.join(there)}, and a model is measured on one of them",
            hint=f"name it: --source '{place.where}#{there[-1]}'",
        )
    return there[0]


def _names(place: Place) -> str:
    return some_names(sorted(entry.name for entry in place.folder.iterdir())) if place.folder else "no files"


def _holds(folder: Path) -> bool:
    return any(local_file(folder, stem) for stem in FILES.values())


def load_split(place: Place, domain: str, split: str, *, limit: int | None = None) -> tuple[Example, ...]:
    """The measured rows of a split: the question, an empty line, the answer.

    Args:
        place: a folder that holds the domain's files or folders of the domains, or a Hub id.
        domain: `domain_of` the place.
        split: `forget` or `retain`.
        limit: only the first rows.

    Raises:
        DataError: the file is missing, has no rows to measure on, or they lack columns or cannot be used.
    """
    stem = FILES[split]
    if place.folder is None:
        found = hub_rows(place.where, name=domain, split=stem)
    else:
        path = local_file(place.folder, stem) or local_file(place.folder / domain, stem)
        if path is None:
            raise DataError(f"{place.folder} has no {stem}.json", hint="a domain needs unlearn.json and retention.json")
        found = read_rows(path)
    rows = _measured(found)
    rows = rows._replace(rows=rows.rows[:limit])
    return read_examples(rows, COLUMNS, lambda row, number: _example(row, number, f"{domain}/{stem}"))


def _measured(found: Rows) -> Rows:
    """The list `val` of the one object that a published file is; plain rows as they are."""
    first = found.rows[0] if found.rows else {}
    if MEASURED not in first and "train" not in first:
        return found
    rows = first.get(MEASURED)
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{found.origin}: {MEASURED!r} is not a list of rows", hint="use the published file")
    return Rows(rows, f"{found.origin}, {MEASURED}")


def _example(row: Row, number: int, stem: str) -> Example:
    question = text(row, "text")
    turns = (Turn("user", question + _BETWEEN), Turn("assistant", text(row, "labels")))
    return Example(f"{stem}:{number}", number, turns, extra={ASKED: question})
