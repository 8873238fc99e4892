"""The generation pass: greedy answers of the splits that ask for them, as a table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa

from expunge.data.example import Example, prompt_text
from expunge.data.template import Template
from expunge.evals.suite import Suite
from expunge.metrics.rouge import rouge
from expunge.models.decode import Progress, greedy
from expunge.runs.tables import GENERATIONS


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
    progress: Progress | None = None,
) -> tuple[pa.Table, int]:
    """Answer every prompt of the splits that ask for it; the generation table and the tokens it cost.

    Args:
        model: evaluation mode, on its device.
        suite: its splits and `max_new_tokens`.
        template: renders the prompts.
        tokenizer: decodes the answers (special tokens skipped).
        end_ids: ids that end an answer.
        pad_id: left padding.
        total_length: limit on prompt plus answer (the `tofu` profile's 200), instead of `max_new_tokens`.
        token_budget: padded prompt tokens of one batch.
        progress: see `greedy`.
    """
    rows: list[tuple[str, int, Example]] = [
        (split.name, row, example)
        for split in suite.splits
        if split.generate
        for row, example in enumerate(split.examples)
    ]
    prompts = [template.prompt_ids(example.prompt) for _, _, example in rows]
    limits = [max(0, total_length - len(p)) if total_length else suite.max_new_tokens for p in prompts]
    made = greedy(
        model,
        prompts,
        max_new_tokens=limits,
        end_ids=end_ids,
        pad_id=pad_id,
        token_budget=token_budget,
        progress=progress,
    )
    texts = [tokenizer.decode(output.token, skip_special_tokens=True) for output in made.outputs]
    scores = [rouge(example.answer, text) for (_, _, example), text in zip(rows, texts, strict=True)]
    columns: dict[str, Any] = {
        "split": [name for name, _, _ in rows],
        "row": [row for _, row, _ in rows],
        "id": [example.id for _, _, example in rows],
        "group": [example.group for _, _, example in rows],
        "prompt": [prompt_text(example) for _, _, example in rows],
        "reference": [example.answer for _, _, example in rows],
        "output": texts,
        "token": [output.token for output in made.outputs],
        "ended": [output.ended for output in made.outputs],
        "rouge1_recall": [item.rouge1_recall for item in scores],
        "rougeL_recall": [item.rougeL_recall for item in scores],
        "rougeL_f1": [item.rougeL_f1 for item in scores],
    }
    arrays = [pa.array(columns[field.name], type=field.type) for field in GENERATIONS]
    return pa.Table.from_arrays(arrays, schema=GENERATIONS), made.tokens
