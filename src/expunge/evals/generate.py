"""The generation pass: greedy answers of the splits that ask for them, as a table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import pyarrow as pa

from expunge.data.example import Example, prompt_text
from expunge.data.template import Template
from expunge.evals.suite import Suite
from expunge.metrics.rouge import Rouge, rouge
from expunge.models.decode import Continuation, Progress, greedy
from expunge.models.processes import processes
from expunge.runs.tables import GENERATIONS


class GenerationPass(NamedTuple):
    """The table and what it cost."""

    table: pa.Table
    tokens: int
    """Padded tokens sent through the model: prompts and decoded positions."""


class _Answer(NamedTuple):
    """What was made of one prompt."""

    output: Continuation
    text: str
    rouge: Rouge


def generation_table(
    model: Any,
    suite: Suite,
    template: Template,
    tokenizer: Any,
    *,
    end_ids: Collection[int],
    pad_id: int,
    total_length: int | None = None,
    token_budget: int = 4096,
    lockstep: bool = False,
    progress: Progress | None = None,
) -> GenerationPass:
    """Answer every prompt of the splits that ask for it, in their order.

    Several processes share the prompts out and give each other the answers, so that all return the same.

    Args:
        model: evaluation mode, on its device.
        suite: its splits and `max_new_tokens`.
        template: renders the prompts.
        tokenizer: decodes the answers (special tokens skipped).
        end_ids: ids that end an answer.
        pad_id: left padding.
        total_length: limit on prompt plus answer (the `tofu` profile's 200), instead of `max_new_tokens`.
        token_budget: padded prompt tokens of one batch.
        lockstep: every process answers every prompt, because a forward pass of this model needs all of them
            (`train.fsdp`).
        progress: see `greedy`; in prompts of this process.
    """
    rows: list[tuple[str, int, Example]] = [
        (split.name, row, example)
        for split in suite.splits
        if split.generate
        for row, example in enumerate(split.examples)
    ]
    prompts = [template.prompt_ids(example.prompt) for _, _, example in rows]
    limits = [max(0, total_length - len(p)) if total_length else suite.max_new_tokens for p in prompts]
    where = processes()
    # By length before sharing: what shares a batch then stays alike.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    own = order if lockstep else where.share(order)
    made = greedy(
        model,
        [prompts[i] for i in own],
        max_new_tokens=[limits[i] for i in own],
        end_ids=end_ids,
        pad_id=pad_id,
        token_budget=token_budget,
        progress=progress,
    )
    answers: dict[int, _Answer] = {}
    for place, output in zip(own, made.outputs, strict=True):
        text = tokenizer.decode(output.token, skip_special_tokens=True)
        answers[place] = _Answer(output, text, rouge(rows[place][2].answer, text))
    shares = [(answers, made.tokens)] if lockstep else where.gather((answers, made.tokens))
    found = {place: answer for part, _ in shares for place, answer in part.items()}
    table = _table(rows, [found[place] for place in range(len(rows))])
    return GenerationPass(table, sum(tokens for _, tokens in shares))


def _table(rows: list[tuple[str, int, Example]], answers: list[_Answer]) -> pa.Table:
    columns: dict[str, Any] = {
        "split": [name for name, _, _ in rows],
        "row": [row for _, row, _ in rows],
        "id": [example.id for _, _, example in rows],
        "group": [example.group for _, _, example in rows],
        "prompt": [prompt_text(example) for _, _, example in rows],
        "reference": [example.answer for _, _, example in rows],
        "output": [answer.text for answer in answers],
        "token": [answer.output.token for answer in answers],
        "ended": [answer.output.ended for answer in answers],
        "rouge1_recall": [answer.rouge.rouge1_recall for answer in answers],
        "rougeL_recall": [answer.rouge.rougeL_recall for answer in answers],
        "rougeL_f1": [answer.rouge.rougeL_f1 for answer in answers],
    }
    arrays = [pa.array(columns[field.name], type=field.type) for field in GENERATIONS]
    return pa.Table.from_arrays(arrays, schema=GENERATIONS)
