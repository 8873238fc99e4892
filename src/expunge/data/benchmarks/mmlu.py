"""MMLU (Hendrycks et al., 2009.03300): multiple-choice questions in 57 subjects, with rows to take shots from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from expunge.data.hub import is_hub_id, load_hub
from expunge.data.multiple_choice import Question, read_questions
from expunge.data.readers import ENDINGS, Rows, missing_file, read_file, read_folder
from expunge.errors import DataError

HUB = "cais/mmlu"
TEST, DEV = "test", "dev"
CATEGORIES: dict[str, tuple[str, ...]] = {
    "stem": (
        *("abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry"),
        *("college_computer_science", "college_mathematics", "college_physics", "computer_security"),
        *("conceptual_physics", "electrical_engineering", "elementary_mathematics", "high_school_biology"),
        *("high_school_chemistry", "high_school_computer_science", "high_school_mathematics"),
        *("high_school_physics", "high_school_statistics", "machine_learning"),
    ),
    "humanities": (
        *("formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history"),
        *("international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios"),
        *("philosophy", "prehistory", "professional_law", "world_religions"),
    ),
    "social_sciences": (
        *("econometrics", "high_school_geography", "high_school_government_and_politics"),
        *("high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology", "human_sexuality"),
        *("professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy"),
    ),
    "other": (
        *("business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging", "management"),
        *("marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting"),
        *("professional_medicine", "virology"),
    ),
}
"""Category -> its subjects, as lm-evaluation-harness groups them."""


class Mmlu(NamedTuple):
    """Questions and rows to take shots from, by subject."""

    questions: dict[str, list[Question]]
    shots: dict[str, list[Question]]
    """A pool for all subjects stands under the empty name."""
    revision: str | None = None
    """Commit on the Hub; None for local files."""

    def pool(self, subject: str) -> list[Question]:
        """The rows a subject takes its shots from, in their order."""
        return self.shots.get(subject) or self.shots.get("", [])


class _Part(NamedTuple):
    """Rows of one file or Hub split."""

    subject: str | None
    """Whom its name says they belong to; None: their own column says it."""
    split: str
    rows: Rows
    origin: str


def load_mmlu(source: str, *, with_shots: bool = True) -> Mmlu:
    """The questions of each subject, and the rows that shots are taken from.

    Args:
        source: a Hub id, or a folder: of the Hub's folders (`all/`, or one per subject), of files `test` and `dev`
            whose rows have a column `subject`, or of one file per subject (`virology.jsonl`, `mmlu_law.csv`), beside
            them `dev` for all or `virology_dev` for one of them.
        with_shots: read those rows too.

    Raises:
        DataError: no such folder, no questions, rows without a subject, two files of one subject, or rows that cannot
            be used.
        UsageError: the Hub without the `hub` extra.
    """
    path = Path(source).expanduser()
    revision = None
    if path.exists():
        parts = list(_folder(path) if path.is_dir() else _file(path))
    elif is_hub_id(source):
        parts = []
        for split in (TEST, DEV) if with_shots else (TEST,):
            part = load_hub(source, name="all", split=split, revision=revision)
            revision = part.revision
            parts.append(_Part(None, split, part.rows, f"{source} all:{split}"))
    else:
        raise missing_file(path)
    questions = _by_subject([part for part in parts if part.split == TEST], every_row=True)
    if not questions:
        raise DataError(f"{path} holds no questions", hint=f"accepted: {', '.join(ENDINGS)}")
    dev = [part for part in parts if part.split == DEV] if with_shots else []
    return Mmlu(questions, _by_subject(dev, every_row=False), revision)


def _folder(path: Path) -> Iterator[_Part]:
    if (path / "all").is_dir():
        yield from _splits(path / "all", None)
        return
    for inner in sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith(".")):
        yield from _splits(inner, inner.name)
    for file in sorted(each for each in path.iterdir() if each.suffix.lower() in ENDINGS):
        yield from _file(file)


def _splits(folder: Path, subject: str | None) -> Iterator[_Part]:
    """The test and dev rows of one of the Hub's folders."""
    for split in (TEST, DEV):
        if any(folder.glob(f"{split}*")):
            yield _Part(subject, split, read_folder(folder, split)[0], f"{folder}:{split}")


def _file(path: Path) -> Iterator[_Part]:
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    subject, _, split = stem.rpartition("_") if stem.endswith((f"_{TEST}", f"_{DEV}")) else (stem, "", TEST)
    if stem in (TEST, DEV):
        subject, split = "", stem
    yield _Part(subject.removeprefix("mmlu_") or None, split, read_file(path), str(path))


def _by_subject(parts: list[_Part], *, every_row: bool) -> dict[str, list[Question]]:
    """Questions by subject; rows that name none are an error with `every_row`, else a pool for all."""
    found: dict[str, list[Question]] = {}
    origins: dict[str, str] = {}
    for part in parts:
        for question in read_questions(part.rows, origin=part.origin):
            name = _name(part.subject or question.subject or "")
            if every_row and not name:
                raise DataError(
                    f"{part.origin} row {question.row} names no subject",
                    hint="add a column subject, or keep one file per subject, named after it",
                )
            if part.subject and origins.setdefault(name, part.origin) != part.origin:
                raise DataError(
                    f"{origins[name]} and {part.origin} both hold {name}", hint="leave one of them in the folder"
                )
            found.setdefault(name, []).append(question)
    return found


def _name(subject: str) -> str:
    """A subject as a metric's name spells it: lower case, words joined by `_`."""
    return re.sub(r"[^a-z0-9]+", "_", subject.lower()).strip("_")
