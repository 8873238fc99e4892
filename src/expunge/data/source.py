"""Where rows come from: a local file or folder, the Hub, or a TOFU split, to one list of examples."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from expunge.config.schema import SourceSpec
from expunge.data.benchmarks import tofu as tofu_files
from expunge.data.example import Example
from expunge.data.formats import rename, require_columns, to_examples
from expunge.data.hub import load_hub
from expunge.data.overlap import check_overlap
from expunge.data.readers import ENDINGS, Rows, missing_file, read_file, read_folder
from expunge.errors import DataError, UsageError

__all__ = ["Loaded", "check_overlap", "load_examples"]

REFUSALS = "refusals"
"""The role whose files may hold plain lines, however they end."""
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<split>[\w.-]+))?")


class Loaded(NamedTuple):
    """The rows of one role."""

    examples: list[Example]
    format: str
    """`question/answer`, `text`, ...; several joined by ` + `."""
    digest: str
    """SHA-256 of what the rows say: turns, text, group and extra columns, not where they came from."""
    revision: str | None
    """Hub commit; several joined by ` + `; None for local files."""
    origin: str
    """Where they came from, to print."""


class _Raw(NamedTuple):
    rows: Rows
    stem: str
    origin: str
    revision: str | None = None
    group: Callable[[int], str | None] = lambda row: None


def load_examples(
    source: SourceSpec | Sequence[SourceSpec], *, tofu: str, role: str, published: Sequence[str] = ()
) -> Loaded:
    """Load one source, or several one after another.

    Args:
        source: paths, Hub ids or `tofu:NAME`.
        tofu: where TOFU lies: a folder of its files, or a Hub id.
        role: `forget`, `retain`, ...: named in errors. Files of `refusals` may hold plain lines.
        published: columns of a benchmark's published file, where the benchmark and no recipe says how they are read;
            an error about them then speaks of that file.

    Raises:
        DataError: a missing, empty or unreadable file, columns or rows that cannot be used; rows are named.
        UsageError: an unknown TOFU name, an ill-formed slice, or the Hub without the `hub` extra.
    """
    specs = [source] if isinstance(source, SourceSpec) else list(source)
    if not specs:
        raise UsageError(f"no {role} data: data.{role} is empty", hint=f"set data.{role}=FILE, a Hub id or tofu:NAME")
    parts = [_load(spec, tofu, plain=role == REFUSALS, published=published) for spec in specs]
    examples = _unique([part.examples for part in parts])
    revisions = [part.revision for part in parts if part.revision]
    return Loaded(
        examples=examples,
        format=" + ".join(dict.fromkeys(part.format for part in parts)),
        digest=_digest(examples),
        revision=" + ".join(dict.fromkeys(revisions)) or None,
        origin=" + ".join(part.origin for part in parts),
    )


def _load(spec: SourceSpec, tofu: str, *, plain: bool, published: Sequence[str]) -> Loaded:
    raw = _read(spec, tofu, plain=plain)
    if not raw.rows:
        raise DataError(f"{raw.origin} is empty", hint="it must hold at least one row")
    require_columns(raw.rows, published, origin=raw.origin, what="the published file")
    numbers = _slice(len(raw.rows), spec.rows, raw.origin)
    rows = rename([raw.rows[number] for number in numbers], spec.fields, origin=raw.origin)
    examples, name = to_examples(rows, numbers, stem=raw.stem, origin=raw.origin, group=raw.group)
    return Loaded(examples, name, "", raw.revision, f"{raw.origin}[{spec.rows}]" if spec.rows else raw.origin)


def _read(spec: SourceSpec, tofu: str, *, plain: bool) -> _Raw:
    if spec.path.startswith(tofu_files.PREFIX):
        return _read_tofu(tofu_files.check_name(spec.path.removeprefix(tofu_files.PREFIX)), spec, tofu)
    path = Path(spec.path).expanduser()
    if path.is_dir():
        rows, files = read_folder(path, spec.split, plain=plain)
        return _Raw(rows, files[0].stem, str(path) if len(files) > 1 else str(files[0]))
    if path.is_file():
        return _Raw(read_file(path, plain=plain), path.stem, spec.path)
    match = _HUB_ID.fullmatch(spec.path)
    if match is None or path.suffix in ENDINGS or path.parent.is_dir():
        raise missing_file(path)
    split = match["split"] or spec.split or "train"
    return _read_hub(match["repo"], name=spec.name, split=split, revision=spec.revision)


def _read_hub(repo: str, *, name: str | None, split: str, revision: str | None) -> _Raw:
    found = load_hub(repo, name=name, split=split, revision=revision)
    stem = "-".join([repo.rpartition("/")[2], *([name] if name else []), split])
    return _Raw(found.rows, stem, f"{repo}{f' {name}' if name else ''}:{split}", found.revision)


def _read_tofu(name: str, spec: SourceSpec, tofu: str) -> _Raw:
    folder = Path(tofu).expanduser()
    if folder.is_dir():
        path = tofu_files.local_file(name, folder)
        raw = _Raw(read_file(path, plain=name in tofu_files.LINES), name, str(path))
    elif _HUB_ID.fullmatch(tofu) and not folder.parent.is_dir():
        raw = _read_hub(tofu, name=name, split="train", revision=spec.revision)._replace(stem=name)
    else:
        raise DataError(f"no TOFU folder at {tofu}", hint="set data.tofu to a folder of TOFU files or a Hub id")
    return raw._replace(group=lambda row: tofu_files.group(name, row))


def _slice(count: int, text: str | None, origin: str) -> list[int]:
    """The row numbers a Python slice such as `240:400` or `::2` picks."""
    if text is None:
        return list(range(count))
    try:
        bounds = [int(part) if part.strip() else None for part in text.split(":")]
        if not 2 <= len(bounds) <= 3:
            raise ValueError(text)
        numbers = list(range(count))[slice(*bounds)]
    except ValueError as error:
        raise UsageError(f"rows is {text!r}", hint="write a Python slice: rows: '240:400'") from error
    if not numbers:
        raise DataError(f"rows {text} of {origin} picks none of its {count} rows", hint="widen the slice")
    return numbers


def _unique(parts: Sequence[Sequence[Example]]) -> list[Example]:
    """The parts one after another; where two sources give the same id, the later one says which source it is."""
    seen: set[str] = set()
    examples: list[Example] = []
    for number, part in enumerate(parts, start=1):
        for example in part:
            own = example if example.id not in seen else replace(example, id=f"{example.id}@{number}")
            seen.add(own.id)
            examples.append(own)
    return examples


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        content: list[Any] = [example.turns, example.text, example.group, dict(example.extra)]
        digest.update(json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()
