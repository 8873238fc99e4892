"""From a rehearsal to the memory of a run: what every process holds in each of its phases."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from expunge.config.schema import Recipe
from expunge.train.planning.rehearsal import Rehearsal
from expunge.train.planning.shadow import ACTIVATIONS, GRADIENTS, LOGITS, OPTIMIZER, WEIGHTS

_PREFETCHED = 3
"""Blocks of a divided model that are whole at one time: the one that computes, the next one, and one's gradients."""


class Memory(NamedTuple):
    """Bytes on one device, by what they hold."""

    weights: int
    """With autocast's copies, blocks gathered from other processes, and the starting weights where a method keeps
    them."""
    gradients: int
    """With the buckets in which several processes exchange them."""
    optimizer: int
    activations: int
    """What the backward pass reads, and whatever else a step makes on its way."""
    logits: int
    """Everything as wide as the vocabulary."""
    tables: int
    """Of the starting model, where they lie in the same memory: on a CPU, whose pages they fill."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Phases(NamedTuple):
    """The parts of a run that could need most."""

    load: Memory
    """The model as loaded; on a CPU with the file it is read from."""
    budget: Memory
    """Measuring `train.token_budget: auto`, where it has not been measured before."""
    tables: Memory
    """Asking the starting model."""
    step: Memory
    """A training step; checkpoints are written from what lies between two steps."""

    @property
    def peak(self) -> Memory:
        """The one that needs most."""
        return max(self, key=lambda memory: memory.total)


def phases(
    recipe: Recipe,
    found: Rehearsal,
    *,
    kind: str,
    world: int,
    table_bytes: int,
    keeps_start: bool,
    measures_budget: bool,
) -> Phases:
    """What one process needs in each phase.

    Args:
        recipe: with the settings its method decides.
        found: by a rehearsal on one process.
        kind: of the device: `cpu`, `cuda`, `mps`.
        world: processes.
        table_bytes: of the stored tables.
        keeps_start: the method reads the starting weights after the last step.
        measures_budget: the run will look for its token budget.
    """
    host = table_bytes if kind == "cpu" else 0
    read = found.loaded if kind == "cpu" and recipe.model.from_scratch is None else 0
    starting = found.loaded if keeps_start else 0
    step = Counter(found.step)
    step[OPTIMIZER] += found.packed_state
    step[WEIGHTS] += starting
    if recipe.train.fsdp:
        step = _divided(step, found, world)
    elif world > 1:
        step[GRADIENTS] += 4 * found.trained
    search: Counter[str] = Counter()
    if measures_budget and kind == "cpu":
        # It tries twice the budget that turns out best, without an optimizer.
        search = Counter({name: found.step[name] for name in (WEIGHTS, GRADIENTS)})
        search |= Counter({name: 2 * found.step[name] for name in (ACTIVATIONS, LOGITS)})
    return Phases(
        load=_memory(Counter({WEIGHTS: found.loaded + read})),
        budget=_memory(search),
        tables=_memory(found.table, host),
        step=_memory(step, host),
    )


def _divided(step: Counter[str], found: Rehearsal, world: int) -> Counter[str]:
    """FSDP2: parts of weights, gradients and optimizer state, and blocks gathered where they are used."""
    parts = Counter({name: -(-step[name] // world) for name in (WEIGHTS, GRADIENTS, OPTIMIZER)})
    gathered = found.outside_blocks + _PREFETCHED * found.largest_block
    parts[WEIGHTS] += min(gathered, step[WEIGHTS] + found.largest_block)
    return parts | Counter({name: step[name] for name in (ACTIVATIONS, LOGITS)})


def _memory(parts: Counter[str], tables: int = 0) -> Memory:
    return Memory(
        weights=parts[WEIGHTS],
        gradients=parts[GRADIENTS],
        optimizer=parts[OPTIMIZER],
        activations=parts[ACTIVATIONS],
        logits=parts[LOGITS],
        tables=tables,
    )
