"""What to change in a recipe that needs more memory than there is, with numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from expunge.config.schema import Recipe
from expunge.errors import ExpungeError
from expunge.train.planning.draft import Draft
from expunge.train.planning.hardware import Hardware

_PROCESSES = (2, 4, 8)


class Knob(NamedTuple):
    """A setting that needs less memory."""

    setting: str
    """As it is written on a command line."""
    memory: int
    """Bytes of tensors the run then needs at its peak on each device."""
    fits: bool | None
    """Whether that fits; None where the device's memory is not known."""


def knobs(planned: Draft, where: Hardware) -> tuple[Knob, ...]:
    """Settings that need less, each rehearsed by itself; those that change the least come first.

    Args:
        planned: the recipe as it is.
        where: what it is to fit into.
    """
    found = []
    for setting, other in _others(planned, where):
        peak = other.phases.peak.total
        if peak < planned.phases.peak.total:
            found.append(Knob(setting, peak, where.fits(peak)))
    return tuple(found)


def _others(planned: Draft, where: Hardware) -> Iterator[tuple[str, Draft]]:
    recipe, case = planned.case.recipe, planned.case
    longest = max(int(dataset.lengths().max()) for dataset in case.prepared.datasets.values())
    smaller = max(longest, min(case.token_budget, planned.found.largest) // 4)
    if smaller < planned.found.largest:
        fixed = _with(recipe, train={"token_budget": smaller})
        yield f"train.token_budget={smaller}", planned.changed(fixed, token_budget=smaller)
    for sections in _settings(recipe, where):
        # What a method or wrapper refuses is no way out.
        with suppress(ExpungeError):
            yield _written(sections), planned.changed(_with(recipe, **sections))
    divisible = not recipe.train.fsdp and recipe.train.optim in ("adamw", "sgd") and where.kind == "cuda"
    whole = any(wrapper.whole_tensors for wrapper in (case.wrapped.combine, *case.wrapped.masks) if wrapper)
    if divisible and not whole and not (recipe.model.load_in_4bit or recipe.model.load_in_8bit):
        layouts = [(count, planned.divided(count)) for count in _PROCESSES if count >= where.processes]
        fitting = [each for each in layouts if where.fits(each[1].phases.peak.total)]
        for count, other in (fitting or layouts)[:1]:
            yield f"train.fsdp=true --num-processes {count}", other


def _settings(recipe: Recipe, where: Hardware) -> Iterator[dict[str, dict[str, Any]]]:
    """Changes by section, from the least to the greatest."""
    train, model = recipe.train, recipe.model
    if train.logits_chunk is None:
        yield {"train": {"logits_chunk": "auto"}}
    if not train.gradient_checkpointing:
        yield {"train": {"gradient_checkpointing": True}}
    if train.optim == "adamw" and not train.fsdp and not model.use_peft and where.kind == "cuda":
        yield {"train": {"optim": "adamw_8bit"}}
    if model.from_scratch is not None:
        return
    if not model.use_peft:
        yield {"model": {"use_peft": True}}
    if not (model.load_in_4bit or model.load_in_8bit) and not train.fsdp and where.kind == "cuda":
        yield {"model": {"use_peft": True, "load_in_4bit": True}}


def _with(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    changed = {name: getattr(recipe, name).model_copy(update=update) for name, update in sections.items()}
    return recipe.model_copy(update=changed)


def _written(sections: dict[str, dict[str, Any]]) -> str:
    return " ".join(
        f"{section}.{key}={str(value).lower()}" for section, own in sections.items() for key, value in own.items()
    )
