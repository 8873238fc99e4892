"""WMDP (Li et al., 2403.03218): multiple-choice questions near hazardous knowledge, in three domains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from expunge.data.hub import is_hub_id, load_hub
from expunge.data.multiple_choice import Question, read_questions
from expunge.data.readers import ENDINGS, missing_file, read_file, read_folder
from expunge.errors import DataError

HUB = "cais/wmdp"
DOMAINS = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}
"""Name of a domain -> what the prompt calls it."""


class Benchmark(NamedTuple):
    """The questions of a benchmark by the name of their split."""

    questions: dict[str, list[Question]]
    revision: str | None = None
    """Commit on the Hub; None for local files."""


def load_wmdp(source: str) -> Benchmark:
    """The questions of each domain.

    Args:
        source: a Hub id; a folder with one file or folder per domain, each of which has the domain as a word of its
            name (`wmdp-bio/test-00000-of-00001.parquet`, `bio_questions.json`, `my_cyber.csv`); or one such file. A
            folder may hold some of the domains only.

    Raises:
        DataError: no such file, no domain in it, two files of one domain, or rows that cannot be used.
        UsageError: the Hub without the `hub` extra.
    """
    path = Path(source).expanduser()
    if path.exists():
        return Benchmark(_local(path))
    if not is_hub_id(source):
        raise missing_file(path)
    found: dict[str, list[Question]] = {}
    revision = None
    for domain in DOMAINS:
        part = load_hub(source, name=f"wmdp-{domain}", split="test", revision=revision)
        revision = part.revision
        found[domain] = read_questions(part.rows, origin=f"{source} wmdp-{domain}:test")
    return Benchmark(found, revision)


def _local(path: Path) -> dict[str, list[Question]]:
    entries = [path] if path.is_file() else [each for each in sorted(path.iterdir()) if _holds_rows(each)]
    found: dict[str, list[Question]] = {}
    for domain in DOMAINS:
        named = [each for each in entries if domain in re.findall("[a-z]+", each.stem.lower())]
        if len(named) > 1:
            raise DataError(
                f"{path} holds {len(named)} files named after {domain}: {', '.join(each.name for each in named)}",
                hint="leave one of them there, or name the file itself",
            )
        for each in named:
            rows = read_folder(each, None)[0] if each.is_dir() else read_file(each)
            found[domain] = read_questions(rows, origin=str(each))
    if not found:
        raise DataError(
            f"{path} holds no WMDP file; it has {', '.join(each.name for each in entries) or 'no data file'}",
            hint=f"a file's or folder's name has one of the words {', '.join(DOMAINS)} in it: wmdp-bio.jsonl",
        )
    return found


def _holds_rows(path: Path) -> bool:
    return path.is_dir() if path.suffix.lower() not in ENDINGS else path.is_file()
