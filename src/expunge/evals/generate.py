"""The generation pass: greedy answers of the splits that ask for them, as a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from expunge.data.example import Example, prompt_text
from expunge.data.template import Template
from expunge.evals.answer_scores import answer_scores
from expunge.evals.drafts import Beginning, Drafts, Place, beginnings
from expunge.evals.suite import Scoring, Split, Suite
from expunge.metrics.muse import before_stop
from expunge.metrics.rouge import Rouge, rouge
from expunge.models.decode import Continuation, Progress, greedy
from expunge.models.processes import processes
from expunge.runs.tables import GENERATIONS


class GenerationPass(NamedTuple):
    """The table and what it cost."""

    table: pa.Table
    tokens: int
    """Padded tokens sent through the model: prompts and decoded positions."""


class _Prompt(NamedTuple):
    """One row that is answered."""

    split: Split
    row: int
    example: Example


class _Answer(NamedTuple):
    """What was made of one prompt."""

    output: Continuation
    text: str
    """As it is scored."""
    reference: str
    rouge: Rouge
    scores: Mapping[str, float | None] | None
    """Null where the split asks for none."""


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
    drafts: Drafts | None = None,
    lockstep: bool = False,
    progress: Progress | None = None,
) -> GenerationPass:
    """Answer every prompt of the splits that ask for it, in their order.

    Several processes share the prompts out and give each other the answers, so that all return the same.

    Args:
        model: evaluation mode, on its device.
        suite: its splits and `max_new_tokens`; a split may have its own, and its own `scoring`.
        template: renders the prompts.
        tokenizer: decodes the answers (special tokens skipped).
        end_ids: ids that end an answer.
        pad_id: left padding.
        total_length: limit on prompt plus answer (the `tofu` profile's 200), instead of `max_new_tokens`.
        token_budget: padded prompt tokens of one batch.
        drafts: how answers begin according to the trace of the same model and rows (`drafts_of`); changes what the
            pass costs, not what it gives.
        lockstep: every process answers every prompt, because a forward pass of this model needs all of them
            (`train.fsdp`).
        progress: see `greedy`; in prompts of this process that are left to decode.
    """
    rows = [
        _Prompt(split, row, example)
        for split in suite.splits
        if split.generate
        for row, example in enumerate(split.examples)
    ]
    prompts = [template.prompt_ids(item.example.prompt) for item in rows]
    own_limits = [item.split.max_new_tokens or suite.max_new_tokens for item in rows]
    limits = [
        max(0, total_length - len(prompt)) if total_length else limit
        for prompt, limit in zip(prompts, own_limits, strict=True)
    ]
    begun = beginnings(
        [item.example for item in rows],
        [(drafts or {}).get(Place(item.split.name, item.row)) for item in rows],
        prompts,
        template,
        limits=limits,
        end_ids=end_ids,
    )
    where = processes()
    # By length before sharing: what shares a batch then stays alike.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) + len(begun[i].token), i))
    own = order if lockstep else where.share(order)
    left = [i for i in own if not begun[i].ended and len(begun[i].token) < limits[i]]
    made = greedy(
        model,
        [[*prompts[i], *begun[i].token] for i in left],
        max_new_tokens=[limits[i] - len(begun[i].token) for i in left],
        end_ids=end_ids,
        pad_id=pad_id,
        token_budget=token_budget,
        progress=progress,
    )
    outputs = {i: Continuation(begun[i].token, begun[i].ended) for i in own}
    outputs |= {i: _joined(begun[i], output) for i, output in zip(left, made.outputs, strict=True)}
    answers = {place: _scored(rows[place], output, tokenizer) for place, output in outputs.items()}
    shares = [(answers, made.tokens)] if lockstep else where.gather((answers, made.tokens))
    found = {place: answer for part, _ in shares for place, answer in part.items()}
    table = _table(rows, [found[place] for place in range(len(rows))])
    return GenerationPass(table, sum(tokens for _, tokens in shares))


def _joined(begun: Beginning, rest: Continuation) -> Continuation:
    return Continuation([*begun.token, *rest.token], rest.ended)


def cut_reference(text: str, scoring: Scoring, tokenizer: Any) -> str:
    """What should have been said, cut to `scoring.reference_tokens` tokens and decoded again; as it is without a limit.

    A blank in front, which only divides it from its prompt, is not part of it.
    """
    if scoring.reference_tokens is None:
        return text
    ids = tokenizer(text.removeprefix(" "), add_special_tokens=True, verbose=False)["input_ids"]
    return str(tokenizer.decode(ids[: scoring.reference_tokens], skip_special_tokens=True))


def _scored(prompt: _Prompt, output: Continuation, tokenizer: Any) -> _Answer:
    scoring = prompt.split.scoring
    text = before_stop(tokenizer.decode(output.token, skip_special_tokens=True), scoring.stop)
    reference = cut_reference(prompt.example.answer, scoring, tokenizer)
    scores = answer_scores(scoring.scores, prompt.example, text) if scoring.scores else None
    return _Answer(output, text, reference, rouge(reference, text, stem=scoring.stem), scores)


def _table(rows: list[_Prompt], answers: list[_Answer]) -> pa.Table:
    columns: dict[str, Any] = {
        "split": [item.split.name for item in rows],
        "row": [item.row for item in rows],
        "id": [item.example.id for item in rows],
        "group": [item.example.group for item in rows],
        "prompt": [prompt_text(item.example) for item in rows],
        "reference": [answer.reference for answer in answers],
        "output": [answer.text for answer in answers],
        "token": [answer.output.token for answer in answers],
        "ended": [answer.output.ended for answer in answers],
        "rouge1_recall": [answer.rouge.rouge1_recall for answer in answers],
        "rougeL_recall": [answer.rouge.rougeL_recall for answer in answers],
        "rougeL_f1": [answer.rouge.rougeL_f1 for answer in answers],
        "scores": [None if answer.scores is None else list(answer.scores.items()) for answer in answers],
    }
    arrays = [pa.array(columns[field.name], type=field.type) for field in GENERATIONS]
    return pa.Table.from_arrays(arrays, schema=GENERATIONS)
