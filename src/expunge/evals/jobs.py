"""The texts a suite needs traced, each tokenised once and, where two metrics want the same text, run once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from expunge.data.encode import Dataset, encode_all, name_rows
from expunge.data.example import Example, Turn
from expunge.data.template import Template
from expunge.errors import DataError
from expunge.evals.suite import Split, Suite
from expunge.metrics.multiple_choice import OPTION, RIGHT


class Job(NamedTuple):
    """One row of the trace table: a text of a split and the unique encoding that stands for it."""

    split: str
    row: int
    variant: str
    example: Example
    text: str
    """The traced answer."""
    unique: int
    """Index into `Plan.dataset`."""


@dataclass(frozen=True)
class Plan:
    """Every job of a suite."""

    jobs: tuple[Job, ...]
    dataset: Dataset
    """The unique texts, encoded."""
    stats: frozenset[int]
    """Unique texts whose rank, mu and var are stored."""


def plan_jobs(suite: Suite, template: Template, *, max_length: int) -> Plan:
    """Lay out a suite's texts.

    Args:
        suite: its splits say which variants of each row are traced.
        template: how a conversation becomes tokens.
        max_length: the model's context; a longer text is an error, because a cut answer is another answer.

    Raises:
        DataError: a row lacks a column a variant needs, or does not fit; options of a row that the tokenizer makes the
            same tokens of, or none.
    """
    examples: list[Example] = []
    index: dict[tuple[tuple[Turn, ...], str], int] = {}
    jobs: list[Job] = []
    stats: set[int] = set()
    for split in suite.splits:
        for row, example in enumerate(split.examples):
            for variant, text in _variants(split, example):
                key = (example.prompt, text)
                if key not in index:
                    index[key] = len(examples)
                    turns = (*example.prompt, Turn("assistant", text)) if example.turns else ()
                    examples.append(
                        replace(
                            example,
                            id=f"{split.name}/{example.id}/{variant}",
                            turns=turns,
                            text=text if not turns else "",
                        )
                    )
                unique = index[key]
                if split.stats and variant == "answer":
                    stats.add(unique)
                jobs.append(Job(split.name, row, variant, example, text, unique))
    dataset = encode_all(
        examples,
        template,
        role=suite.name,
        max_length=max_length,
        context=max_length,
        on_truncate="error",
        supervise="last",
        too_long=lambda places, needed: _too_long(suite, jobs, frozenset(places), needed=needed, context=max_length),
    )
    _require_told_apart(suite, jobs, dataset)
    return Plan(tuple(jobs), dataset, frozenset(stats))


def _too_long(suite: Suite, jobs: Sequence[Job], places: Collection[int], *, needed: int, context: int) -> DataError:
    """What to say of texts that the model cannot read whole, and what helps in an evaluation."""
    rows: dict[str, set[int]] = {}
    for job in jobs:
        if job.unique in places:
            rows.setdefault(job.split, set()).add(job.example.row)
    count, total = sum(map(len, rows.values())), len({(job.split, job.example.row) for job in jobs})
    named = [f"{split} {name_rows(sorted(found))}" for split, found in rows.items()]
    more = f"; and {len(named) - 5} more splits" if len(named) > 5 else ""
    with_shots = (suite.options or {}).get("num_fewshot", "0") != "0"
    shots = "take fewer shots (--num-fewshot), " if with_shots else ""
    return DataError(
        f"{count} of {total} {suite.name} rows do not fit into the {context} tokens that the model reads"
        f" ({'; '.join(named[:5])}{more}); the longest needs {needed}",
        hint=f"measure a model with a longer context, {shots}shorten or remove these rows, or measure only the first"
        " ones (--limit)",
    )


def _require_told_apart(suite: Suite, jobs: Sequence[Job], dataset: Dataset) -> None:
    """Refuse options of which no token is left, or the same ones as of another: the model could not choose.

    A text that a row has twice is the benchmark's own (some rows of ARC); of equal scores the first counts.
    """
    chosen_among = {split.name for split in suite.splits if "options" in split.variants}
    seen: dict[tuple[str, int, bytes], str] = {}
    lost: list[str] = []
    for job in jobs:
        if job.split in chosen_among:
            item = dataset.encoded[job.unique]
            scored = item.input_ids[item.supervised & ~item.is_end]
            key = (job.split, job.row, scored.tobytes())
            if not len(scored) or seen.setdefault(key, job.text) != job.text:
                lost.append(f"{job.split} row {job.example.row} option {job.text!r}")
    if lost:
        named = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        raise DataError(
            f"{len(lost)} options become no token, or the same as another option of their row ({named})",
            hint="the tokenizer does not know their letters; another --template may write them so that it does",
        )


def _variants(split: Split, example: Example) -> Iterator[tuple[str, str]]:
    for variant in split.variants:
        if variant == "answer":
            yield variant, example.answer
        elif variant == "paraphrase":
            yield variant, str(_extra(split, example, "paraphrased_answer"))
        elif variant == "options":
            gold, right = int(_extra(split, example, "gold")), example.extra.get("right", ())
            for number, option in enumerate(_extra(split, example, "options")):
                kind = RIGHT if number in right else OPTION
                yield "answer" if number == gold else f"{kind}{number}", str(option)
        else:
            for number, wrong in enumerate(_extra(split, example, "perturbed_answer")):
                yield f"perturbed_{number}", str(wrong)


def _extra(split: Split, example: Example, column: str) -> Any:
    if column not in example.extra:
        raise DataError(
            f"{split.name} row {example.row} ({example.id}) has no {column}",
            hint=f"the suite needs {column!r} for every {split.name} row, as in TOFU's *_perturbed files",
        )
    return example.extra[column]
