"""A run that finds no room says what would need less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import api
from expunge.errors import StoppedError
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.engine import Engine
from expunge.train.out_of_memory import explain_out_of_memory, is_out_of_memory


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    for role in ("forget", "retain"):
        rows = [{"question": f"Who is {role} {i}?", "answer": f"{role} number {i}."} for i in range(4)]
        (tmp_path / f"{role}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = tiny_tokenizer(vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_llama(300).save_pretrained(tmp_path / "model")
    return {
        "model": {"model_name_or_path": str(tmp_path / "model")},
        "data": {"forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl")},
        "method": {"name": "grad_diff"},
        "train": {"global_batch_size": 4, "max_steps": 2, "token_budget": 512},
        "device": "cpu",
        "output_dir": str(tmp_path / "run"),
    }


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_every_allocator_is_understood(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.slow
def test_a_step_without_room(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*args: Any, **kwargs: Any) -> None:
        # The plan carries out a step as well, and must not meet the same end.
        monkeypatch.undo()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Engine, "train_step", step)
    with pytest.raises(StoppedError, match=r"out of memory: by its plan this run needs about \d+ (MB|kB|GB)") as raised:
        api.unlearn(recipe)
    assert raised.value.exit_code == 4
    assert raised.value.hint is not None
    assert "train.gradient_checkpointing=true (about" in raised.value.hint
    assert "train.token_budget=" in raised.value.hint
    manifest = json.loads((Path(recipe["output_dir"]) / "manifest.json").read_text())
    assert manifest["status"] == "stopped"


def test_the_message_comes_also_where_a_plan_finds_no_room(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("expunge.train.planning.draft.draft", refuse)
    from expunge.config.load import load_recipe

    error = explain_out_of_memory(load_recipe(recipe, ()).recipe, torch.device("cpu"))
    assert "out of memory on cpu" in str(error)
    assert "train.token_budget" in str(error)


def test_other_errors_are_left_alone(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Engine, "train_step", step)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        api.unlearn(recipe)
    assert not is_out_of_memory(ValueError("out of memory"))
