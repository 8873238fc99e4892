"""What a plan is made of: a recipe's rows, its shapes, a rehearsed step, and the memory of every phase."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from expunge.config.schema import Recipe
from expunge.data.prepare import template_of
from expunge.models.adapters import attach
from expunge.models.budget import remembered_budget
from expunge.models.load import (
    context_length,
    padding_id,
    quantisation,
    require_precision,
    require_vocabulary,
    vocabulary_size,
)
from expunge.train.optim import require_optimizer
from expunge.train.planning.duration import Work
from expunge.train.planning.hardware import Hardware
from expunge.train.planning.memory import Phases, phases
from expunge.train.planning.rehearsal import Case, Rehearsal, rehearse, shaped_model
from expunge.train.planning.stand_ins import table_bytes, with_stand_ins
from expunge.train.runner import paired_stream, total_steps
from expunge.train.start import prepare_for, select, start_tokenizer

ASSUMED_BUDGET = {"cpu": 2048}
"""Token budget used where the recipe says `auto` and nothing was measured; elsewhere, `ASSUMED_GPU_BUDGET`."""
ASSUMED_GPU_BUDGET = 16384


@dataclass(frozen=True)
class Draft:
    """A recipe on some hardware, rehearsed."""

    case: Case
    found: Rehearsal
    phases: Phases
    work: Work
    parameters: int
    """Of the starting model."""
    context: int | None
    """Tokens it reads at most."""
    table_bytes: int
    """Of the tables that stand for it."""
    assumed: bool
    """Whether the token budget is ours: the run will measure its own."""

    def changed(self, recipe: Recipe, *, token_budget: int | None = None) -> Draft:
        """The same rows under other settings that do not change them.

        Raises:
            ExpungeError: what such a run would refuse.
        """
        recipe, wrapped = select(recipe)
        budget = token_budget or self.case.token_budget
        case = replace(self.case, recipe=recipe, wrapped=wrapped, token_budget=budget)
        return _counted(replace(self, assumed=self.assumed and token_budget is None), case, rehearse(case))

    def divided(self, world: int) -> Draft:
        """The same, divided among several processes (`train.fsdp`); their micro-batches stay as large."""
        train = self.case.recipe.train.model_copy(update={"fsdp": True})
        recipe = self.case.recipe.model_copy(update={"train": train})
        return _counted(self, replace(self.case, recipe=recipe, world=world), self.found)


def draft(given: Recipe, where: Hardware) -> Draft:
    """Load and encode the rows, and rehearse a step.

    Raises:
        ExpungeError: whatever would stop the run before its first step.
    """
    recipe, wrapped = select(given)
    device = torch.device(where.kind)
    require_precision(recipe.train.bf16, device)
    if where.here or where.kind != "cuda":
        # Packages are looked for only where the run is to happen.
        require_optimizer(recipe, device)
        quantisation(recipe.model, device)
    tokenizer = start_tokenizer(recipe)
    template = template_of(recipe.data, tokenizer)
    base = recipe.model.model_copy(update={"use_peft": False, "load_in_4bit": False, "load_in_8bit": False})
    model = shaped_model(base, tokenizer, seed=recipe.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if recipe.model.use_peft:
        attach(model, recipe.model, seed=recipe.seed)
    needs, context, size = wrapped.method.needs(), context_length(model.config), vocabulary_size(model)
    prepared = with_stand_ins(prepare_for(recipe, needs, template, context), needs)
    for dataset in prepared.datasets.values():
        require_vocabulary(dataset, tokenizer, size=size)
    measured = _measured(model, prepared.datasets[needs.roles[0]], where)
    automatic = recipe.train.token_budget == "auto"
    assumed = ASSUMED_BUDGET.get(where.kind, ASSUMED_GPU_BUDGET)
    budget = (measured or assumed) if automatic else int(recipe.train.token_budget)
    case = Case(
        recipe=recipe,
        wrapped=wrapped,
        tokenizer=tokenizer,
        template=template,
        prepared=prepared,
        stream=lambda: paired_stream(recipe, prepared, needs),
        token_budget=budget,
        pad_id=padding_id(tokenizer, size=size),
        kind=where.kind,
        world=where.processes,
    )
    empty: Any = None
    begun = Draft(
        case=case,
        found=empty,
        phases=empty,
        work=empty,
        parameters=parameters,
        context=context,
        table_bytes=table_bytes(prepared, needs, model),
        assumed=automatic and measured is None,
    )
    return _counted(begun, case, rehearse(case))


def _measured(model: Any, dataset: Any, where: Hardware) -> int | None:
    if not where.here:
        return None
    return remembered_budget(model, dataset, device=torch.device(where.kind), backward=True)


def _counted(begun: Draft, case: Case, found: Rehearsal) -> Draft:
    references = case.needs.references
    lengths = [case.prepared.datasets[name].lengths().sum() for name in references if references[name]]
    work = Work(
        steps=total_steps(case.recipe.train, case.stream()),
        tokens_per_step=found.real,
        flops_per_step=found.flops * found.share * case.world,
        operations=found.operations,
        share=found.share,
        asking=found.asking,
        asked_tokens=int(sum(lengths)),
    )
    parts = phases(
        case.recipe,
        found,
        kind=case.kind,
        world=case.world,
        table_bytes=begun.table_bytes,
        keeps_start=case.wrapped.method.keeps_start,
        measures_budget=begun.assumed,
    )
    return replace(begun, case=case, found=found, phases=parts, work=work)
