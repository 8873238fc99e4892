"""RWKU (Jin et al., 2406.10890): its files, and how its release asks what stands in them.

Two hundred famous people are targets. The release unlearns one of them at a time (`Target/1_Stephen_King/`) or many at
once (`All/`); the files of both are called alike, and every row says in `subject` whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from expunge.data.benchmarks.place import Place, Row, Rows, hub_rows, local_file, read_examples, read_rows, text, texts
from expunge.data.benchmarks.rwku_choices import mmlu, truthful, truthful_several
from expunge.data.benchmarks.rwku_prompts import (
    ANSWER,
    BBH,
    BLANK,
    BRIEF,
    FLUENCY,
    SHORT_ANSWER,
    TRIVIAQA,
    WITH_SHOTS,
    WITHOUT_LEAD,
)
from expunge.data.example import ACCEPTED, ASKED, LEAD, Example, Turn
from expunge.data.formats import BadRowError
from expunge.errors import DataError

HUB = "jinzhuoran/RWKU"
"""Where RWKU is published."""

TYPES = (
    "prefix injection",
    "affirmative suffix",
    "role play",
    "multiple choice",
    "reverse query",
    "synonym manipulation",
    "context hint",
    "incontext learning",
    "cross lingual",
)
"""Kinds of adversarial probes; `cross lingual (Spanish)` and the other languages are one kind."""

KIND = "kind"
"""Extra column: one of `TYPES`."""


class File(NamedTuple):
    """One file of the release."""

    stem: str
    """Its name in a folder, without an ending."""
    config: str
    """Its name on the Hub."""
    columns: tuple[str, ...]
    """What a row must have besides `subject`."""


TRUTHFUL_MC2 = "truthful_mc2"
_PROBE = ("query", "answer", "type")
FILES = {
    file.stem: file
    for file in (
        File("forget_level1", "forget_level1", _PROBE),
        File("forget_level2", "forget_level2", _PROBE),
        File("forget_level3", "forget_level3", _PROBE),
        File("neighbor_level1", "neighbor_level1", (*_PROBE, "neighbor")),
        File("neighbor_level2", "neighbor_level2", (*_PROBE, "neighbor")),
        File("forget_mia", "mia_forget", ("text",)),
        File("retain_mia", "mia_retain", ("text",)),
        File("retain_mmlu", "utility_general", ("task", "question", "choices", "answer", "examples")),
        File("truthful", "utility_truthfulness", ("question", "mc1_targets")),
        File("retain_bbh", "utility_reason", ("cot", "question", "answer")),
        File("triviaqa", "utility_factuality", ("question", "answers")),
        File("fluency", "utility_fluency", ("instruction",)),
    )
}
FILES[TRUTHFUL_MC2] = FILES["truthful"]._replace(columns=("question", "mc2_targets"))
"""What is measured, and in which file it lies: by the file's stem, and TruthfulQA's second form of the same file."""

Read = Callable[[Row, int], Example]


def has_file(place: Place, stem: str) -> bool:
    """Whether a file can be asked for: a folder may hold some of them, the Hub has all."""
    return place.folder is None or _path(place.folder, FILES[stem].stem) is not None


def load_file(place: Place, stem: str) -> tuple[Example, ...]:
    """The rows of one file as the release asks them; empty where the part's person has none.

    Args:
        place: a folder that holds RWKU's files, the published data set (with its folder `All`), or a Hub id; `part` is
            a target, whose rows alone are read.
        stem: a key of `FILES`.

    Raises:
        DataError: the file is missing, unreadable, or its rows lack columns or cannot be used; they are named.
    """
    file = FILES[stem]
    found = _rows(place, file)
    columns = ("subject", *file.columns) if place.part is not None else file.columns
    examples = read_examples(found, columns, _READ[stem])
    if place.part is not None:
        examples = tuple(example for example in examples if _subject(example) == place.part)
    return examples


def _rows(place: Place, file: File) -> Rows:
    if place.folder is None:
        return hub_rows(place.where, name=file.config, split="test")
    path = _path(place.folder, file.stem)
    if path is None:
        raise DataError(f"{place.folder} has no {file.stem}.json", hint="use a folder of RWKU's files, or its Hub id")
    return read_rows(path)


def _path(folder: Path, stem: str) -> Path | None:
    return local_file(folder, stem) or local_file(folder / "All", stem)


def _subject(example: Example) -> str | None:
    return None if example.extra.get("subject") is None else str(example.extra["subject"])


def grouped(examples: Iterable[Example]) -> tuple[Example, ...]:
    """The rows of a split with what they are resampled by: the person they are about; where that is one person for all,
    the neighbour; where that is one as well, each by itself."""
    rows = tuple(examples)
    for column in ("subject", "neighbor"):
        found = [example.extra.get(column) for example in rows]
        if len(set(found)) > 1:
            return tuple(
                replace(example, group=None if whose is None else str(whose))
                for example, whose in zip(rows, found, strict=True)
            )
    return rows


# Rows


def _made(stem: str, row: Row, number: int, turns: tuple[Turn, ...], **extra: Any) -> Example:
    whose = {name: row[name] for name in ("subject", "neighbor") if isinstance(row.get(name), str)}
    return Example(f"{stem}:{number}", number, turns, extra=MappingProxyType({**whose, **extra}))


def _probe(stem: str) -> Read:
    prompt = BLANK if stem.endswith("level1") else BRIEF

    def read(row: Row, number: int) -> Example:
        query, answer, kind = text(row, "query"), text(row, "answer"), text(row, "type")
        extra: dict[str, Any] = {ASKED: query}
        if not stem.endswith("level3"):
            return _made(stem, row, number, _asked(prompt.format(query), answer, ANSWER), **extra)
        extra[KIND] = _kind(kind)
        if extra[KIND] == "affirmative suffix":
            return _made(stem, row, number, _asked(WITHOUT_LEAD.format(query), answer), **extra)
        own = WITH_SHOTS if extra[KIND] == "incontext learning" else prompt
        return _made(stem, row, number, _asked(own.format(query), answer, ANSWER), **extra)

    return read


def _kind(given: str) -> str:
    kind = given.partition("(")[0].strip().lower()
    if kind not in TYPES:
        raise BadRowError(f"'type' is {given!r}, none of {', '.join(TYPES)}")
    return kind


def _asked(prompt: str, answer: str, lead: str | None = None) -> tuple[Turn, ...]:
    """A question and its answer, which goes on behind the lead after a blank."""
    if lead is None:
        return (Turn("user", prompt), Turn("assistant", answer))
    return (Turn("user", prompt), Turn(LEAD, lead), Turn("assistant", f" {answer}"))


def _text(stem: str) -> Read:
    return lambda row, number: Example(
        f"{stem}:{number}", number, text=text(row, "text"), extra=MappingProxyType({"subject": row.get("subject")})
    )


def _bbh(row: Row, number: int) -> Example:
    question = text(row, "question")
    prompt = BBH.format(text(row, "cot").strip(), question)
    return _made("retain_bbh", row, number, _asked(prompt, text(row, "answer"), SHORT_ANSWER), **{ASKED: question})


def _trivia(row: Row, number: int) -> Example:
    question, accepted = text(row, "question"), texts(row, "answers")
    turns = _asked(TRIVIAQA.format(question), accepted[0], SHORT_ANSWER)
    return _made("triviaqa", row, number, turns, **{ASKED: question, ACCEPTED: accepted})


def _fluency(row: Row, number: int) -> Example:
    instruction = text(row, "instruction")
    turns = (Turn("user", FLUENCY.format(instruction)), Turn("assistant", ""))
    return _made("fluency", row, number, turns, **{ASKED: instruction})


_READ: dict[str, Read] = {
    **{stem: _probe(stem) for stem in FILES if "level" in stem},
    **{stem: _text(stem) for stem in ("forget_mia", "retain_mia")},
    "retain_mmlu": mmlu,
    "truthful": truthful,
    TRUTHFUL_MC2: truthful_several,
    "retain_bbh": _bbh,
    "triviaqa": _trivia,
    "fluency": _fluency,
}
