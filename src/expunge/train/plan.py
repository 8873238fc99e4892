"""`expunge plan`: what a recipe costs, from its data and the model's shape, without loading a weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from expunge.config.requests import request_recipes
from expunge.config.schema import Recipe
from expunge.data.encode import Dataset
from expunge.data.prepare import Prepared, template_of
from expunge.methods.base import Needs
from expunge.models.load import (
    compute_dtype,
    context_length,
    load_config,
    pick_device,
    require_vocabulary,
    vocabulary_size,
)
from expunge.models.reference import Reference
from expunge.models.scratch import new_model
from expunge.train.microbatch import MicroBatch, Splitter
from expunge.train.runner import paired_stream, total_steps
from expunge.train.start import prepare_for, select, start_tokenizer

ASSUMED_BUDGET = {"cpu": 2048}
"""Token budget used where the recipe says `auto`; elsewhere than on a CPU, `ASSUMED_GPU_BUDGET`."""
ASSUMED_GPU_BUDGET = 16384

_FLOAT32 = 4
_TYPICAL_WEIGHT = 0.02
_HIGH_LEARNING_RATE = 1e-3


class Memory(NamedTuple):
    """Bytes of one training step at its peak, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Plan(NamedTuple):
    """What a run would do and need."""

    method: str
    model: str
    parameters: int
    device: str
    weights_dtype: str
    compute_dtype: str
    rows: dict[str, int]
    """Role -> encoded rows."""
    steps: int
    steps_per_epoch: int
    batch: dict[str, int]
    """Role -> rows of one optimizer step."""
    tokens_per_step: int
    """Real tokens of the first step, all roles."""
    micro_batches: int
    """Of the first step, on one process."""
    token_budget: int
    """Padded tokens of one micro-batch."""
    token_budget_assumed: bool
    """The recipe says `auto`, so the run will measure it."""
    memory: Memory
    reference_bytes: int
    """Size of the tables that stand for the frozen starting model."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `memory` with its total."""
        memory = {**self.memory._asdict(), "total": self.memory.total}
        return {**self._asdict(), "memory": memory, "warnings": list(self.warnings)}


def plan(given: Recipe) -> Plan:
    """Load and encode the data, build the model without storage, and count.

    Memory, in bytes, with P parameters of which M lie in matrices Muon takes, b = 4 (2 under bfloat16 autocast), T
    padded and N scored tokens of the largest micro-batch, V vocabulary, and L layers of width H with key/value width K
    and MLP width I:

        weights      4 P (+ 2 P for autocast's copies)
        gradients    4 P
        optimizer    8 P for AdamW; 4 M + 8 (P - M) for Muon; none for SGD
        activations  b T L (6 H + 2 K + 4 I); with gradient checkpointing b T (L H + 6 H + 2 K + 4 I)
        logits       2 b N V (the logits and their gradient); 3 b N V where a retain term needs a distribution

    It leaves out the allocator's slack and the imported libraries: an estimate to choose a machine by.

    Args:
        given: the recipe.

    Raises:
        ExpungeError: whatever would stop the run before its first step.
    """
    if given.data.requests:
        return _plan_requests(given)
    given, wrapped = select(given)
    method = wrapped.method
    needs = method.needs()
    tokenizer = start_tokenizer(given)
    template = template_of(given.data, tokenizer)
    model = _shape(given, tokenizer)
    device = pick_device(given.device)
    context = context_length(model.config)
    prepared = _with_stand_ins(prepare_for(given, needs, template, context), needs)
    for dataset in prepared.datasets.values():
        require_vocabulary(dataset, tokenizer, size=vocabulary_size(model))
    stream = paired_stream(given, prepared, needs)
    steps = total_steps(given.train, stream)
    automatic = given.train.token_budget == "auto"
    budget = ASSUMED_BUDGET.get(device.type, ASSUMED_GPU_BUDGET) if automatic else int(given.train.token_budget)
    drawn = stream.next()
    step = Splitter(prepared.datasets, prepared.links, needs, budget=budget)(drawn)
    return Plan(
        method=method.name,
        model=given.model.model_name_or_path or "from scratch",
        parameters=sum(p.numel() for p in model.parameters()),
        device=device.type,
        weights_dtype=given.model.dtype,
        compute_dtype=str(compute_dtype(device)).removeprefix("torch."),
        rows={role: len(dataset.encoded) for role, dataset in prepared.datasets.items()},
        steps=steps,
        steps_per_epoch=stream.steps_per_epoch,
        batch={role: len(rows) for role, rows in drawn.rows.items()},
        tokens_per_step=step.tokens,
        micro_batches=len(step.micro_batches),
        token_budget=budget,
        token_budget_assumed=automatic,
        memory=_memory(given, model, needs, prepared, step.micro_batches, device),
        reference_bytes=_reference_bytes(model, needs, prepared),
        warnings=tuple(_warnings(given, needs, prepared, context=context, steps=steps, device=device)),
    )


def _plan_requests(given: Recipe) -> Plan:
    """The steps of all requests together, and the memory of the one that needs most."""
    parts = [part.model_copy(update={"model": given.model}) for part in request_recipes(given, Path())]
    plans = [plan(part) for part in parts]
    most = max(plans, key=lambda each: each.memory.total)
    rows = {f"forget (request {number})": each.rows["forget"] for number, each in enumerate(plans, 1)}
    rows |= {role: count for role, count in most.rows.items() if role != "forget"}
    told = tuple(dict.fromkeys(text for each in plans for text in each.warnings))
    return most._replace(
        rows=rows,
        steps=sum(each.steps for each in plans),
        warnings=(f"{len(plans)} requests one after the other: steps are of all, memory is of the largest", *told),
    )


def _with_stand_ins(prepared: Prepared, needs: Needs) -> Prepared:
    """Rows a method will make itself are counted as the rows they travel with."""
    made = {name: anchor for name, anchor in needs.linked.items() if name not in prepared.datasets}
    datasets = {**prepared.datasets, **{name: prepared.datasets[anchor] for name, anchor in made.items()}}
    links = {name: np.arange(len(datasets[name].encoded))[None] for name in made}
    return replace(prepared, datasets=datasets, links={**prepared.links, **links})


def _shape(given: Recipe, tokenizer: Any) -> Any:
    """The model on the meta device: every shape, no storage."""
    section = given.model
    with torch.device("meta"):
        if section.from_scratch is not None:
            return new_model(
                section.from_scratch, tokenizer, seed=given.seed, attn_implementation=section.attn_implementation
            )
        config = load_config(
            str(section.model_name_or_path),
            revision=section.model_revision,
            trust_remote_code=section.trust_remote_code,
        )
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=section.trust_remote_code
        )


def _memory(
    given: Recipe,
    model: Any,
    needs: Needs,
    prepared: Prepared,
    micro_batches: list[MicroBatch],
    device: torch.device,
) -> Memory:
    parameters = sum(p.numel() for p in model.parameters())
    width = compute_dtype(device).itemsize
    copies = 0 if width == _FLOAT32 else width
    padded, scored = _largest(prepared, micro_batches)
    needs_distribution = any(item.kind == "hidden" for items in needs.references.values() for item in items)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return Memory(
        weights=(_FLOAT32 + copies) * parameters,
        gradients=_FLOAT32 * parameters,
        optimizer=_optimizer_bytes(given, model, parameters),
        activations=width * padded * _activations_per_token(model.config, given.train.gradient_checkpointing),
        logits=(3 if needs_distribution else 2) * width * scored * vocabulary,
    )


def _largest(prepared: Prepared, micro_batches: list[MicroBatch]) -> tuple[int, int]:
    """Padded and scored tokens of the micro-batches where each is largest; a linked dataset is forwarded apart."""
    parts = [(mb.role, mb.rows) for mb in micro_batches]
    parts += [part for mb in micro_batches for part in mb.linked.items()]
    padded = [len(rows) * int(prepared.datasets[role].lengths()[rows].max()) for role, rows in parts]
    scored = [int(_scored(prepared.datasets[role])[rows].sum()) for role, rows in parts]
    return max(padded), max(scored)


def _scored(dataset: Dataset) -> np.ndarray:
    """(rows,) supervised tokens of each row."""
    return dataset.supervised()


def _optimizer_bytes(given: Recipe, model: Any, parameters: int) -> int:
    """Two moments per parameter, one where Muon takes it, none for SGD."""
    if given.train.optim == "sgd":
        return 0
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in ends)
    return _FLOAT32 * (2 * parameters - (matrices if given.train.optim == "muon" else 0))


def _activations_per_token(config: Any, checkpointing: bool) -> int:
    """Numbers kept for the backward pass, per token."""
    text = config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    heads = text.num_attention_heads
    keys = hidden // heads * getattr(text, "num_key_value_heads", heads)
    layer = 6 * hidden + 2 * keys + 4 * (getattr(text, "intermediate_size", None) or 4 * hidden)
    return int(layers * hidden + layer if checkpointing else layers * layer)


def _reference_bytes(model: Any, needs: Needs, prepared: Prepared) -> int:
    width = model.get_output_embeddings().weight.shape[1]
    return sum(
        _table_bytes(item, prepared.datasets[role], width) for role, items in needs.references.items() for item in items
    )


def _table_bytes(item: Reference, dataset: Dataset, hidden_size: int) -> int:
    tokens, rows = int(_scored(dataset).sum()), len(dataset.encoded)
    per_kind = {"seq_logp": rows, "token_logp": tokens, "eua_margin": 2 * tokens}
    per_kind |= dict.fromkeys(("hidden", "block"), hidden_size * tokens)
    return _FLOAT32 * per_kind[item.kind] + 8 * (rows + 1)


def _warnings(
    given: Recipe, needs: Needs, prepared: Prepared, *, context: int | None, steps: int, device: torch.device
) -> list[str]:
    found = list(prepared.warnings)
    if context is not None and given.data.max_length > context:
        found.append(f"data.max_length={given.data.max_length} is cut to the {context} tokens the model reads")
    for role, dataset in prepared.datasets.items():
        cut = sum(encoded.truncated for encoded in dataset.encoded)
        if cut:
            found.append(f"{cut} of {len(dataset.encoded)} {role} rows are cut, so their answers have no end")
    if given.kind == "unlearn" and "retain" not in needs.roles:
        found.append("this method has no retain term: what the model should keep usually suffers as well")
    return found + _rate_warnings(given, steps=steps, device=device)


def _rate_warnings(given: Recipe, *, steps: int, device: torch.device) -> list[str]:
    """AdamW moves a weight by at most about the learning rate per step: compare that with a weight's size."""
    if given.train.optim == "sgd":
        # A step is as long as its gradient; the rate alone says nothing.
        return []
    rate = given.train.learning_rate
    if given.kind == "unlearn" and rate > _HIGH_LEARNING_RATE:
        share = f"{rate / _TYPICAL_WEIGHT:.0%} of its typical size"
        return [f"train.learning_rate={rate:g} is high: each step can move a weight by {share}"]
    if compute_dtype(device) == torch.bfloat16 and rate * steps < _TYPICAL_WEIGHT / 2**9:
        moved = f"train.learning_rate={rate:g} times {steps} steps"
        return [f"{moved} is less than half a bfloat16 step of a typical weight: the forward pass will hardly see it"]
    return []
