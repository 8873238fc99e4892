"""Which DeepSpeed settings and recipes are taken, and what is refused; runs are in `test_hostile_deepspeed.py`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_world import by_default

from expunge.config.schema import Recipe, TrainSection
from expunge.errors import UsageError
from expunge.models.processes import Processes
from expunge.train.deepspeed import asked_for, by_hand, read_config, require_zero3
from expunge.train.layout import require_layout

LAUNCH = Path(__file__).parents[2] / "launch"
CPU = torch.device("cpu")
TWO = Processes(rank=0, world=2)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Name a file of DeepSpeed settings, as the launcher does."""

    def name(**changes: Any) -> None:
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(json.loads((LAUNCH / "zero3.json").read_text()) | changes))
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    name()
    return name


def recipe(**train: Any) -> Recipe:
    document = {
        "model": {"model_name_or_path": "m"},
        "data": {"forget": "f.jsonl", "retain": "r.jsonl"},
        "method": {"name": "npo"},
        "train": train,
    }
    return Recipe.model_validate(document)


def chosen(**around: Any) -> Any:
    return SimpleNamespace(**{"method": by_default("npo"), "combine": None, "masks": (), **around})


def test_the_recipe_decides_what_a_step_is(settings: Any) -> None:
    found = read_config(TrainSection(max_grad_norm=0.5), CPU)
    assert found["gradient_clipping"] == 0.5
    assert (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"]) == (1, 1)
    assert "torch_autocast" not in found
    assert read_config(TrainSection(max_grad_norm=None), CPU)["gradient_clipping"] == 0.0
    on_gpu = read_config(TrainSection(), torch.device("cuda"))
    assert on_gpu["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gradient_accumulation_steps": 4}, "sets gradient_accumulation_steps to 4, which the recipe decides"),
        ({"optimizer": {"type": "Adam"}}, "sets optimizer to"),
        ({"bf16": {"enabled": True}}, "sets bf16 to"),
        ({"train_batch_size": 64}, "sets train_batch_size to 64"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage to 2"),
        ({"zero_optimization": {}}, "zero_optimization.stage to None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_are_refused(settings: Any, changes: dict[str, Any], words: str) -> None:
    settings(**changes)
    with pytest.raises(UsageError, match=words):
        read_config(TrainSection(), CPU)


def test_settings_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", raising=False)
    with pytest.raises(UsageError, match="without a deepspeed_config_file"):
        read_config(TrainSection(), CPU)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(TrainSection(), CPU)
    (tmp_path / "none.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(TrainSection(), CPU)


def test_recipes_that_are_taken_and_refused(settings: Any) -> None:
    require_zero3(recipe(), chosen(), TWO)
    require_zero3(recipe(optim="sgd"), chosen(), TWO)
    wrapper = SimpleNamespace(name="gru", whole_tensors=False)
    refused = [
        ("the wrapper gru", recipe(), chosen(combine=wrapper), TWO),
        ("the wrapper gru", recipe(), chosen(masks=(wrapper,)), TWO),
        ("train.optim=muon", recipe(optim="muon"), chosen(), TWO),
        ("train.fsdp", recipe(fsdp=True), chosen(), TWO),
        ("train.eval_every", recipe(eval_every=2), chosen(), TWO),
        ("train.logits_chunk", recipe(logits_chunk=8), chosen(), TWO),
        ("only one process", recipe(), chosen(), Processes()),
        ("makes new rows", recipe(), chosen(method=SimpleNamespace(name="unstar", refresh_every=1)), TWO),
    ]
    for words, given, wrapped, where in refused:
        with pytest.raises(UsageError, match=words) as error:
            require_layout(given, wrapped, where)
        assert "train.fsdp=true" in str(error.value.hint)


def test_accelerates_own_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="every process would hold the whole model"):
        require_layout(recipe(), chosen(), TWO)
    require_layout(recipe(fsdp=True), chosen(), TWO)


def test_switches_are_hidden_only_for_a_moment(settings: Any) -> None:
    with by_hand():
        assert not asked_for("DEEPSPEED")
    assert asked_for("DEEPSPEED")
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"


@pytest.mark.parametrize("name", ["ddp", "deepspeed_zero3"])
def test_accelerate_reads_its_configs(name: str) -> None:
    from accelerate.commands.config import load_config_from_file

    found = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert found.distributed_type.value == {"ddp": "MULTI_GPU", "deepspeed_zero3": "DEEPSPEED"}[name]
    if found.deepspeed_config:
        assert (LAUNCH.parent / found.deepspeed_config["deepspeed_config_file"]).is_file()


def test_deepspeed_takes_what_it_is_given(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed", reason='needs pip install "expunge[deepspeed]"')
    from deepspeed.runtime.config import DeepSpeedConfig

    found = DeepSpeedConfig(read_config(TrainSection(), CPU))
    assert found.zero_optimization_stage == 3
    assert found.gradient_clipping == 1.0
    assert not found.float16_config.enabled
    assert not found.bfloat16_config.enabled
