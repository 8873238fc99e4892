"""Which answer tokens somebody marked as important: from words, phrases or character ranges to a mask over tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from expunge.data.encode import Dataset, Encoded, name_rows
from expunge.data.example import Example
from expunge.data.template import Template
from expunge.errors import DataError

COLUMN = "important"
"""The column of the forget rows."""
_HINT = (
    f"give every row a column {COLUMN!r} (words and phrases of its answer, [start, stop] character pairs, or the words "
    "run together as SatImp publishes them), or name a JSON file {row: words} in method.annotations"
)


class Importance(NamedTuple):
    """The annotated tokens of a dataset."""

    mask: np.ndarray
    """(supervised positions,) float32, 1 where the predicted token is important; row order."""
    without: tuple[int, ...]
    """Source rows in which no token is."""


def important_tokens(dataset: Dataset, template: Template, annotations: Mapping[str, Any] | None = None) -> Importance:
    """Find the annotated tokens among the supervised ones of every row. End tokens are never important.

    An annotation is one of
        a list of words and phrases: tokens that touch an occurrence in the answer, whole words only, case as written;
        a list of `[start, stop]` pairs: tokens that touch these characters of the answer;
        a text: the published form, important words run together; a token is important if its ASCII characters occur
            in the text and are at least two or a number (so a token may also match across two words).

    Args:
        dataset: rows whose `extra` may hold the column `important`.
        template: how the rows became tokens.
        annotations: row number or example id -> annotation; wins over the column.

    Raises:
        DataError: rows without an annotation, with a broken one, or whose words do not occur in the answer; rows are
            named. Also where no row has an important token: every weight would be zero.
    """
    found: list[np.ndarray] = []
    missing: list[int] = []
    broken: dict[str, list[int]] = {}
    for example, item in zip(dataset.examples, dataset.encoded, strict=True):
        value = _annotation(example, annotations)
        if value is None:
            missing.append(example.row)
            continue
        try:
            marked = _marked(value, example, item, template) & item.supervised & ~item.is_end
        except ValueError as reason:
            broken.setdefault(str(reason), []).append(example.row)
            continue
        found.append(marked[item.supervised])
    rows = len(dataset.examples)
    if missing:
        raise DataError(
            f"{len(missing)} of {rows} {dataset.role} rows do not say what is important ({name_rows(missing)})",
            hint=_HINT,
        )
    if broken:
        what = "; ".join(f"{reason} ({name_rows(places)})" for reason, places in broken.items())
        raise DataError(f"annotations of {dataset.role} rows cannot be used: {what}", hint=_HINT)
    if not any(marks.any() for marks in found):
        raise DataError(
            f"no token of the {rows} {dataset.role} rows is important, so every weight would be zero",
            hint="check that the annotations belong to these rows and are written as in the answers",
        )
    without = tuple(e.row for e, marks in zip(dataset.examples, found, strict=True) if not marks.any())
    return Importance(np.concatenate(found).astype(np.float32), without)


def read_annotations(path: Path) -> dict[str, Any]:
    """A JSON file of annotations: an object of row number or example id -> annotation, or a list in row order.

    Raises:
        DataError: not there, or not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the annotations {path} cannot be read: {error.strerror}", hint=_HINT) from error
    except ValueError as error:
        raise DataError(f"the annotations {path} are not JSON: {error}", hint=_HINT) from error
    if isinstance(content, list):
        return {str(row): value for row, value in enumerate(content)}
    if not isinstance(content, dict):
        raise DataError(f"the annotations {path} are neither an object nor a list", hint=_HINT)
    return content


def _annotation(example: Example, annotations: Mapping[str, Any] | None) -> Any:
    if annotations is None:
        return example.extra.get(COLUMN)
    # A window of a long text belongs to the row it was cut from.
    return annotations.get(example.id.partition("#")[0], annotations.get(str(example.row)))


def _marked(value: Any, example: Example, item: Encoded, template: Template) -> np.ndarray:
    """(L,) bool, the tokens that an annotation means.

    Raises:
        ValueError: what is wrong with it.
    """
    if isinstance(value, str):
        return np.array([_published(token, value) for token in template.tokens(item.input_ids)], dtype=bool)
    if not isinstance(value, Sequence):
        raise ValueError(f"{COLUMN!r} is neither text nor a list")
    if not example.turns and "#" in example.id:
        raise ValueError("a text cut into windows can only be annotated by words run together, not by a list")
    spans = _spans(value, example.answer)
    covers = template.answer_offsets(example, item)
    marked = np.zeros(len(item.input_ids), dtype=bool)
    for start, stop in spans:
        marked |= np.maximum(covers[:, 0], start) < np.minimum(covers[:, 1], stop)
    return marked


def _published(token: str, words: str) -> bool:
    """The rule of SatImp's release."""
    text = "".join(character for character in token if character.isascii())
    return text != "" and text in words and (len(text) >= 2 or text.isnumeric())


def _spans(value: Sequence[Any], answer: str) -> list[tuple[int, int]]:
    """Character ranges of the answer.

    Raises:
        ValueError: entries of another kind, or that are not in the answer.
    """
    if all(isinstance(entry, str) for entry in value):
        return [span for phrase in value for span in _occurrences(phrase, answer)]
    spans: list[tuple[int, int]] = []
    for entry in value:
        if not (isinstance(entry, Sequence) and len(entry) == 2 and all(type(number) is int for number in entry)):
            raise ValueError(f"{COLUMN!r} holds {entry!r} beside or in place of words and [start, stop] pairs")
        start, stop = entry
        if not 0 <= start < stop <= len(answer):
            raise ValueError(f"characters {start} to {stop} are not in an answer of {len(answer)}")
        spans.append((start, stop))
    return spans


def _occurrences(phrase: str, answer: str) -> list[tuple[int, int]]:
    text = phrase.strip()
    # A boundary only where the phrase itself ends in a letter or digit: "C++" has none on its right.
    left, right = (r"(?<!\w)" if text[:1].isalnum() else "", r"(?!\w)" if text[-1:].isalnum() else "")
    spans = [match.span() for match in re.finditer(left + re.escape(text) + right, answer)] if text else []
    if not spans:
        raise ValueError(f"{phrase!r} does not occur in the answer")
    return spans
