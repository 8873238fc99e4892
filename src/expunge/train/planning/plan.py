"""`expunge plan`: what a recipe costs and whether it fits, from its data and the model's shape, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from expunge.config.requests import request_recipes
from expunge.config.schema import Recipe
from expunge.methods.base import makes_first
from expunge.models.adapters import numbers
from expunge.train.microbatch import Splitter
from expunge.train.planning.draft import Draft, draft
from expunge.train.planning.duration import Time, run_time
from expunge.train.planning.hardware import Hardware, hardware
from expunge.train.planning.knobs import Knob, knobs
from expunge.train.planning.memory import Memory, Phases
from expunge.train.planning.stopwatch import Stopwatch

_TYPICAL_WEIGHT = 0.02
_HIGH_LEARNING_RATE = 1e-3


class Plan(NamedTuple):
    """What a run would do and need."""

    method: str
    model: str
    parameters: int
    trained: int
    """Numbers that are trained: all, or those of adapters."""
    device: str
    processes: int
    weights_dtype: str
    compute_dtype: str
    rows: dict[str, int]
    """Role -> encoded rows."""
    steps: int
    steps_per_epoch: int
    batch: dict[str, int]
    """Role -> rows of one optimizer step."""
    tokens_per_step: int
    """Real tokens of the first step, all roles, over all processes."""
    micro_batches: int
    """Of the first step, on one process."""
    token_budget: int
    """Padded tokens of one micro-batch."""
    token_budget_assumed: bool
    """The recipe says `auto` and this machine has not measured it, so the run will."""
    memory: Memory
    """Bytes of tensors on one device in the phase that needs most: the peak above the imported libraries."""
    phases: Phases
    reference_bytes: int
    """Size of the tables that stand for the frozen starting model."""
    available: int | None
    """Bytes each process has for everything; None where that is not known."""
    needed: int
    """Bytes that should be free on a device: `memory` with an allocator's slack, and what a process takes without
    tensors."""
    fits: bool | None
    time: Time
    knobs: tuple[Knob, ...]
    """What to change where it does not fit, what costs least first."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; memories with their totals."""
        plain = {
            "memory": _plain(self.memory),
            "phases": {name: _plain(memory) for name, memory in self.phases._asdict().items()},
            "time": self.time._asdict(),
            "knobs": [knob._asdict() for knob in self.knobs],
            "warnings": list(self.warnings),
        }
        return {**self._asdict(), **plain}


def _plain(memory: Memory) -> dict[str, int]:
    return {**memory._asdict(), "total": memory.total}


def plan(
    given: Recipe,
    *,
    device: str | None = None,
    memory: str | None = None,
    num_processes: int = 1,
    tokens_per_s: float | None = None,
    ways: bool | None = None,
) -> Plan:
    """Load and encode the data, and carry out one training step of the run on shapes (`train.planning.rehearsal`).

    Memory is that of the tensors alive at the step's, the starting model's or the loading's peak: on a GPU what
    `torch.cuda.max_memory_allocated` measures, on a CPU the resident set above the imported libraries, but for what the
    C library's allocator keeps of freed memory.

    Args:
        given: the recipe.
        device: planned for `cpu`, `cuda`, `mps` or a GPU by its name (`h100`), which need not be here; the recipe's
            unless given.
        memory: of that device, `24GB`; its own unless given.
        num_processes: how many carry the run out, each with a device of its own (on a CPU they share the memory).
        tokens_per_s: real tokens per second over all processes, where the caller knows.
        ways: whether to rehearse what would need less; only where it does not fit unless given.

    Raises:
        ExpungeError: whatever would stop the run before its first step.
    """
    where = hardware(device or given.device, memory=memory, processes=num_processes)
    stopwatch = Stopwatch(torch.device(where.kind))
    if given.data.requests:
        return _plan_requests(given, where, stopwatch, tokens_per_s, ways)
    return _plan(given, where, stopwatch, tokens_per_s, ways)


def _plan(given: Recipe, where: Hardware, stopwatch: Stopwatch, tokens_per_s: float | None, ways: bool | None) -> Plan:
    planned = draft(given, where)
    case, peak = planned.case, planned.phases.peak
    datasets, stream = case.prepared.datasets, case.stream()
    drawn = stream.next()
    first = Splitter(datasets, case.prepared.links, case.needs, budget=case.token_budget, world=case.world)(drawn)
    fits = where.fits(peak.total)
    return Plan(
        method=case.wrapped.method.name,
        model=given.model.model_name_or_path or "from scratch",
        parameters=planned.parameters,
        trained=planned.found.trained,
        device=where.name,
        processes=where.processes,
        weights_dtype=numbers(given.model),
        compute_dtype="float32" if where.kind == "cpu" else "bfloat16",
        rows={role: len(dataset.encoded) for role, dataset in datasets.items()},
        steps=planned.work.steps,
        steps_per_epoch=stream.steps_per_epoch,
        batch={role: len(rows) for role, rows in drawn.rows.items()},
        tokens_per_step=first.tokens,
        micro_batches=len(first.micro_batches),
        token_budget=case.token_budget,
        token_budget_assumed=planned.assumed,
        memory=peak,
        phases=planned.phases,
        reference_bytes=planned.table_bytes,
        available=where.memory,
        needed=where.needed(peak.total),
        fits=fits,
        time=run_time(planned.work, where, stopwatch, given=tokens_per_s),
        knobs=knobs(planned, where) if (fits is False if ways is None else ways) else (),
        warnings=tuple(_warnings(planned)),
    )


def _plan_requests(
    given: Recipe, where: Hardware, stopwatch: Stopwatch, tokens_per_s: float | None, ways: bool | None
) -> Plan:
    """The steps and time of all requests together, and the memory of the one that needs most."""
    parts = [part.model_copy(update={"model": given.model}) for part in request_recipes(given, Path())]
    plans = [_plan(part, where, stopwatch, tokens_per_s, ways) for part in parts]
    most = max(plans, key=lambda each: each.memory.total)
    rows = {f"forget (request {number})": each.rows["forget"] for number, each in enumerate(plans, 1)}
    rows |= {role: count for role, count in most.rows.items() if role != "forget"}
    told = tuple(dict.fromkeys(text for each in plans for text in each.warnings))
    times = [each.time for each in plans]
    whole = most.time._replace(
        seconds=None if most.time.seconds is None else sum(time.seconds or 0.0 for time in times),
        tables=None if most.time.tables is None else sum(time.tables or 0.0 for time in times),
    )
    return most._replace(
        rows=rows,
        steps=sum(each.steps for each in plans),
        time=whole,
        warnings=(f"{len(plans)} requests one after the other: steps are of all, memory is of the largest", *told),
    )


def _warnings(planned: Draft) -> list[str]:
    case = planned.case
    found, recipe, needs = list(case.prepared.warnings), case.recipe, case.needs
    if planned.context is not None and recipe.data.max_length > planned.context:
        found.append(f"data.max_length={recipe.data.max_length} is cut to the {planned.context} tokens the model reads")
    for role, dataset in case.prepared.datasets.items():
        cut = sum(encoded.truncated for encoded in dataset.encoded)
        if cut:
            found.append(f"{cut} of {len(dataset.encoded)} {role} rows are cut, so their answers have no end")
    if recipe.kind == "unlearn" and "retain" not in needs.roles:
        found.append("this method has no retain term: what the model should keep usually suffers as well")
    method = case.wrapped.method
    if makes_first(method):
        found.append(f"{method.name} makes something with the starting model first: that is not counted")
    if planned.found.plain:
        found.append(f"{method.name} reads what it makes there: memory is that of a likelihood loss")
    if planned.found.unwrapped:
        found.append(f"memory is without the wrappers {', '.join(planned.found.unwrapped)}, which make numbers first")
    return found + _rate_warnings(recipe, steps=planned.work.steps, kind=case.kind)


def _rate_warnings(given: Recipe, *, steps: int, kind: str) -> list[str]:
    """AdamW moves a weight by at most about the learning rate per step: compare that with a weight's size."""
    if given.train.optim == "sgd" or given.model.use_peft:
        # A step is as long as its gradient, or moves adapters that begin at zero: the rate alone says nothing.
        return []
    rate = given.train.learning_rate
    if given.kind == "unlearn" and rate > _HIGH_LEARNING_RATE:
        share = f"{rate / _TYPICAL_WEIGHT:.0%} of its typical size"
        return [f"train.learning_rate={rate:g} is high: each step can move a weight by {share}"]
    if kind != "cpu" and rate * steps < _TYPICAL_WEIGHT / 2**9:
        moved = f"train.learning_rate={rate:g} times {steps} steps"
        return [f"{moved} is less than half a bfloat16 step of a typical weight: the forward pass will hardly see it"]
    return []
