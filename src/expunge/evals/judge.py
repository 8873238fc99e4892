"""What models that did not write them make of stored greedy answers: one table for each such model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from expunge.data.example import Example
from expunge.data.template import Template
from expunge.errors import DataError, UsageError
from expunge.evals.jobs import plan_jobs
from expunge.evals.suite import Measured, Split, Suite
from expunge.evals.suites.fluency_sheet import WORDS
from expunge.evals.trace import trace
from expunge.models.classify import Clean
from expunge.models.load import context_length, padding_id, require_vocabulary, vocabulary_size
from expunge.models.processes import processes
from expunge.runs.tables import GIBBERISH, PERPLEXITY

Progress = Callable[[dict[str, Any]], None]

AT_ONCE = 256
"""Answers that a classifier gets between two reports of progress."""
TOKEN_BUDGET = 4096
"""Padded tokens of one forward pass of a language model."""


class Judged(NamedTuple):
    """A table and what it cost."""

    table: pa.Table
    tokens: int
    """Tokens sent through the judging model."""


class Answer(NamedTuple):
    """One stored greedy answer."""

    split: str
    row: int
    id: str
    group: str | None
    text: str


def judged_splits(suite: Suite, setting: str) -> tuple[str, ...]:
    """The splits whose answers are judged: those whose fluency is measured.

    Args:
        suite: what is measured.
        setting: that asks for it, for messages.

    Raises:
        UsageError: there is none.
    """
    found = tuple(
        split.name for split in suite.splits if split.generate and all(name in split.scoring.scores for name in WORDS)
    )
    if not found:
        raise UsageError(
            f"{setting} judges how fluent answers are, which the suite {suite.name!r} measures of none",
            hint="leave it out, or measure with --suite tofu, world or custom",
        )
    return found


def stored_answers(folder: Path, splits: Sequence[str]) -> list[Answer]:
    """The greedy answers of some splits, in the order of their table.

    Raises:
        DataError: their text was purged.
    """
    table = pq.read_table(folder / "generations.parquet", columns=["split", "row", "id", "group", "output"])
    rows = [row for row in table.to_pylist() if row["split"] in splits]
    if lost := sum(row["output"] is None for row in rows):
        raise DataError(
            f"the text of {lost} of {len(rows)} answers in {folder} was purged, so nobody can judge it any more",
            hint="evaluate again with --overwrite",
        )
    return [Answer(row["split"], row["row"], row["id"], row["group"], row["output"]) for row in rows]


def gibberish_table(answers: Sequence[Answer], clean: Clean, *, progress: Progress | None = None) -> Judged:
    """How likely a classifier finds each answer to be clean; each distinct text is judged once.

    Several processes share the texts out and give each other the results, so that all return the same.

    Args:
        answers: what was written.
        clean: who judges; null for an answer of which its tokenizer makes no token.
        progress: called with `{"event": "phase", "name": "gibberish", "done", "total"}` in texts of this process.
    """
    where = processes()
    texts = list(dict.fromkeys(answer.text for answer in answers))
    # By length before sharing: what shares a batch then stays alike.
    own = where.share(sorted(texts, key=lambda text: (len(text), text)))
    found: dict[str, float | None] = {}
    tokens = 0
    for start in range(0, len(own), AT_ONCE):
        lengths = clean.lengths(own[start : start + AT_ONCE])
        sent = [text for text, length in lengths.items() if length]
        found |= dict.fromkeys(lengths) | dict(zip(sent, clean.judge(sent), strict=True))
        tokens += sum(lengths.values())
        if progress:
            progress({"event": "phase", "name": "gibberish", "done": len(found), "total": len(own)})
    shares = where.gather((found, tokens))
    judged = {text: value for part, _ in shares for text, value in part.items()}
    table = _table(answers, GIBBERISH, "clean", [judged[answer.text] for answer in answers])
    return Judged(table, sum(count for _, count in shares))


def perplexity_table(
    answers: Sequence[Answer], model: Any, template: Template, tokenizer: Any, *, progress: Progress | None = None
) -> Judged:
    """Log-probabilities of each answer's tokens as a text of its own, without its question, under another model.

    Several processes share the texts out and give each other the results, so that all return the same.

    Args:
        answers: what was written.
        model: the other model, in evaluation mode, on its device.
        template: of the other model, for raw texts: every token counts but the first, which may be its BOS.
        tokenizer: the other model's.
        progress: called with `{"event": "phase", "name": "perplexity", "done", "total"}` in texts of this process.

    Raises:
        DataError: an answer that does not fit the other model's context.
    """
    texts = [Example(f"{answer.split}:{answer.row}", answer.row, text=answer.text) for answer in answers]
    measurable = [item.supervised.any() for item in template.encode_many(texts)] if texts else []
    asked = tuple(text for text, able in zip(texts, measurable, strict=True) if able)
    if not asked:
        return Judged(_table(answers, PERPLEXITY, "logp", [None] * len(answers)), 0)
    suite = Suite("perplexity", (Split("answers", asked),), _nothing)
    plan = plan_jobs(suite, template, max_length=context_length(model.config) or 1 << 30)
    size = vocabulary_size(model)
    require_vocabulary(plan.dataset, tokenizer, size=size)
    made = trace(
        model,
        plan,
        pad_id=padding_id(tokenizer, size=size),
        token_budget=TOKEN_BUDGET,
        progress=None if progress is None else lambda event: progress({**event, "name": "perplexity"}),
    )
    found = dict(zip(made.table["id"].to_pylist(), made.table["logp"].to_pylist(), strict=True))
    return Judged(_table(answers, PERPLEXITY, "logp", [found.get(text.id) for text in texts]), made.tokens)


def _nothing(*args: Any, **kwargs: Any) -> Measured:
    return Measured({}, {})


def _table(answers: Sequence[Answer], schema: pa.Schema, name: str, values: Sequence[Any]) -> pa.Table:
    columns = {key: [getattr(answer, key) for answer in answers] for key in Answer._fields if key != "text"}
    columns[name] = list(values)
    return pa.Table.from_arrays([pa.array(columns[field.name], type=field.type) for field in schema], schema=schema)
