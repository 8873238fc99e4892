"""Passes beyond trace and greedy answers, each only where it was asked for, each a table of its own beside theirs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from pydantic import ValidationError

from expunge.config.schema import EvalSection, ModelSection, SamplingSection
from expunge.data.template import build_template
from expunge.errors import UsageError
from expunge.evals.gradients import gradient_table, require_differentiable
from expunge.evals.judge import gibberish_table, judged_splits, perplexity_table, stored_answers
from expunge.evals.passes import SPEC, Progress, Subject, write_table
from expunge.evals.recompute import read_spec
from expunge.evals.sample import require_sampled, sample_table
from expunge.models.classify import Clean, Entailment, text_classifier
from expunge.models.decode import end_ids
from expunge.models.fingerprint import model_digest, tokenizer_digest
from expunge.models.load import (
    compute_dtype,
    context_length,
    load_model,
    load_tokenizer,
    padding_id,
    vocabulary_size,
)
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
    run: Callable[[Path, Progress], Made]
    """The folder of the finished evaluation, and what receives one dict per event -> the table."""


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
        section: `sampling`, `gradnorm`, `gibberish` and `perplexity_model`.
        subject: what is measured.

    Raises:
        UsageError: a split that cannot be sampled from; gradients of a model that is divided among processes; a suite
            that measures no fluency, where answers are to be judged.
        ModelError: a classifier or another model that cannot be used, or weights without gradients.
    """
    found = []
    if section.sampling is not None:
        found.append(_sampling(section.sampling, subject))
    if section.gradnorm:
        found += _gradnorm(subject)
    if section.gibberish is not None:
        found.append(_gibberish(section.gibberish, subject))
    if section.perplexity_model is not None:
        found.append(_perplexity(section.perplexity_model, subject))
    return found


def _sampling(sampling: SamplingSection, subject: Subject) -> FurtherPass:
    suite, template, model, tokenizer, lockstep, _ = subject
    require_sampled(suite, sampling)
    spec = sampling.model_dump(mode="json", exclude={"entailment"})
    judge: Entailment | None = None
    if sampling.entailment is not None:
        classifier = text_classifier(sampling.entailment, device=_device(subject))
        judge, spec["entailment"] = Entailment.of(classifier), classifier.identity

    def run(folder: Path, progress: Progress) -> Made:
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
    suite, template, model, tokenizer, lockstep, _ = subject
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

    def run(folder: Path, progress: Progress) -> Made:
        pad_id = padding_id(tokenizer, size=vocabulary_size(model))
        longest = context_length(model.config) or 1 << 30
        return Made(*gradient_table(model, suite, template, pad_id=pad_id, max_length=longest, progress=progress))

    yield FurtherPass("gradnorm", "gradients", {"splits": there}, run)


def _gibberish(name: str, subject: Subject) -> FurtherPass:
    splits = judged_splits(subject.suite, "eval.gibberish")
    classifier = text_classifier(name, device=_device(subject))
    clean = Clean.of(classifier)
    where = processes()

    def run(folder: Path, progress: Progress) -> Made:
        return Made(*gibberish_table(where.first(lambda: stored_answers(folder, splits)), clean, progress=progress))

    return FurtherPass("gibberish", "gibberish", {"splits": list(splits), "model": classifier.identity}, run)


def _perplexity(name: str, subject: Subject) -> FurtherPass:
    splits = judged_splits(subject.suite, "eval.perplexity_model")
    model = load_model(ModelSection(model_name_or_path=name), device=_device(subject)).model
    tokenizer = load_tokenizer(name)
    template = build_template("plain", tokenizer)
    where = processes()
    identity = {
        "name": name,
        "digest": model_digest(model),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "dtype": str(compute_dtype(_device(subject))).removeprefix("torch."),
    }

    def run(folder: Path, progress: Progress) -> Made:
        answers = where.first(lambda: stored_answers(folder, splits))
        return Made(*perplexity_table(answers, model, template, tokenizer, progress=progress))

    return FurtherPass("perplexity", "perplexity", {"splits": list(splits), "model": identity}, run)


def _device(subject: Subject) -> torch.device:
    device: torch.device = next(subject.model.parameters()).device
    return device


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
        made = each.run(folder, progress)
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
