"""Passes beyond trace and greedy answers, each only where it was asked for, each a table of its own beside theirs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import ValidationError

from expunge.config.schema import EvalSection, SamplingSection
from expunge.errors import UsageError
from expunge.evals.gradients import gradient_table, require_differentiable
from expunge.evals.passes import SPEC, Progress, Subject, write_table
from expunge.evals.recompute import read_spec
from expunge.evals.sample import require_sampled, sample_table
from expunge.models.classify import Entailment, text_classifier
from expunge.models.decode import end_ids
from expunge.models.load import context_length, padding_id, vocabulary_size
from expunge.models.processes import processes
from expunge.runs.store import atomic_write_json


class Made(NamedTuple):
    """A table and what it cost."""

    table: pa.Table
    tokens: int
    """Padded tokens sent through the model."""


class FurtherPass(NamedTuple):
    """One pass that was asked for."""

    key: str
    """Of `spec.json`, where its settings and its cost are kept."""
    table: str
    """The table's file without its ending."""
    spec: dict[str, Any]
    """What its table depends on beside the evaluation's own spec."""
    run: Callable[[Progress], Made]


def sampling_of(
    section: SamplingSection | None,
    *,
    samples: int | None = None,
    temperatures: Sequence[float] | None = None,
    top_ps: Sequence[float] | None = None,
) -> SamplingSection | None:
    """What is sampled: the recipe's settings with those that a command gives in their place; None: nothing.

    Raises:
        UsageError: a value that cannot be sampled with, or settings without a number of samples.
    """
    options = {"samples": samples, "temperatures": temperatures, "top_ps": top_ps}
    given = {name: value for name, value in options.items() if value}
    if not given:
        return section
    if section is None and samples is None:
        raise UsageError(
            "a temperature or top-p says how answers are sampled, but not how many", hint="add --samples N"
        )
    try:
        return SamplingSection.model_validate((section or SamplingSection()).model_dump() | given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"eval.sampling.{where}: {first['msg']}, found {first['input']!r}",
            hint="temperatures are at least 0, top-p values lie in [0, 1]",
        ) from error


def further_passes(section: EvalSection, subject: Subject) -> list[FurtherPass]:
    """The passes that settings ask for, checked before anything runs.

    Args:
        section: `sampling` and `gradnorm`.
        subject: what is measured.

    Raises:
        UsageError: a split that cannot be sampled from; gradients of a model that is divided among processes.
        ModelError: a classifier that cannot be used, or weights without gradients.
    """
    found = []
    if section.sampling is not None:
        found.append(_sampling(section.sampling, subject))
    if section.gradnorm:
        found += _gradnorm(subject)
    return found


def _sampling(sampling: SamplingSection, subject: Subject) -> FurtherPass:
    suite, template, model, tokenizer, lockstep = subject
    require_sampled(suite, sampling)
    spec = sampling.model_dump(mode="json", exclude={"entailment"})
    judge: Entailment | None = None
    if sampling.entailment is not None:
        classifier = text_classifier(sampling.entailment, device=next(model.parameters()).device)
        judge, spec["entailment"] = Entailment.of(classifier), classifier.identity

    def run(progress: Progress) -> Made:
        return Made(
            *sample_table(
                model,
                suite,
                sampling,
                template,
                tokenizer,
                end_ids=end_ids(model, template),
                pad_id=padding_id(tokenizer, size=vocabulary_size(model)),
                lockstep=lockstep,
                entailment=judge,
                progress=progress,
            )
        )

    return FurtherPass("sampling", "samples", spec, run)


def _gradnorm(subject: Subject) -> Iterator[FurtherPass]:
    suite, template, model, tokenizer, lockstep = subject
    if lockstep:
        raise UsageError(
            "eval.gradnorm differentiates one text at a time, and this model is divided among processes (train.fsdp)",
            hint="measure the finished run with `expunge eval RUN --gradnorm`",
        )
    require_differentiable(model)
    there = [split.name for split in suite.splits if split.name in suite.membership]
    if len(there) < len(suite.membership):
        # The suite's own measure says which rows are missing.
        return

    def run(progress: Progress) -> Made:
        pad_id = padding_id(tokenizer, size=vocabulary_size(model))
        longest = context_length(model.config) or 1 << 30
        return Made(*gradient_table(model, suite, template, pad_id=pad_id, max_length=longest, progress=progress))

    yield FurtherPass("gradnorm", "gradients", {"splits": there}, run)


def run_further(folder: Path, passes: Sequence[FurtherPass], *, progress: Progress) -> None:
    """Write the tables that are not there yet; called by every process together, after the evaluation's own passes.

    Args:
        folder: the finished evaluation.
        passes: `further_passes`.
        progress: as `expunge.evals.run.evaluate`.
    """
    where = processes()
    for each in passes:
        if where.first(lambda each=each: _stored(folder, each)):  # type: ignore[misc]
            continue
        started = time.perf_counter()
        made = each.run(progress)
        cost = {"tokens": made.tokens, "seconds": round(time.perf_counter() - started, 2)}
        where.first(lambda each=each, made=made, cost=cost: _write(folder, each, made.table, cost))  # type: ignore[misc]


def all_stored(folder: Path, passes: Sequence[FurtherPass]) -> bool:
    """Whether every table that was asked for is there."""
    return all(_stored(folder, each) for each in passes)


def _stored(folder: Path, wanted: FurtherPass) -> bool:
    found = read_spec(folder / SPEC).get(wanted.key)
    if not isinstance(found, dict) or not (folder / f"{wanted.table}.parquet").exists():
        return False
    same = {key: found.get(key) for key in found if key != "cost"}
    return bool(same == json.loads(json.dumps(wanted.spec)))


def _write(folder: Path, wanted: FurtherPass, table: pa.Table, cost: dict[str, Any]) -> None:
    # The settings go first and come back last: a table without them is not taken for the one that was asked for.
    spec = {key: value for key, value in read_spec(folder / SPEC).items() if key != wanted.key}
    atomic_write_json(folder / SPEC, spec)
    write_table(folder / f"{wanted.table}.parquet", table)
    atomic_write_json(folder / SPEC, {**spec, wanted.key: {**wanted.spec, "cost": cost}})
