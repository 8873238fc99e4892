"""Adapters under every method and wrapper: what moves, what stays, what the starting model is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from small_world import by_default
from torch import Tensor

from expunge.catalog import METHODS, WRAPPERS
from expunge.config.schema import ModelSection
from expunge.models.adapters import attach, first_matrices, trainable
from expunge.testing.tiny import tiny_llama
from expunge.train.engine import Engine

MakeEngine = Callable[..., Engine]
SHORT: Mapping[str, Any] = {"steps": 2, "global_batch_size": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
HELD = {"wagle", "alkn"}
"""Wrappers under which the adapters' first matrices stay."""


def adapted(vocab: int, **settings: Any) -> Any:
    """The small world's model with adapters beside it."""
    model = tiny_llama(vocab, seed=1)
    attach(model, ModelSection(use_peft=True, lora_r=4, lora_alpha=8, **settings), seed=5, base="somewhere")
    return model


def copied(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model: Any, before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def run(engine: Engine) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append)
    return events


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "iau"])
def test_every_method_trains_adapters_and_nothing_else(make_engine: MakeEngine, tokenizer: Any, name: str) -> None:
    model = adapted(len(tokenizer))
    before = copied(model)
    engine = make_engine(by_default(name), model=model, **SHORT)
    own = trainable(model)
    frozen = {parameter for parameter, tensor in own.items() if not tensor.requires_grad}

    events = run(engine)

    changed = moved(model, before)
    assert all(torch.isfinite(torch.tensor(event["loss"])) for event in events)
    assert changed <= set(own) - frozen
    assert changed >= {parameter for parameter in engine.trained if ".lora_B." in parameter}


@pytest.mark.parametrize("name", WRAPPERS.names())
def test_every_wrapper_works_on_adapters(make_engine: MakeEngine, tokenizer: Any, name: str) -> None:
    keys = {"layers": {"layers": 1}, "gru_tau": {"learning_rate": 1e-2}}.get(name, {})
    model = adapted(len(tokenizer))
    before = copied(model)

    engine = make_engine(by_default("grad_diff"), model=model, wrappers=[{"name": name, **keys}], **SHORT)
    run(engine)

    changed = moved(model, before)
    first = first_matrices(model)
    assert changed
    assert changed <= set(engine.trained)
    assert (first & set(engine.trained) == frozenset()) == (name in HELD)
