"""Causal tracing: what restoring everything gives, what no noise gives, and a model whose fact lies in one layer."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encode import encode_all
from expunge.data.example import Example, Turn
from expunge.data.template import build_template
from expunge.errors import DataError, UsageError
from expunge.models.blocks import blocks
from expunge.models.tracing import (
    Fact,
    Located,
    facts_of,
    locate,
    noise_scale,
    part,
    restored_probability,
    subject_span,
    trace,
)
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

FACT = Fact(prompt=(7, 20, 21, 30, 8), subject=(1, 3), answer=40)
LAYERS, CARRIER = 5, 3


@pytest.fixture(scope="module")
def model() -> Any:
    """Random, with a head sharp enough that noise changes probabilities visibly."""
    model = tiny_llama(64, seed=3, num_hidden_layers=4)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
        for p in model.model.layers.parameters():
            p.mul_(3)
    return model


@pytest.fixture
def carrier() -> Any:
    """All layers pass the stream on; at the subject, the MLP of one of them turns its embedding into the answer.

    The stream keeps the subject in its first half and the answer in its second; the only attention, in the last layer,
    takes every token's second half to the end of the prompt, and the head reads nothing else.
    """
    model = tiny_llama(64, seed=3, num_hidden_layers=LAYERS)
    half = 16
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.zero_()
        generator = torch.Generator().manual_seed(0)
        table[:, :half] = 0.01 * torch.randn(64, half, generator=generator)
        table[:, 0] = -1.0
        for token in FACT.prompt[slice(*FACT.subject)]:
            table[token, 0] = 1.0
        for layer in model.model.layers:
            for p in layer.parameters():
                if p.ndim == 2:
                    p.zero_()
        mlp = model.model.layers[CARRIER].mlp
        mlp.gate_proj.weight[0, 0] = 3.0
        mlp.up_proj.weight[0, 0] = 1.0
        mlp.down_proj.weight[half, 0] = 4.0
        attention = model.model.layers[-1].self_attn
        # Two key-value heads of 8, each read by two query heads: uniform attention that copies dimensions half and on.
        attention.v_proj.weight[:8, half : half + 8] = torch.eye(8)
        attention.o_proj.weight[half : half + 8, :8] = 0.1 * torch.eye(8)
        head = model.get_output_embeddings().weight
        head.zero_()
        head[FACT.answer, half] = 5.0
    return model


@pytest.mark.parametrize("kind", ["block", "mlp", "self_attn"])
def test_without_noise_nothing_is_corrupted(model: Any, kind: Any) -> None:
    found = trace(model, FACT, noise=0.0, kind=kind, samples=3)
    assert found.corrupted == pytest.approx(found.clean, abs=1e-9)
    assert found.effects.abs().max() <= 1e-6
    assert found.restored.shape == (5, 4)


def test_restoring_every_layer_at_every_token_gives_the_clean_probability(model: Any) -> None:
    found = trace(model, FACT, noise=0.5, samples=4)
    assert abs(found.corrupted - found.clean) > 1e-4
    everything = {"tokens": range(5), "noise": 0.5, "samples": 4}
    assert restored_probability(model, FACT, layers=range(4), **everything) == pytest.approx(found.clean, rel=1e-6)
    # The last block's output is all that the head reads.
    assert restored_probability(model, FACT, layers=[3], **everything) == pytest.approx(found.clean, rel=1e-6)
    assert float(found.restored[-1, -1]) == pytest.approx(found.clean, rel=1e-6)


def test_tokens_before_the_subject_carry_nothing(model: Any) -> None:
    """They are computed without it."""
    found = trace(model, FACT, noise=0.5, samples=3)
    assert found.effects[0].abs().max() <= 1e-7


def test_how_states_share_a_forward_changes_nothing_but_rounding(model: Any) -> None:
    one, many = (trace(model, FACT, noise=0.5, kind="mlp", samples=3, token_budget=budget) for budget in (1, 4096))
    assert torch.allclose(one.restored, many.restored, atol=1e-6)
    assert torch.equal(many.restored, trace(model, FACT, noise=0.5, kind="mlp", samples=3, token_budget=4096).restored)
    other = trace(model, FACT, noise=0.5, kind="mlp", samples=3, seed=2)
    assert other.corrupted != many.corrupted


def test_a_window_restores_neighbours_and_a_wide_one_all_layers(model: Any) -> None:
    wide = trace(model, FACT, noise=0.5, kind="mlp", window=100, samples=3)
    assert torch.allclose(wide.restored[:, 0], wide.restored[:, 3], atol=1e-6)
    alone = trace(model, FACT, noise=0.5, kind="mlp", window=1, samples=3)
    pair = restored_probability(model, FACT, tokens=[2], layers=[1], kind="mlp", noise=0.5, samples=3)
    assert float(alone.restored[2, 1]) == pytest.approx(pair, rel=1e-5)


def test_the_layer_that_carries_the_fact_is_found(carrier: Any) -> None:
    found = trace(carrier, FACT, noise=3.0, kind="mlp", window=1)
    assert found.clean > found.corrupted + 0.1
    assert int(found.effects.amax(0).argmax()) == CARRIER
    token = int(found.effects[:, CARRIER].argmax())
    assert FACT.subject[0] <= token < FACT.subject[1]
    located = locate(carrier, [FACT], kind="mlp", window=1, noise=3.0)
    assert located.top(1) == (CARRIER,)
    assert located.facts == 1


def test_the_best_layers_of_equal_ones_are_the_lower() -> None:
    assert Located((0.1, 0.3, 0.3, 0.2), 1).top(3) == (1, 2, 3)
    assert Located((0.0, 0.0, 0.0), 1).top(2) == (0, 1)


def test_a_model_that_does_not_know_is_not_traced(carrier: Any) -> None:
    wrong = FACT._replace(answer=41)
    with pytest.raises(DataError, match="the model begins none of 2 answers as their rows do"):
        locate(carrier, [wrong, wrong])
    assert locate(carrier, [wrong, FACT], window=1, samples=2).facts == 1


def test_the_model_is_left_as_it_was(carrier: Any) -> None:
    before = {name: value.clone() for name, value in carrier.state_dict().items()}
    carrier.train()
    locate(carrier, [FACT], samples=1)
    assert carrier.training
    assert all(torch.equal(value, before[name]) for name, value in carrier.state_dict().items())
    hooks = [module for module in carrier.modules() if module._forward_hooks]
    assert hooks == []


def test_noise_is_in_units_of_the_subjects_embeddings(model: Any) -> None:
    table = model.get_input_embeddings().weight.detach()
    expected = 3 * float(torch.cat([table[20], table[21]]).double().std())
    assert noise_scale(model, [FACT]) == pytest.approx(expected, rel=1e-6)


def test_a_part_that_is_not_there_is_named(model: Any) -> None:
    assert part(model, 0, "mlp") is model.model.layers[0].mlp
    assert part(model, -1, "block") is blocks(model)[-1]
    layer = model.model.layers[0]
    mlp = layer.mlp
    layer.mixer = mlp
    del layer.mlp
    try:
        with pytest.raises(UsageError, match="LlamaDecoderLayer has no mlp module") as error:
            part(model, 0, "mlp")
        assert "mixer" in str(error.value.hint)
    finally:
        del layer.mixer
        layer.mlp = mlp
    assert isinstance(layer.mlp, nn.Module)


def test_subjects_are_found_in_prompts() -> None:
    tokenizer = tiny_tokenizer()
    turns = (Turn("user", "Where was Mira Sölen born, Mira?"), Turn("assistant", "She was born in Tallinn."))
    rows = [
        Example("a", 0, turns=turns, group="Mira Sölen"),
        Example("b", 1, turns=turns, group="someone else"),
        Example("c", 2, turns=turns, group="x", extra=MappingProxyType({"subject": "Mira"})),
        Example("d", 3, turns=turns),
        Example("e", 4, text="Mira Sölen was born in Tallinn.", group="Mira Sölen"),
    ]
    dataset = encode_all(rows, build_template("auto", tokenizer), role="forget", max_length=256)
    found = facts_of(dataset, tokenizer)
    assert len(found) == 2
    spoken = [tokenizer.decode(list(fact.prompt[slice(*fact.subject)])) for fact in found]
    assert "Mira Sölen" in spoken[0]
    assert spoken[0].strip() in ("Mira Sölen", "Mira Sölen b")
    assert "Mira" in spoken[1]
    assert "Sö" not in spoken[1]
    for fact in found:
        assert tokenizer.decode([fact.answer])[0] == "S"
    assert subject_span(found[0].prompt, "", tokenizer) is None
