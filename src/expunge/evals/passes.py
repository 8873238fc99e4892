"""Both passes of a suite over one model, written as tables; several processes divide them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from expunge.data.template import Template
from expunge.errors import DataError, UsageError
from expunge.evals.drafts import COLUMNS, drafts_of
from expunge.evals.generate import generation_table
from expunge.evals.jobs import plan_jobs
from expunge.evals.recompute import SCHEMA, read_spec
from expunge.evals.suite import TOTAL_LENGTH, Scoring, Split, Suite
from expunge.evals.trace import trace
from expunge.models.budget import tuned_budget
from expunge.models.decode import end_ids
from expunge.models.fingerprint import digest_json, model_digest, tokenizer_digest
from expunge.models.load import compute_dtype, context_length, padding_id, require_vocabulary, vocabulary_size
from expunge.models.processes import processes
from expunge.runs.store import atomic_file, atomic_write_json, leftovers
from expunge.runs.tables import FURTHER

SPEC = "spec.json"
"""What finished tables were made from."""
TRACED = "traced.json"
"""The spec of an evaluation whose trace is written and whose answers are not."""

Progress = Callable[[dict[str, Any]], None]


class Subject(NamedTuple):
    """What the passes run on."""

    suite: Suite
    template: Template
    model: Any
    """In evaluation mode, on its device."""
    tokenizer: Any
    lockstep: bool = False
    """The model is divided among the processes, so all of them make every forward pass together and none has passes
    of its own."""
    temperatures: tuple[float, ...] = ()
    """Besides 1, at which the trace keeps log-sum-exps (`eval.temperatures`)."""


def spec_of(subject: Subject, profile: str) -> dict[str, Any]:
    """What the tables depend on; equal specs mean equal tables.

    No process holds the weights of a divided model, so that one has no digest: `matches` never takes its tables for
    those of another.
    """
    suite, template, model, tokenizer, lockstep, temperatures = subject
    found = {
        "schema": SCHEMA,
        "suite": suite.name,
        "profile": profile,
        "options": dict(suite.options or {}),
        "template": {"name": template.name, "digest": template.digest},
        "splits": {split.name: _split_spec(split) for split in suite.splits},
        "max_new_tokens": suite.max_new_tokens,
        "total_length": TOTAL_LENGTH.get(profile),
        "model_digest": None if lockstep else model_digest(model),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "dtype": str(compute_dtype(next(model.parameters()).device)).removeprefix("torch."),
        "attention": model.config._attn_implementation,
    }
    return found | {"temperatures": list(temperatures)} if temperatures else found


def _split_spec(split: Split) -> dict[str, Any]:
    rows = [[e.id, e.prompt, e.answer, dict(e.extra)] for e in split.examples]
    found: dict[str, Any] = {
        "rows": len(rows),
        "digest": digest_json(rows),
        "variants": list(split.variants),
        "generate": split.generate,
        "stats": split.stats,
    }
    if split.max_new_tokens is not None:
        found["max_new_tokens"] = split.max_new_tokens
    if split.scoring != Scoring():
        found["scoring"] = asdict(split.scoring)
    return found


def matches(path: Path, spec: Mapping[str, Any]) -> bool:
    """Whether the tables that a stored spec belongs to are those that `spec` would give."""
    if spec["model_digest"] is None:
        return False
    try:
        stored = read_spec(path)
    except (FileNotFoundError, DataError):
        # Nobody can say what such tables hold: they are made again.
        return False
    return bool({key: stored.get(key) for key in spec} == json.loads(json.dumps(spec)))


def run_passes(
    folder: Path,
    spec: Mapping[str, Any],
    subject: Subject,
    *,
    token_budget: int | Literal["auto"],
    progress: Progress,
) -> None:
    """Write both tables; a trace that an interrupted evaluation of the same spec left is taken up.

    Called by every process together; the main one writes.

    Args:
        folder: where the tables go.
        spec: `spec_of` the subject.
        subject: what is measured.
        token_budget: padded tokens of one forward; `auto` measures it, which a divided model cannot.
        progress: as `expunge.evals.run.evaluate`.
    """
    where = processes()
    if subject.suite.passes is not None:
        _by_itself(folder, spec, subject, progress)
        return
    pad_id = padding_id(subject.tokenizer, size=vocabulary_size(subject.model))
    if subject.lockstep:
        _touch(subject.model, pad_id)
    if where.first(lambda: _begin(folder, spec)):
        progress({"event": "note", "text": f"{folder} holds the trace of this evaluation: only answers are generated"})
    else:
        _trace(folder, spec, subject, token_budget, pad_id, progress)
    started = time.perf_counter()
    generated = generation_table(
        subject.model,
        subject.suite,
        subject.template,
        subject.tokenizer,
        end_ids=end_ids(subject.model, subject.template),
        pad_id=pad_id,
        total_length=spec["total_length"],
        drafts=where.first(lambda: drafts_of(pq.read_table(folder / "trace.parquet", columns=list(COLUMNS)))),
        lockstep=subject.lockstep,
        progress=progress,
    )
    cost = {"generate_tokens": generated.tokens, "generate_s": round(time.perf_counter() - started, 2)}
    where.first(lambda: _finish(folder, generated.table, cost))


def _by_itself(folder: Path, spec: Mapping[str, Any], subject: Subject, progress: Progress) -> None:
    """The tables of a suite that makes them without our passes.

    Raises:
        UsageError: there are several processes, or the model is divided among them; `eval.temperatures` is set.
    """
    if subject.temperatures:
        raise UsageError(
            f"the suite {subject.suite.name!r} traces no tokens, so it has no energies at eval.temperatures",
            hint="take eval.temperatures out of the recipe",
        )
    if processes().world > 1 or subject.lockstep:
        raise UsageError(
            f"the suite {subject.suite.name!r} runs in one process", hint="leave --num-processes out, and its launcher"
        )
    assert subject.suite.passes is not None
    _begin(folder, spec)
    started = time.perf_counter()
    tables = subject.suite.passes(subject, progress)
    for name in ("trace", "generations", *FURTHER):
        if (table := getattr(tables, name)) is not None:
            write_table(folder / f"{name}.parquet", table)
    atomic_write_json(folder / SPEC, {**spec, "cost": {"seconds": round(time.perf_counter() - started, 2)}})


@torch.no_grad()
def _touch(model: Any, token: int) -> None:
    """Run a divided model once outside inference mode.

    It keeps the tensors into which its first forward pass gathers the weights, and those made in inference mode could
    never be trained with.
    """
    model(input_ids=torch.tensor([[token]], device=next(model.parameters()).device), use_cache=False)


def _begin(folder: Path, spec: Mapping[str, Any]) -> bool:
    """Make room for new tables; whether the trace is there already."""
    # The spec goes first and comes back last: tables without it are taken for unfinished.
    further = [folder / f"{name}.parquet" for name in FURTHER]
    for path in (folder / SPEC, *further, *leftovers(folder)):
        path.unlink(missing_ok=True)
    return matches(folder / TRACED, spec)


def _finish(folder: Path, generated: pa.Table, cost: Mapping[str, Any]) -> None:
    write_table(folder / "generations.parquet", generated)
    traced = read_spec(folder / TRACED)
    atomic_write_json(folder / SPEC, {**traced, "cost": {**traced["cost"], **cost}})
    (folder / TRACED).unlink()


def _trace(
    folder: Path,
    spec: Mapping[str, Any],
    subject: Subject,
    asked: int | Literal["auto"],
    pad_id: int,
    progress: Progress,
) -> None:
    started = time.perf_counter()
    model, where = subject.model, processes()
    plan = plan_jobs(subject.suite, subject.template, max_length=context_length(model.config) or 1 << 30)
    require_vocabulary(plan.dataset, subject.tokenizer, size=vocabulary_size(model))
    if asked == "auto" and subject.lockstep:
        raise ValueError("how fast a divided model is cannot be measured by one process: give a token budget")
    # Measured once: processes that cut the texts differently would leave some out.
    budget = where.first(
        lambda: tuned_budget(model, plan.dataset, pad_id=pad_id, backward=False) if asked == "auto" else int(asked)
    )
    traced = trace(
        model,
        plan,
        pad_id=pad_id,
        token_budget=budget,
        temperatures=subject.temperatures,
        lockstep=subject.lockstep,
        progress=progress,
    )
    cost = {
        "trace_tokens": traced.tokens,
        "trace_s": round(time.perf_counter() - started, 2),
        "token_budget": budget,
    }

    def write() -> None:
        (folder / TRACED).unlink(missing_ok=True)
        write_table(folder / "trace.parquet", traced.table)
        atomic_write_json(folder / TRACED, {**spec, "cost": cost})

    where.first(write)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table so that it is there whole or not at all."""
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
