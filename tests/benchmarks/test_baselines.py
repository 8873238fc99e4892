"""The two sides of a benchmark must do the same work: same loss and gradient of a step, same values of every metric."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.baselines.train import pad_right  # noqa: E402
from benchmarks.common import PAD, build_model, ratio_of  # noqa: E402

from benchmarks import evaluate, train  # noqa: E402
from expunge.evals.suite import SuiteData  # noqa: E402
from expunge.evals.suites.tofu import tofu  # noqa: E402
from expunge.train.step import StepRun  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> train.World:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    args = argparse.Namespace(device="cpu", batch_size=4, data="synthetic", shape="tiny", shared=tmp_path)
    return train.make_world(args, 2)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "budget", "repeat_retain"),
    [("grad_diff", 150, False), ("npo", 150, False), ("eua", 150, False), ("eua", 4096, True)],
)
def test_both_trainers_take_the_same_step(name: str, budget: int, repeat_retain: bool, world: train.World) -> None:
    engine = train.make_engine(world, name, budget)
    trainer = train.make_trainer(world, name, argparse.Namespace(repeat_retain=repeat_retain))

    # Away from the starting point, where NPO's weights are all one and EUA's retain hinge is zero.
    for model in (engine.model, trainer.model):
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    plan = engine.splitter(engine.stream.next())
    ours = StepRun(engine, plan).backward(*engine.needs.roles)
    batches = [pad_right(world.rows(role, 0), pad_id=PAD, device=world.device) for role in ("forget", "retain")]
    theirs = trainer.loss(*batches)
    theirs.backward()

    assert float(ours.total) == pytest.approx(float(theirs.detach()), rel=1e-5, abs=1e-5)
    expected = gradients(trainer.model)
    for key, value in gradients(engine.model).items():
        scale = float(expected[key].abs().max())
        assert torch.allclose(value, expected[key], rtol=1e-3, atol=1e-4 * scale), key


def test_both_trainers_stay_together_over_steps(world: train.World) -> None:
    engine = train.make_engine(world, "npo", 300)
    trainer = train.make_trainer(world, "npo", argparse.Namespace(repeat_retain=False))
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(2):
        train.our_step(engine, number, ours)
        train.their_step(trainer, world, number, theirs)
    assert ours == pytest.approx(theirs, rel=1e-5)
    for one, two in zip(engine.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.allclose(one, two, atol=train.LEARNING_RATE / 5)


def test_both_evaluators_give_the_same_values(shared: Path) -> None:
    from transformers import AutoTokenizer

    folder = shared / "models" / "tofu_tiny_full"
    model = build_model("tiny", torch.device("cpu"), folder=folder).eval()
    suite = tofu(SuiteData(tofu=str(shared / "data" / "tofu"), limit=3))
    suite = type(suite)(suite.name, suite.splits, suite.measure, max_new_tokens=12, options=suite.options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = evaluate.run_ours(model, tokenizer, suite, 1024)
    theirs = evaluate.run_baseline(model, tokenizer, suite)
    assert ours["values"] == pytest.approx(theirs["values"], abs=1e-5)
    assert ours["tokens"] < theirs["tokens"]


def test_a_ratio_is_the_median_of_pairs() -> None:
    ratio = ratio_of([3.0, 8.0, 5.0], [1.0, 2.0, 1.0])
    assert (ratio.median, ratio.low, ratio.high) == (4.0, 3.0, 5.0)
    assert str(ratio) == "4.00x (3.00-5.00)"
