"""Names of TrainingArguments and ModelConfig in a recipe: every one is taken, accepted or refused with its reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from expunge.config.aliases import JOINED, MOVED, RULES, VALUES
from expunge.config.load import Given, load_recipe
from expunge.config.problems import described_keys
from expunge.config.schema import Recipe
from expunge.errors import UsageError
from expunge.models.load import require_precision

RULED = {name for rule in RULES for name in rule.names.split()}


def loaded(**train: Any) -> Given:
    return load_recipe({"train": train})


def refused(settings: dict[str, Any]) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_recipe(settings)
    return caught.value


def test_every_training_argument_has_a_place() -> None:
    ours = described_keys(Recipe).keys() | MOVED.keys() | JOINED.keys() | RULED
    names = {f"train.{field.name}" for field in dataclasses.fields(TrainingArguments)}
    assert names - ours == set()


def test_the_tables_name_what_there_is() -> None:
    ours = described_keys(Recipe).keys()
    assert set(MOVED.values()) <= ours
    assert VALUES.keys() <= ours
    elsewhere = {"train.warmup_steps"}
    assert not (MOVED.keys() | RULED | JOINED.keys() - elsewhere) & ours
    assert not MOVED.keys() & RULED
    assert len(RULED) == sum(len(rule.names.split()) for rule in RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.names.split()[0])
def test_a_rule_accepts_what_happens_anyway_and_explains_the_rest(rule: Any) -> None:
    for name in rule.names.split():
        section, _, key = name.partition(".")
        for fine in rule.fine:
            assert load_recipe({section: {key: fine}}).recipe == Recipe()
        error = refused({section: {key: "something else"}})
        assert name in error.message
        assert rule.why in error.message
        assert error.hint


@pytest.mark.parametrize(("name", "key"), MOVED.items())
def test_a_moved_name_is_our_key(name: str, key: str) -> None:
    values = {"model.dtype": "float32", "output_dir": "here", "hub_model_id": "me/it"}
    value = values.get(key, "x" if key.startswith("model.") and "use" not in key else 1)
    if key in ("model.use_peft", "train.gradient_checkpointing", "push_to_hub", "hub_private_repo"):
        value = True
    section, _, leaf = name.partition(".")
    *inside, ours = key.split(".")
    expected = {inside[0]: {ours: value}} if inside else {ours: value}
    assert load_recipe({section: {leaf: value}}).recipe == Recipe.model_validate(expected)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"optim": "adamw_torch_fused"}, {"optim": "adamw"}),
        ({"max_steps": -1}, {}),
        ({"max_grad_norm": 0.0}, {"max_grad_norm": None}),
        ({"report_to": "none"}, {}),
        ({"fsdp": "full_shard auto_wrap"}, {"fsdp": True}),
        ({"warmup_steps": 0.1}, {"warmup_ratio": 0.1}),
        ({"warmup_steps": 10}, {"warmup_steps": 10}),
        ({"eval_strategy": "steps", "eval_steps": 5}, {"eval_every": 5}),
        ({"save_strategy": "epoch"}, {}),
        ({"save_strategy": "steps", "save_steps": 3}, {"save_steps": 3}),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "model_utility", "greater_is_better": True},
            {"keep_best": {"metric": "model_utility", "direction": "up"}},
        ),
        ({"load_best_model_at_end": False}, {}),
        ({"load_best_model_at_end": True, "keep_best": "model_utility"}, {"keep_best": "model_utility"}),
    ],
)
def test_settings_that_mean_the_same(train: dict[str, Any], expected: dict[str, Any]) -> None:
    assert load_recipe({"train": train}).recipe == Recipe.model_validate({"train": expected})


@pytest.mark.parametrize(("world", "total"), [(None, 12), ("4", 48)])
def test_a_batch_per_device_is_multiplied_and_told(
    world: str | None, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    given = loaded(per_device_train_batch_size=3, gradient_accumulation_steps=4)
    assert given.recipe.train.global_batch_size == total
    assert "global_batch_size" not in given.given["train"]
    (said,) = given.notes
    assert f"train.global_batch_size {total}: 3 rows per device x 4 accumulated x {world or 1} process" in said


def test_two_forms_of_one_setting_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert loaded(per_device_train_batch_size=3, global_batch_size=3).recipe.train.global_batch_size == 3
    error = refused({"train": {"per_device_train_batch_size": 3, "global_batch_size": 32}})
    assert "x 1 process = 3 rows a step and train.global_batch_size=32 disagree" in error.message
    assert "train.eval_steps=5 and train.eval_every=4" in refused({"train": {"eval_steps": 5, "eval_every": 4}}).message
    assert "seed" in refused({"seed": 1, "train": {"seed": 2}}).message


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"gradient_accumulation_steps": 4}, "needs train.per_device_train_batch_size"),
        ({"per_device_train_batch_size": "8"}, "expected a whole number > 0, found '8'"),
        ({"per_device_train_batch_size": True}, "expected a whole number > 0, found True"),
        ({"logging_steps": True}, "train.logging_steps=True is refused"),
        ({"resume_from_checkpoint": "runs/a/checkpoint-5"}, "the same command continues it"),
        ({"fp16": True}, "half precision"),
        ({"save_strategy": "no"}, "train.save_strategy='no' without train.save_steps"),
        ({"eval_strategy": "epoch"}, "train.eval_strategy='epoch' without train.eval_every"),
        ({"eval_strategy": "steps"}, "train.eval_strategy='steps' without train.eval_every"),
        ({"load_best_model_at_end": True}, "says nothing without a metric"),
        ({"metric_for_best_model": "model_utility"}, "need load_best_model_at_end=true"),
        ({"learning_rte": 1}, "unknown key train.learning_rte"),
    ],
)
def test_what_cannot_be_meant_is_explained(train: dict[str, Any], message: str) -> None:
    error = refused({"train": train})
    assert message in error.message
    assert error.hint


def test_everything_refused_is_named_at_once() -> None:
    error = refused({"train": {"deepspeed": "zero3.json", "torch_compile": True}, "model": {"device_map": "auto"}})
    for name in ("train.deepspeed", "train.torch_compile", "model.device_map"):
        assert name in error.message
    assert "train.fsdp=true" in str(error.hint)


def test_a_token_is_refused_and_not_repeated() -> None:
    assert "secret" not in str(refused({"train": {"hub_token": "secret"}, "model": {"token": "secret"}}))


def test_a_mapping_and_what_was_given_stay_as_written() -> None:
    settings = {"train": {"eval_steps": 3}}
    assert load_recipe(settings).given == {"train": {"eval_steps": 3}}
    assert settings == {"train": {"eval_steps": 3}}
    assert load_recipe(settings, ["train.eval-steps=4"]).recipe.train.eval_every == 4


@pytest.mark.parametrize(
    ("bf16", "device", "message"),
    [(True, "cpu", "a CPU computes in float32"), (False, "cuda", "an accelerator computes in bfloat16")],
)
def test_bf16_is_only_a_check(bf16: bool, device: str, message: str) -> None:
    require_precision(not bf16, torch.device(device))
    require_precision(None, torch.device(device))
    with pytest.raises(UsageError, match=message):
        require_precision(bf16, torch.device(device))
