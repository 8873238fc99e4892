"""What a recipe starts from: its method with wrappers, tokenizer, model, rows, and the parameters that are trained."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from expunge.config.schema import DataSection, ModelSection, Recipe
from expunge.data.prepare import Prepared, load_roles, prepare
from expunge.data.template import Template
from expunge.errors import UsageError
from expunge.methods.base import Needs
from expunge.methods.select import select_method
from expunge.models.load import (
    load_model,
    load_tokenizer,
    require_answer_positions,
    require_causal,
    require_precision,
)
from expunge.models.scratch import new_model, train_tokenizer
from expunge.train.wrappers.base import GradientMask
from expunge.train.wrappers.select import Wrapped, wrap


def select(recipe: Recipe) -> tuple[Recipe, Wrapped]:
    """The recipe with what its method decides itself, and the method with its wrappers.

    Raises:
        UsageError: an unknown method, wrapper or key, or some that do not go together.
    """
    wrapped = wrap(select_method(recipe), recipe.wrappers)
    fixed = dict(wrapped.method.train_settings)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=fixed)}), wrapped


def start_model(recipe: Recipe, device: torch.device) -> tuple[Any, Any, str | None]:
    """Tokenizer, starting model on `device`, and the model's Hub revision."""
    require_precision(recipe.train.bf16, device)
    section = recipe.model
    if section.from_scratch is None:
        name = section.tokenizer_name_or_path or section.model_name_or_path
        if name is None:
            raise UsageError("no model given", hint="set model.model_name_or_path=FOLDER_OR_HUB_ID")
        loaded = load_model(section, device=device)
        revision = None if section.tokenizer_name_or_path else section.model_revision
        return load_tokenizer(name, revision=revision, trust_remote_code=section.trust_remote_code), *loaded
    tokenizer = start_tokenizer(recipe)
    model = new_model(
        section.from_scratch, tokenizer, seed=recipe.seed, attn_implementation=section.attn_implementation
    ).to(device)
    require_answer_positions(model, "model.from_scratch")
    require_causal(model, "model.from_scratch")
    return tokenizer, model, None


def start_tokenizer(recipe: Recipe) -> Any:
    """The tokenizer alone: loaded, or trained on the recipe's text."""
    section: ModelSection = recipe.model
    name = section.tokenizer_name_or_path or (None if section.from_scratch else section.model_name_or_path)
    if name is not None:
        return load_tokenizer(name, revision=section.model_revision, trust_remote_code=section.trust_remote_code)
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


def freeze(model: Any, masks: Sequence[GradientMask], trainable: Sequence[str]) -> None:
    """Take parameters out of training: those a mask freezes, else those no pattern of the method names.

    Raises:
        UsageError: a pattern fits no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = frozenset[str]().union(*(mask.frozen() for mask in masks))
    if not frozen and trainable:
        for pattern in trainable:
            if not any(re.search(pattern, name) for name in names):
                raise UsageError(
                    f"no parameter's name matches {pattern!r}",
                    hint=f"the model's are named like {names[len(names) // 2]}",
                )
        frozen = frozenset(name for name in names if not any(re.search(pattern, name) for pattern in trainable))
    if len(frozen) == len(names):
        raise UsageError("every parameter is frozen: nothing is left to train", hint="name more layers or modules")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
