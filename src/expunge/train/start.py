"""What a recipe starts from: its method with wrappers, tokenizer, model, rows, and the parameters that are trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from expunge.config.schema import DataSection, ModelSection, Recipe
from expunge.data.prepare import Prepared, load_roles, prepare
from expunge.data.template import Template
from expunge.errors import UsageError
from expunge.methods.base import Needs
from expunge.methods.select import select_method
from expunge.models.adapter_folder import find_adapter, read_adapter
from expunge.models.adapters import (
    attach,
    first_matrices,
    is_adapted,
    require_adapters,
    weight_names,
    without_adapters,
)
from expunge.models.load import (
    load_model,
    load_tokenizer,
    require_answer_positions,
    require_causal,
    require_precision,
)
from expunge.models.scratch import new_model, train_tokenizer
from expunge.train.optim import require_optimizer
from expunge.train.sharding import is_sharded
from expunge.train.wrappers.base import GradientMask
from expunge.train.wrappers.select import Wrapped, wrap


def select(recipe: Recipe) -> tuple[Recipe, Wrapped]:
    """The recipe with what its method decides itself, and the method with its wrappers.

    Raises:
        UsageError: an unknown method, wrapper or key, or some that do not go together, or not with adapters.
    """
    require_adapters(recipe.model, fsdp=recipe.train.fsdp, requests=bool(recipe.data.requests))
    wrapped = wrap(select_method(recipe), recipe.wrappers)
    if recipe.model.use_peft:
        _require_adaptable(wrapped)
    fixed = dict(wrapped.method.train_settings)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=fixed)}), wrapped


def _require_adaptable(wrapped: Wrapped) -> None:
    """Refuse a method for which a change through adapters is not the change it is about."""
    reason = wrapped.method.needs_weights
    if reason:
        raise UsageError(
            f"model.use_peft: {wrapped.method.name} changes the weights themselves: {reason}",
            hint="leave model.use_peft out, or choose another method",
        )


def start_model(recipe: Recipe, device: torch.device) -> tuple[Any, Any, str | None]:
    """Tokenizer, starting model on `device` (with adapters where they are trained), and the model's Hub revision."""
    require_precision(recipe.train.bf16, device)
    require_optimizer(recipe, device)
    section = recipe.model
    if section.from_scratch is None:
        name = section.tokenizer_name_or_path or section.model_name_or_path
        if name is None:
            raise UsageError("no model given", hint="set model.model_name_or_path=FOLDER_OR_HUB_ID")
        if section.use_peft:
            _require_joinable(section)
        loaded = load_model(section, device=device)
        if section.use_peft:
            attach(
                loaded.model, section, seed=recipe.seed, base=section.model_name_or_path or "", revision=loaded.revision
            )
        revision = None if section.tokenizer_name_or_path else section.model_revision
        return load_tokenizer(name, revision=revision, trust_remote_code=section.trust_remote_code), *loaded
    tokenizer = start_tokenizer(recipe)
    model = new_model(
        section.from_scratch, tokenizer, seed=recipe.seed, attn_implementation=section.attn_implementation
    ).to(device)
    require_answer_positions(model, "model.from_scratch")
    require_causal(model, "model.from_scratch")
    return tokenizer, model, None


def _require_joinable(section: ModelSection) -> None:
    """Refuse a starting model with an adapter that the run's own could not be joined to when it is saved."""
    adapter = find_adapter(section.model_name_or_path or "", revision=section.model_revision)
    if adapter is None:
        return
    if section.load_in_4bit or section.load_in_8bit:
        raise UsageError(
            f"{adapter.name} is an adapter, and quantised weights cannot take it in to start from",
            hint=f"merge it first: expunge merge {adapter.name} --out FOLDER, and start from that folder",
        )
    read_adapter(adapter)


def start_tokenizer(recipe: Recipe) -> Any:
    """The tokenizer alone: loaded, or trained on the recipe's text."""
    section: ModelSection = recipe.model
    name = section.tokenizer_name_or_path or (None if section.from_scratch else section.model_name_or_path)
    if name is not None:
        revision = None if section.tokenizer_name_or_path else section.model_revision
        return load_tokenizer(name, revision=revision, trust_remote_code=section.trust_remote_code)
    if section.tokenizer_vocab_size is None:
        raise UsageError(
            "a model from scratch needs a tokenizer",
            hint="set model.tokenizer_vocab_size to train one, or model.tokenizer_name_or_path",
        )
    return train_tokenizer(_corpus(recipe.data), vocab_size=section.tokenizer_vocab_size)


def _corpus(data: DataSection) -> list[str]:
    """The text a tokenizer is trained on: `tokenizer_corpus`, else the training rows."""
    section = data.model_copy(update={"train": data.tokenizer_corpus}) if data.tokenizer_corpus else data
    examples = load_roles(section, ("train",))["train"].examples
    return [text for example in examples for text in ([turn.content for turn in example.turns] or [example.text])]


def prepare_for(recipe: Recipe, needs: Needs, template: Template, context: int | None) -> Prepared:
    """The datasets a method needs, cut to what the model can read."""
    return prepare(
        recipe.data,
        template,
        context=context,
        roles=needs.roles,
        with_refusals="alternate" in needs.linked and needs.rows.get("alternate", "refusals") == "refusals",
        epochs=math.ceil(recipe.train.num_train_epochs) if recipe.train.max_steps is None else 1,
        seed=recipe.seed,
    )


def as_started(model: Any, load: Callable[[], Any]) -> AbstractContextManager[Any]:
    """The starting model, while `model` is trained: itself without its adapters, or a second one in memory.

    Args:
        model: as trained so far.
        load: loads the starting model.
    """
    # The passes over a divided model would have to be the same on every process.
    return without_adapters(model) if is_adapted(model) and not is_sharded(model) else nullcontext(load())


def freeze(model: Any, masks: Sequence[GradientMask], trainable: Sequence[str]) -> None:
    """Take parameters out of training: those a mask freezes, else those no pattern of the method names.

    Raises:
        UsageError: a pattern fits no parameter, or nothing is left to train.
    """
    weights = weight_names(model)
    held = frozenset[str]().union(*(mask.frozen() for mask in masks))
    # A mask that chooses has the last word; one that only holds the adapters' first matrices chooses no weight.
    if trainable and held <= first_matrices(model):
        held |= _unnamed(weights, trainable)
    trained = {name for name, weight in weights.items() if name not in held and weight not in held}
    if not trained:
        raise UsageError("every parameter is frozen: nothing is left to train", hint="name more layers or modules")
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.requires_grad_(name in trained)


def _unnamed(weights: Mapping[str, str], patterns: Sequence[str]) -> frozenset[str]:
    """Weights that no pattern names."""
    names = list(dict.fromkeys(weights.values()))
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            adapted = any(name != weight for name, weight in weights.items())
            raise UsageError(
                f"no {'adapted weight' if adapted else 'parameter'}'s name matches {pattern!r}",
                hint=f"the model's are named like {names[len(names) // 2]}"
                + ("; model.lora_target_modules says which weights have an adapter" if adapted else ""),
            )
    return frozenset(name for name in names if not any(re.search(pattern, name) for pattern in patterns))
