"""A plan says before the run what the run then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from expunge import api
from expunge.errors import UsageError
from expunge.testing.tiny import tiny_llama
from expunge.train.plan import Plan

WORLD = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 300}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    for role, count in (("forget", 10), ("retain", 14)):
        answers = [f"{role} number {i}. " * (1 + i % 4) for i in range(count)]
        rows = [{"question": f"Who is {role} {i}?", "answer": answer} for i, answer in enumerate(answers)]
        (tmp_path / f"{role}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {
        "model": {"from_scratch": {**WORLD, **HEADS}, "tokenizer_vocab_size": 300},
        "data": {
            "forget": str(tmp_path / "forget.jsonl"),
            "retain": str(tmp_path / "retain.jsonl"),
            "tokenizer_corpus": str(tmp_path / "retain.jsonl"),
            "max_length": 200,
        },
        "method": {"name": "npo"},
        "train": {"global_batch_size": 4, "num_train_epochs": 3, "token_budget": 128},
        "device": "cpu",
    }


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a plan loaded weights")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


def made(recipe: dict[str, Any], *overrides: str, **hardware: Any) -> Plan:
    return api.plan(recipe, *overrides, **hardware)


def test_what_a_plan_says(recipe: dict[str, Any]) -> None:
    plan = made(recipe)
    assert (plan.method, plan.rows) == ("npo", {"forget": 10, "retain": 14})
    assert (plan.steps, plan.steps_per_epoch) == (9, 3)
    assert plan.batch == {"forget": 4, "retain": 4}
    assert (plan.weights_dtype, plan.compute_dtype, plan.device) == ("float32", "float32", "cpu")
    assert (plan.token_budget, plan.token_budget_assumed) == (128, False)
    assert plan.micro_batches > 1
    assert plan.warnings == ()
    json.dumps(plan.to_json())


def test_parameters_are_those_of_the_model(recipe: dict[str, Any]) -> None:
    model = tiny_llama(300, **{k: v for k, v in {**WORLD, **HEADS}.items() if k not in ("model_type", "vocab_size")})
    tied = made(recipe, "model.from_scratch.tie_word_embeddings=true").parameters
    apart = made(recipe, "model.from_scratch.tie_word_embeddings=false").parameters
    assert sum(p.numel() for p in model.parameters()) in (tied, apart)
    assert apart - tied == 300 * 64


def test_a_folder_is_planned_from_its_config(recipe: dict[str, Any], shared: Path) -> None:
    folder = shared / "models" / "tofu_tiny_full"
    plan = made({**recipe, "model": {"model_name_or_path": str(folder)}})
    assert plan.parameters == 1_315_968
    assert plan.model == str(folder)


def test_a_larger_budget_changes_the_micro_batches_and_the_memory_only(recipe: dict[str, Any]) -> None:
    small, large = made(recipe), made(recipe, "train.token_budget=4096")
    assert large.micro_batches == 2
    assert large.memory.activations > small.memory.activations
    assert large.memory.weights == small.memory.weights
    assert (large.steps, large.tokens_per_step, large.batch) == (small.steps, small.tokens_per_step, small.batch)


def test_an_automatic_budget_is_said_to_be_assumed(recipe: dict[str, Any]) -> None:
    assert made(recipe, "train.token_budget=auto").token_budget_assumed


def test_the_reference_table(recipe: dict[str, Any]) -> None:
    assert made(recipe).reference_bytes == 4 * 10 + 8 * 11
    assert made(recipe, "method={name: simnpo}").reference_bytes == 0


def test_adamw_keeps_two_numbers_per_parameter_and_muon_fewer(recipe: dict[str, Any]) -> None:
    plan = made(recipe)
    # And a step count per tensor.
    assert 8 * plan.parameters <= plan.memory.optimizer < 8.01 * plan.parameters
    assert 4 * plan.parameters == pytest.approx(plan.memory.gradients, rel=0.001)
    assert 4 * plan.parameters == pytest.approx(plan.memory.weights, rel=0.001)
    assert made(recipe, "train.optim=muon").phases.step.optimizer < 8 * plan.parameters
    assert made(recipe, "train.optim=sgd").phases.step.optimizer == 0


def test_checkpointing_saves_activations(recipe: dict[str, Any]) -> None:
    deep = ("model.from_scratch.num_hidden_layers=8", "train.token_budget=512")
    less, more = made(recipe, "train.gradient_checkpointing=true", *deep), made(recipe, *deep)
    assert less.memory.activations < more.memory.activations / 2


def test_bfloat16_copies_weights_and_halves_activations(recipe: dict[str, Any]) -> None:
    here, there = made(recipe), made(recipe, device="h100")
    assert there.compute_dtype == "bfloat16"
    assert there.memory.tables == 0
    assert 4 * here.parameters < there.memory.weights <= 6.01 * here.parameters
    assert there.memory.activations < here.memory.activations
    assert there.available == 80 * 10**9


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method={name: grad_ascent}"], "no retain term"),
        (["train.learning_rate=0.01"], "is high"),
        (["data.max_length=400"], "cut to the 256 tokens"),
        (["data.max_length=40", "data.on_truncate=keep"], "rows are cut"),
    ],
)
def test_warnings(recipe: dict[str, Any], overrides: list[str], words: str) -> None:
    assert any(words in warning for warning in made(recipe, *overrides).warnings)


def test_a_rate_that_bfloat16_cannot_see(recipe: dict[str, Any]) -> None:
    plan = made(recipe, "train.learning_rate=1e-6", device="a100")
    assert any("bfloat16" in warning for warning in plan.warnings)
    assert not any(
        "bfloat16" in warning for warning in made(recipe, "train.learning_rate=1e-4", device="a100").warnings
    )


def test_what_would_stop_the_run_stops_the_plan(recipe: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"method\.bta"):
        made(recipe, "method.bta=1")
    with pytest.raises(UsageError, match="retain"):
        made(recipe, "data.retain=[]")
