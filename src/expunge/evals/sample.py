"""The sampling pass: several answers to each prompt, at every temperature and top-p that was asked for, as a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pyarrow as pa

from expunge.config.schema import SamplingSection
from expunge.data.example import Example, Turn, prompt_text
from expunge.data.template import Template
from expunge.errors import DataError, UsageError
from expunge.evals.generate import cut_reference
from expunge.evals.suite import Split, Suite
from expunge.methods.generate import derived_seed
from expunge.metrics.containment import contains_answer
from expunge.metrics.leak_names import Cell
from expunge.metrics.muse import before_stop
from expunge.metrics.rouge import rouge
from expunge.models.classify import Entailment
from expunge.models.decode import Progress, sample
from expunge.models.processes import processes
from expunge.runs.tables import SAMPLES

PARAPHRASED = "paraphrased_question"


class SamplePass(NamedTuple):
    """The table and what it cost."""

    table: pa.Table
    tokens: int
    """Padded tokens sent through the model: prompts and decoded positions."""


class _Prompt(NamedTuple):
    """One row that is answered."""

    split: Split
    row: int
    example: Example
    """With the question that is asked."""


class _Draw(NamedTuple):
    """One answer to one prompt."""

    prompt: int
    cell: Cell
    number: int


class _Answer(NamedTuple):
    """What was made of one draw."""

    draw: _Draw
    token: list[int]
    ended: bool
    logp: float


def require_sampled(suite: Suite, sampling: SamplingSection) -> None:
    """Refuse splits that cannot be sampled from, before anything is run.

    Raises:
        UsageError: the suite has no such split, or generates no answers for it.
        DataError: a row is raw text, to which nothing can be answered.
    """
    able = [split.name for split in suite.splits if split.generate]
    if unknown := [name for name in sampling.splits if name not in able]:
        raise UsageError(
            f"the suite {suite.name!r} asks nothing of a split {unknown[0]!r}, so nothing can be sampled there",
            hint=f"eval.sampling.splits can name: {', '.join(able) or 'none of its splits'}",
        )
    for split in suite.splits:
        raw = [example.id for example in split.examples if not example.turns]
        if split.name in sampling.splits and raw:
            raise DataError(
                f"{len(raw)} rows of {split.name} are raw text without a prompt ({', '.join(raw[:10])})",
                hint="leave the split out of eval.sampling.splits",
            )


def sample_table(
    model: Any,
    suite: Suite,
    sampling: SamplingSection,
    template: Template,
    tokenizer: Any,
    *,
    end_ids: Collection[int],
    pad_id: int,
    token_budget: int = 4096,
    lockstep: bool = False,
    entailment: Entailment | None = None,
    progress: Progress | None = None,
) -> SamplePass:
    """Sample `sampling.samples` answers to every prompt at every temperature and top-p.

    The numbers of a draw come from its split, row, temperature, top-p and place alone: no batch, process or `limit`
    changes them. Where nothing is left to chance (temperature or top-p 0) one answer stands for all of them. Several
    processes share the prompts out and give each other the answers, so that all return the same.

    Args:
        model: evaluation mode, on its device.
        suite: its splits, their limits and their `scoring`.
        sampling: what is sampled.
        template: renders the prompts.
        tokenizer: decodes the answers (special tokens skipped).
        end_ids: ids that end an answer.
        pad_id: left padding.
        token_budget: padded prompt tokens of one batch, every answer's prompt counted.
        lockstep: every process answers every prompt, because a forward pass of this model needs all of them
            (`train.fsdp`).
        entailment: judges whether an answer entails the true one; None: nobody does.
        progress: called with `{"event": "phase", "name": "sample", "done", "total"}` in answers of this process.

    Raises:
        ModelError: logits that are not numbers.
    """
    prompts = [
        _Prompt(split, row, asked(example, sampling.prompt))
        for split in suite.splits
        if split.name in sampling.splits
        for row, example in enumerate(split.examples)
    ]
    ids = [template.prompt_ids(item.example.prompt) for item in prompts]
    where = processes()
    # By length before sharing: what shares a batch then stays alike.
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    draws = [draw for i in (order if lockstep else where.share(order)) for draw in _draws(i, sampling)]
    made = sample(
        model,
        [ids[draw.prompt] for draw in draws],
        temperature=[draw.cell.temperature for draw in draws],
        top_p=[draw.cell.top_p for draw in draws],
        seeds=[_seed(prompts[draw.prompt], draw, sampling.seed) for draw in draws],
        max_new_tokens=[_limit(prompts[draw.prompt].split, suite, sampling) for draw in draws],
        end_ids=end_ids,
        pad_id=pad_id,
        token_budget=token_budget,
        phase="sample",
        progress=progress,
    )
    own = [_Answer(draw, *out, logp) for draw, out, logp in zip(draws, made.outputs, made.logps, strict=True)]
    shares = [(own, made.tokens)] if lockstep else where.gather((own, made.tokens))
    answers = _in_order([answer for part, _ in shares for answer in part], sampling)
    table = where.first(lambda: _table(prompts, answers, tokenizer, entailment))
    return SamplePass(table, sum(tokens for _, tokens in shares))


def asked(example: Example, prompt: str) -> Example:
    """The row with the question that is put to the model."""
    if prompt != PARAPHRASED or PARAPHRASED not in example.extra:
        return example
    *earlier, last, answer = example.turns
    return replace(example, turns=(*earlier, Turn(last.role, str(example.extra[PARAPHRASED])), answer))


def _draws(prompt: int, sampling: SamplingSection) -> list[_Draw]:
    return [
        _Draw(prompt, cell, number)
        for cell in dict.fromkeys(Cell(*pair) for pair in product(sampling.temperatures, sampling.top_ps))
        for number in range(1 if _certain(cell) else sampling.samples)
    ]


def _certain(cell: Cell) -> bool:
    """Whether every draw gives the same."""
    return cell.temperature == 0 or cell.top_p == 0


def _seed(prompt: _Prompt, draw: _Draw, seed: int) -> int:
    cell = f"{draw.cell.temperature:g}", f"{draw.cell.top_p:g}"
    return derived_seed(seed, "sample", prompt.split.name, prompt.row, *cell, draw.number)


def _limit(split: Split, suite: Suite, sampling: SamplingSection) -> int:
    return sampling.max_new_tokens or split.max_new_tokens or suite.max_new_tokens


def _in_order(answers: list[_Answer], sampling: SamplingSection) -> list[_Answer]:
    """By prompt, settings and number; an answer that nothing was left to chance in stands there as often as others."""
    every = [
        answer._replace(draw=answer.draw._replace(number=number))
        for answer in answers
        for number in (range(sampling.samples) if _certain(answer.draw.cell) else (answer.draw.number,))
    ]
    return sorted(every, key=lambda answer: answer.draw)


def _table(
    prompts: Sequence[_Prompt], answers: Sequence[_Answer], tokenizer: Any, entailment: Entailment | None
) -> pa.Table:
    of = [prompts[answer.draw.prompt] for answer in answers]
    texts = [_text(item, answer.token, tokenizer) for item, answer in zip(of, answers, strict=True)]

    # The same answer comes again and again, above all to a prompt that is remembered.
    @cache
    def reference(prompt: int) -> str:
        item = prompts[prompt]
        return cut_reference(item.example.answer, item.split.scoring, tokenizer)

    @cache
    def recall(prompt: int, text: str) -> float:
        return rouge(reference(prompt), text, stem=prompts[prompt].split.scoring.stem).rougeL_recall

    pairs = [(answer.draw.prompt, text) for answer, text in zip(answers, texts, strict=True)]
    recalls = [recall(*pair) for pair in pairs]
    entailed: list[bool] | None = None
    if entailment is not None:
        entailed = entailment.judge(texts, [reference(prompt) for prompt, _ in pairs], recalls)
    columns: dict[str, Any] = {
        "split": [item.split.name for item in of],
        "row": [item.row for item in of],
        "id": [item.example.id for item in of],
        "group": [item.example.group for item in of],
        "temperature": [answer.draw.cell.temperature for answer in answers],
        "top_p": [answer.draw.cell.top_p for answer in answers],
        "sample": [answer.draw.number for answer in answers],
        "prompt": [prompt_text(item.example) for item in of],
        "output": texts,
        "token": [answer.token for answer in answers],
        "num_tokens": [len(answer.token) for answer in answers],
        "ended": [answer.ended for answer in answers],
        "logp": [answer.logp for answer in answers],
        "rougeL_recall": recalls,
        "contains": [contains_answer(reference(prompt), text) for prompt, text in pairs],
        "entailed": entailed or [None] * len(answers),
    }
    arrays = [pa.array(columns[field.name], type=field.type) for field in SAMPLES]
    return pa.Table.from_arrays(arrays, schema=SAMPLES)


def _text(prompt: _Prompt, token: list[int], tokenizer: Any) -> str:
    return before_stop(tokenizer.decode(token, skip_special_tokens=True), prompt.split.scoring.stop)
