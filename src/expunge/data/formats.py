"""Rows of a file to examples: which columns make an example, and what is wrong with a row that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from expunge.data.encode import name_rows
from expunge.data.example import Example, Turn
from expunge.errors import DataError

Row = Mapping[str, Any]
T = TypeVar("T")

EXTRAS = (
    "paraphrased_question",
    "paraphrased_answer",
    "perturbed_answer",
    "form",
    "fact",
    "subject",
    "alternate",
    "important",
)
"""Columns that suites and methods read beside the answer; kept as they are."""


class Content(NamedTuple):
    """What a row says, whatever its format."""

    turns: tuple[Turn, ...] = ()
    text: str = ""


class Format(NamedTuple):
    """A set of columns and how to read them."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], Content]


class BadRowError(ValueError):
    """What is wrong with one row; gathered, so that an error names all of them."""


def _string(row: Row, column: str, *, empty: bool = False) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise BadRowError(f"{column!r} is not text")
    if not (empty or value.strip()):
        raise BadRowError(f"{column!r} is empty")
    return value


def _messages(value: Any, column: str) -> tuple[Turn, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRowError(f"{column!r} is not a list of messages")
    turns = []
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRowError(f"{column!r} holds a message without a role")
        if not isinstance(message.get("content"), str):
            raise BadRowError(f"{column!r} holds a {message['role']} message whose content is not text")
        turns.append(Turn(message["role"], message["content"]))
    return tuple(turns)


def _conversation(turns: tuple[Turn, ...]) -> Content:
    """A conversation that ends in an answer."""
    if turns[-1].role != "assistant":
        raise BadRowError(f"the last message is a {turns[-1].role} message, not the assistant's")
    if len(turns) < 2:
        raise BadRowError("the answer has no message before it")
    if not turns[-1].content.strip():
        raise BadRowError("the last message is empty")
    return Content(turns)


def _read_messages(row: Row) -> Content:
    return _conversation(_messages(row["messages"], "messages"))


def _read_prompt(row: Row) -> Content:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise BadRowError("'prompt' and 'completion' are not both text or both messages")
    if isinstance(prompt, str):
        prompt_turns = (Turn("user", _string(row, "prompt", empty=True)),)
        return Content((*prompt_turns, Turn("assistant", _string(row, "completion"))))
    return _conversation((*_messages(prompt, "prompt"), *_messages(completion, "completion")))


def _read_question(row: Row) -> Content:
    return Content((Turn("user", _string(row, "question")), Turn("assistant", _string(row, "answer"))))


def _read_text(row: Row) -> Content:
    return Content(text=_string(row, "text"))


FORMATS = (
    Format("messages", ("messages",), _read_messages),
    Format("prompt/completion", ("prompt", "completion"), _read_prompt),
    Format("question/answer", ("question", "answer"), _read_question),
    Format("text", ("text",), _read_text),
)


def detect(rows: Sequence[Row], *, origin: str) -> Format:
    """The first format whose columns the first row has.

    Raises:
        DataError: none fits; the message lists the columns found and those accepted.
    """
    for candidate in FORMATS:
        if all(column in rows[0] for column in candidate.columns):
            return candidate
    accepted = "; ".join(" and ".join(candidate.columns) for candidate in FORMATS)
    raise DataError(
        f"{origin} has columns {', '.join(map(str, rows[0])) or '(none)'}; accepted: {accepted}",
        hint="name the file's own columns with fields, e.g. {path: ..., fields: {question: q, answer: a}}",
    )


def rename(rows: Sequence[Row], fields: Mapping[str, str], *, origin: str) -> list[Row]:
    """Rows with our column names, by `fields` (ours -> the file's).

    Raises:
        DataError: the file lacks a column that `fields` names.
    """
    if not fields:
        return list(rows)
    for ours, theirs in fields.items():
        if theirs not in rows[0]:
            raise DataError(
                f"{origin} has no column {theirs!r} (fields: {ours}); it has {', '.join(map(str, rows[0]))}",
                hint="fields maps our name to the file's: {question: q}",
            )
    taken = set(fields.values())
    return [
        {key: value for key, value in row.items() if key not in taken}
        | {ours: row[theirs] for ours, theirs in fields.items() if theirs in row}
        for row in rows
    ]


def to_examples(
    rows: Sequence[Row],
    numbers: Sequence[int],
    *,
    stem: str,
    origin: str,
    group: Callable[[int], str | None],
) -> tuple[list[Example], str]:
    """Read rows of one format.

    Args:
        rows: at least one.
        numbers: each row's place in its file.
        stem: what ids start with.
        origin: the file, for messages.
        group: the group of a row that has no `group` column.

    Returns:
        The examples and the name of the format.

    Raises:
        DataError: no format fits, or rows whose prompt or answer is missing, not text or empty; rows are named.
    """
    form = detect(rows, origin=origin)
    examples = read_each(rows, numbers, lambda row, number: _example(row, number, form, stem, group), origin=origin)
    return examples, form.name


def read_each(
    rows: Sequence[Row],
    numbers: Iterable[int],
    read: Callable[[Row, int], T],
    *,
    origin: str,
    hint: str = "mend or remove them",
) -> list[T]:
    """What is made of each row; one error names every row that nothing can be made of.

    Args:
        rows: the rows.
        numbers: of the rows, for messages.
        read: makes it of a row and its number; raises `BadRowError` where the row cannot be used.
        origin: where the rows come from, for messages.
        hint: what to do about them.

    Raises:
        DataError: rows that cannot be used; they are named, those with the same fault together.
    """
    made: list[T] = []
    bad: dict[str, list[int]] = {}
    for row, number in zip(rows, numbers, strict=True):
        try:
            made.append(read(row, number))
        except BadRowError as reason:
            bad.setdefault(str(reason), []).append(number)
    if bad:
        count = sum(map(len, bad.values()))
        what = "; ".join(f"{reason} ({name_rows(places)})" for reason, places in bad.items())
        raise DataError(f"{count} of {len(rows)} rows of {origin} cannot be used: {what}", hint=hint)
    return made


def require_columns(rows: Sequence[Row], columns: Sequence[str], *, origin: str, what: str) -> None:
    """Refuse rows of which the first lacks a column.

    Args:
        rows: at least one.
        columns: what each must have.
        origin: where the rows come from, for messages.
        what: begins the hint, which then lists the columns: `the published file`.

    Raises:
        DataError: columns are missing; they are named with those that were found.
    """
    if missing := [repr(column) for column in columns if column not in rows[0]]:
        # Of many columns the missing ones are enough to read.
        wanted = ", ".join(columns) if len(columns) <= 6 else "them"
        raise DataError(
            f"{origin} has no column{'s' * (len(missing) > 1)} {', '.join(missing)};"
            f" it has {', '.join(map(str, rows[0])) or '(none)'}",
            hint=f"{what} has {wanted}",
        )


def _example(row: Row, number: int, form: Format, stem: str, group: Callable[[int], str | None]) -> Example:
    missing = [column for column in form.columns if column not in row]
    if missing:
        raise BadRowError(f"{missing[0]!r} is missing")
    content = form.read(row)
    given = row.get("group")
    return Example(
        id=f"{stem}:{number}",
        row=number,
        turns=content.turns,
        text=content.text,
        group=group(number) if given is None else str(given),
        extra=MappingProxyType({name: _extra(row, name) for name in EXTRAS if _given(row, name)}),
    )


def _given(row: Row, name: str) -> bool:
    # Many data sets have a column of that name that means something else.
    return isinstance(row.get(name), str) if name == "subject" else row.get(name) is not None


def _extra(row: Row, name: str) -> Any:
    if name in ("alternate", "important"):
        # Only the methods that read them know what they may be, and say what is wrong.
        return row[name]
    if name != "perturbed_answer":
        return _string(row, name)
    value = row[name]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRowError(f"{name!r} is not a list of texts")
    if not all(isinstance(item, str) and item.strip() for item in value):
        raise BadRowError(f"{name!r} holds an entry that is empty or not text")
    return tuple(value)
