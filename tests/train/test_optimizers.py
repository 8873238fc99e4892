"""Optimizers: what each trains, that its state survives a checkpoint, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from expunge.catalog import METHODS
from expunge.config.load import load_recipe
from expunge.config.schema import Recipe, TrainSection
from expunge.errors import UsageError
from expunge.testing.tiny import tiny_llama
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Engine
from expunge.train.optim import Optimizers, require_optimizer

MakeEngine = Callable[..., Engine]

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
EVERY = ["adamw", pytest.param("adamw_8bit", marks=needs_bitsandbytes), "muon", "sgd"]


@pytest.mark.parametrize("optim", EVERY)
def test_every_weight_moves(optim: str) -> None:
    model = tiny_llama(300)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = Optimizers(model, TrainSection(optim=optim, learning_rate=1e-3), total_steps=4)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    optimizers.step()
    assert all(not torch.equal(start[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("optim", EVERY)
def test_a_resumed_run_is_bit_equal(optim: str, make_engine: MakeEngine, tmp_path: Path) -> None:
    settings = {"steps": 4, "optim": optim, "weight_decay": 0.1, "warmup_steps": 1}
    whole = make_engine(METHODS.load("npo")(), **settings)
    whole.fit(emit=lambda event: None)
    killed = make_engine(METHODS.load("npo")(), save_steps=2, **settings)
    killed.total_steps = 2
    killed.fit(emit=lambda event: None, checkpoints=Checkpoints(tmp_path / "checkpoints"))
    resumed = make_engine(METHODS.load("npo")(), **settings)
    assert Checkpoints(tmp_path / "checkpoints").load(resumed) == 2
    resumed.fit(emit=lambda event: None)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@needs_bitsandbytes
def test_eight_bits_follow_the_whole_moments() -> None:
    models = {name: tiny_llama(300, hidden_size=96, intermediate_size=128) for name in ("adamw", "adamw_8bit")}
    start = [p.detach().clone() for p in models["adamw"].parameters()]
    for name, model in models.items():
        optimizers = Optimizers(model, TrainSection(optim=name, learning_rate=1e-3), total_steps=20)
        generator = torch.Generator().manual_seed(0)
        for _ in range(10):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizers.step()
        if name == "adamw_8bit":
            kinds = {state["state1"].dtype for state in optimizers.each[0].state.values()}
            assert kinds == {torch.uint8, torch.float32}
    one, other = (list(model.parameters()) for model in models.values())
    apart = sum(float((a - b).detach().square().sum()) for a, b in zip(one, other, strict=True))
    moved = sum(float((a - b).detach().square().sum()) for a, b in zip(one, start, strict=True))
    assert 0 < apart < 0.02 * moved


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_divided_weights_are_stepped_as_whole_ones(optim: str, alone: Any) -> None:
    whole, divided = tiny_llama(300), tiny_llama(300)
    for layer in divided.model.layers:
        fully_shard(layer, mesh=alone)
    fully_shard(divided, mesh=alone)
    ids = torch.arange(40).reshape(2, 20)
    for model in (whole, divided):
        optimizers = Optimizers(model, TrainSection(optim=optim, learning_rate=1e-2), total_steps=3)
        for _ in range(3):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizers.step()
    for one, other in zip(whole.parameters(), divided.parameters(), strict=True):
        assert isinstance(other, DTensor)
        assert torch.allclose(one, other.full_tensor(), atol=1e-6)


def recipe(**sections: Any) -> Recipe:
    return load_recipe({"model": {"model_name_or_path": "somewhere"}, "method": {"name": "npo"}, **sections}, ()).recipe


@pytest.mark.parametrize(
    ("written", "means"),
    [("adamw_torch", "adamw"), ("adamw_torch_fused", "adamw"), ("adamw_bnb_8bit", "adamw_8bit"), ("sgd", "sgd")],
)
def test_names_of_training_arguments(written: str, means: str) -> None:
    assert recipe(train={"optim": written}).train.optim == means


@pytest.mark.parametrize(
    ("sections", "device", "words"),
    [
        ({"train": {"optim": "muon"}, "model": {"use_peft": True}}, "cpu", "model.use_peft"),
        ({"train": {"optim": "paged_adamw_8bit"}}, "cpu", "works on cuda"),
        ({"train": {"optim": "adamw_8bit"}}, "mps", "works on cuda and cpu"),
        ({"train": {"optim": "adamw_8bit", "fsdp": True}}, "cuda", "train.fsdp"),
    ],
)
def test_what_is_refused(sections: dict[str, Any], device: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        require_optimizer(recipe(**sections), torch.device(device))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package bitsandbytes") as raised:
        require_optimizer(recipe(train={"optim": "adamw_8bit"}), torch.device("cpu"))
    assert "expunge[bitsandbytes]" in str(raised.value)
