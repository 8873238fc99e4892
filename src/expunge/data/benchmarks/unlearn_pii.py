"""UnlearnPII (Parii et al., NLLP 2025): invented people, their personal data, and four ways to ask for it.

A row is a question about one person with its answer, five paraphrases of both, five wrong answers, and the same fact
turned round: the data is given, and the person asked for. `subject_pii` lists the strings that must not come out.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from expunge.data.benchmarks.place import Place, Row, hub_rows, read_examples, read_rows, text, texts
from expunge.data.example import PII, Example, Turn
from expunge.data.readers import ENDINGS
from expunge.errors import DataError, UsageError

NUMBERS = range(1, 6)
"""Of the paraphrases, and of the wrong answers."""
_PARAPHRASES = tuple(f"paraphrased_{what}_{number}" for number in NUMBERS for what in ("question", "answer"))
_WRONG = tuple(f"perturbed_answer_{number}" for number in NUMBERS)
COLUMNS = (
    "question",
    "answer",
    "subject",
    "subject_pii",
    "inverted_question",
    "inverted_answer",
    *_PARAPHRASES,
    *_WRONG,
)
"""What every row has."""
_SIDE = re.compile(r"(?P<side>forget|retain)\d+")


class Rows(NamedTuple):
    """One side's rows, asked in each way."""

    name: str
    """`forget1`, `retain50`, ..."""
    direct: tuple[Example, ...]
    paraphrased: tuple[Example, ...]
    """Five of each direct row, in its order."""
    inverted: tuple[Example, ...]


def load_side(place: Place, side: str, *, limit: int | None = None) -> Rows:
    """The rows of one side.

    Args:
        place: a folder with one file per side (`forget1.json`, `retain50.json`); where it has several of a side, `part`
            names the one (`#forget1`). Or a Hub id whose splits are called so.
        side: `forget` or `retain`.
        limit: only the first rows.

    Raises:
        UsageError: a folder has several files of the side, or a Hub id needs the name of its forget split.
        DataError: there is none, or its rows lack columns or cannot be used; they are named.
    """
    name = _name(place, side)
    found = read_rows(_files(place.folder)[name]) if place.folder else hub_rows(place.where, name=None, split=name)
    found = found._replace(rows=found.rows[:limit])
    return Rows(
        name,
        read_examples(found, COLUMNS, lambda row, number: _direct(row, number, name)),
        read_examples(found, COLUMNS, lambda row, number: [_paraphrased(row, number, name, n) for n in NUMBERS]),
        read_examples(found, COLUMNS, lambda row, number: _inverted(row, number, name)),
    )


def _name(place: Place, side: str) -> str:
    if place.part is not None and place.part.startswith(side):
        chosen = place.part
    elif place.folder is None:
        chosen = "retain50" if side == "retain" else ""
    else:
        chosen = _only([name for name in _files(place.folder) if name.startswith(side)], place, side)
    if not chosen:
        raise UsageError(
            f"{place.where} is not a folder, so which forget rows are meant has to be said",
            hint=f"name its split: --source '{place.where}#forget1'",
        )
    if place.folder is not None and chosen not in _files(place.folder):
        raise DataError(
            f"{place.folder} has no {chosen}.json", hint=f"it has {', '.join(_files(place.folder)) or 'no data file'}"
        )
    return chosen


def _only(names: list[str], place: Place, side: str) -> str:
    if not names:
        raise DataError(
            f"{place.folder} has no {side} rows",
            hint="it must hold UnlearnPII's files, such as forget1.json, retain50.json",
        )
    if len(names) > 1:
        raise UsageError(
            f"{place.folder} has several {side} files: {', '.join(names)}",
            hint=f"name one: --source '{place.where}#{names[0]}'"
            if side == "forget"
            else "keep one retain file in the folder",
        )
    return names[0]


def _files(folder: Path) -> dict[str, Path]:
    paths = sorted(path for path in folder.glob("*") if path.suffix in ENDINGS)
    return {path.stem: path for path in paths if _SIDE.fullmatch(path.stem)}


def _direct(row: Row, number: int, name: str) -> Example:
    extra = {
        "paraphrased_answer": text(row, "paraphrased_answer_1"),
        "perturbed_answer": tuple(text(row, column) for column in _WRONG),
        PII: texts(row, "subject_pii"),
    }
    return _made(row, number, f"{name}:{number}", "question", "answer", extra)


def _paraphrased(row: Row, number: int, name: str, which: int) -> Example:
    question, answer = f"paraphrased_question_{which}", f"paraphrased_answer_{which}"
    return _made(row, number, f"{name}:{number}/paraphrase {which}", question, answer, {PII: texts(row, "subject_pii")})


def _inverted(row: Row, number: int, name: str) -> Example:
    extra = {PII: (text(row, "subject"),)}
    return _made(row, number, f"{name}:{number}/inverted", "inverted_question", "inverted_answer", extra)


def _made(row: Row, number: int, id: str, question: str, answer: str, extra: dict[str, Any]) -> Example:
    turns = (Turn("user", text(row, question)), Turn("assistant", text(row, answer)))
    return Example(id, number, turns, group=text(row, "subject"), extra=MappingProxyType(extra))
