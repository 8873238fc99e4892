"""The two sides of a benchmark must do the same work: same loss and gradient of a step, same values of every metric."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import benchmarks.eval as evaluation  # noqa: E402
from benchmarks.baselines.train import pad_right  # noqa: E402
from benchmarks.common import PAD, ratio_of  # noqa: E402

from benchmarks import train  # noqa: E402
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


@pytest.fixture(scope="module")
def measured(shared: Path) -> evaluation.World:
    """A model that knows some of the rows, so that no attack is perfect."""
    args = argparse.Namespace(
        threads=torch.get_num_threads(),
        shared=shared,
        rows=4,
        model="tofu_tiny_retain90",
        reference="tofu_tiny_full",
        token_budget=1024,
    )
    world = evaluation.make_world(args)
    return world._replace(suite=replace(world.suite, max_new_tokens=12))


def test_both_evaluators_give_the_same_values(measured: evaluation.World) -> None:
    ours, theirs = (evaluation.side_of(name, measured, metered=True) for name in evaluation.SIDES)
    values = []
    for side in (ours, theirs):
        with side.meter.on(measured.model, measured.reference):
            values.append(side.run())
        values[-1]["membership.gradnorm_auc"] = side.gradient_auc()
    attacks = {name for name in values[1] if name.startswith("membership.")}
    assert len(attacks) == 6
    assert {name: values[0][name] for name in values[1]} == pytest.approx(values[1], abs=1e-5)
    one, two = (side.meter.counts() for side in (ours, theirs))
    assert set(one["padded"]) == set(two["padded"]) == set(evaluation.PARTS)
    for name in (evaluation.RIGHT, evaluation.PERTURBED, evaluation.REFERENCE):
        assert one["real"][name] == two["real"][name]
    # Probability, ES and EM of the forget answers, five attacks on those and on the holdout answers.
    first, second = (
        sum(len(item.input_ids) for item in evaluation.our_plan(alone).dataset.encoded)
        for alone in (only(measured, "forget"), only(measured, "holdout"))
    )
    assert one["real"][evaluation.LIKELIHOOD] == first + second
    assert two["real"][evaluation.LIKELIHOOD] == 8 * first + 5 * second
    assert sum(one["padded"].values()) < sum(two["padded"].values())


def only(world: evaluation.World, split: str) -> evaluation.World:
    """The answers of one split."""
    answers = evaluation.members(world.suite)
    return world._replace(suite=replace(answers, splits=tuple(each for each in answers.splits if each.name == split)))


def test_a_ratio_is_the_median_of_pairs() -> None:
    ratio = ratio_of([3.0, 8.0, 5.0], [1.0, 2.0, 1.0])
    assert (ratio.median, ratio.low, ratio.high) == (4.0, 3.0, 5.0)
    assert str(ratio) == "4.00x (3.00-5.00)"
