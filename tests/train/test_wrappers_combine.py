"""Combining rules: their published numbers on toy losses, and what they do inside a real run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import ToyStep, linear
from torch import Tensor

from expunge.catalog import METHODS, WRAPPERS
from expunge.errors import StoppedError, UsageError
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Engine
from expunge.train.gradients import dot, gru_projection
from expunge.train.monitor import VOLATILE
from expunge.train.step import StepRun
from expunge.train.wrappers.adaptive_retain import AdaptiveRetain, AdaptiveRetainCombine, adaptive_weight
from expunge.train.wrappers.base import CombineWrapper
from expunge.train.wrappers.dual import Dual, DualCombine, dual_update
from expunge.train.wrappers.gru import GRU, GRUCombine, GRUProxCombine, GRUTauCombine
from expunge.train.wrappers.select import build_wrapper, wrap
from expunge.train.wrappers.surgery import GradientSurgery, SurgeryCombine
from expunge.train.wrappers.uno import UNO, UNOCombine, hessian_product, shifted

MakeEngine = Callable[..., Engine]
COMBINES = [entry.name for entry in WRAPPERS if issubclass(WRAPPERS.load(entry.name), CombineWrapper)]
NEED_RETAIN = ["gru", "gradient_surgery", "uno", "dual", "adaptive_retain"]
ORIGIN = torch.zeros(2, dtype=torch.float64)


def fit(engine: Engine, checkpoints: Checkpoints | None = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append, checkpoints=checkpoints)
    return [{k: v for k, v in event.items() if k not in VOLATILE} for event in events]


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


def first_step(engine: Engine) -> StepRun:
    return StepRun(engine, engine.splitter(engine.stream.next()))


# On toy losses


def toy(**losses: Any) -> ToyStep:
    return ToyStep(ORIGIN.clone(), losses)


def test_gru_projects_the_forget_gradient() -> None:
    step = toy(forget=linear(-1, -2), retain=linear(2, 1))
    GRUCombine(GRU())(step)
    assert step.result == pytest.approx([0.6, -1.2])
    assert step.logged == {"cosine": pytest.approx(-0.8), "projected": 1.0}


def test_gru_of_the_sum_acts_on_the_sum() -> None:
    step = toy(forget=linear(-1, -2), retain=linear(2, 1))
    GRUCombine(GRU(project="sum"))(step)
    # (-1, -2) + (2, 1) = (1, -1), which does not conflict with (2, 1).
    assert step.result == [1, -1]


def test_gru_can_add_the_retain_gradient_of_the_step() -> None:
    rule = GRUCombine(GRU(add_retain=0.5, ema_new_weight=0.5))
    rule(toy(forget=linear(0, 0), retain=linear(0, 8)))
    step = toy(forget=linear(-1, -2), retain=linear(2, 1))
    rule(step)
    # The average is (0, 4) / 2 + (2, 1) / 2 = (1, 2.5).
    projected = gru_projection({"w": torch.tensor([-1.0, -2.0])}, {"w": torch.tensor([1.0, 2.5])}).tensors["w"]
    assert step.result == pytest.approx((projected + torch.tensor([1.0, 0.5])).tolist())


def test_gru_tau_only_takes_back_along_tau() -> None:
    rule = GRUTauCombine({"w": torch.tensor([2.0, 0.0], dtype=torch.float64)})
    with_it, against = toy(forget=linear(3, 4)), toy(forget=linear(-3, 4))
    rule(with_it)
    rule(against)
    assert (with_it.result, against.result) == ([3, 0], [0, 0])


def test_gru_prox_never_leads_further_away() -> None:
    rule = GRUProxCombine({"w": ORIGIN.clone()})
    free = toy(forget=linear(-1, -2))
    rule(free)
    away = ToyStep(torch.tensor([2.0, 1.0], dtype=torch.float64), {"forget": linear(-1, -2)})
    rule(away)
    assert free.result == [-1, -2]
    assert away.result == pytest.approx([0.6, -1.2])


def test_surgery_by_itself_alternating_and_added() -> None:
    losses = {"forget": linear(3, 4), "retain": linear(1, 0)}
    for forget, number, expected in (
        ("none", 0, [0.64, -0.48]),
        ("alternate", 0, [1.5, 2]),
        ("alternate", 1, [0.64, -0.48]),
        ("add", 1, [2.14, 1.52]),
    ):
        step = ToyStep(ORIGIN.clone(), losses, step=number)
        SurgeryCombine(GradientSurgery(forget=forget, forget_weight=0.5))(step)
        assert step.result == pytest.approx(expected), (forget, number)
    none = toy(forget=linear(0, 0), retain=linear(1, 2))
    SurgeryCombine(GradientSurgery())(none)
    assert none.result == [1, 2]


def quadratic(h: list[list[float]], a: list[float]) -> Callable[[Tensor], Tensor]:
    matrix, centre = torch.tensor(h, dtype=torch.float64), torch.tensor(a, dtype=torch.float64)
    return lambda theta: 0.5 * (theta - centre) @ matrix @ (theta - centre)


def test_a_surgery_step_changes_the_forget_loss_to_second_order_only() -> None:
    forget, retain = quadratic([[2, 0.5], [0.5, 1]], [1, 2]), quadratic([[1, 0], [0, 3]], [-1, 0.5])
    theta = torch.tensor([0.7, -0.4], dtype=torch.float64)
    step = ToyStep(theta.clone(), {"forget": forget, "retain": retain})
    SurgeryCombine(GradientSurgery())(step)
    direction = torch.tensor(step.result, dtype=torch.float64)
    changes = [float(forget(theta - eta * direction) - forget(theta)) for eta in (1e-2, 1e-3)]
    assert changes[0] / changes[1] == pytest.approx(100, rel=1e-3)


def test_the_published_gradient_of_unos_penalty() -> None:
    losses = {
        "forget": quadratic([[2, 0.5], [0.5, 1]], [1, 2]),
        "retain": quadratic([[1, 0], [0, 3]], [-1, 0.5]),
    }
    step = ToyStep(torch.tensor([0.7, -0.4], dtype=torch.float64), losses)
    before = step.theta.detach().clone()
    UNOCombine(UNO(penalty=2.0))(step)
    assert torch.equal(step.theta.detach(), before)
    g_r = [1.7, -2.7]
    assert step.result == pytest.approx([g_r[0] + 2 * 0.117646, g_r[1] - 2 * 0.393538], abs=1e-5)
    assert 0 < step.logged["squared_cosine"] < 1


def test_uno_without_penalty_descends_the_retain_loss_and_may_add_the_forget_loss() -> None:
    step = toy(forget=linear(3, 4), retain=linear(1, 0))
    UNOCombine(UNO(penalty=0.0))(step)
    assert step.result == [1, 0]
    UNOCombine(UNO(penalty=0.0, forget_weight=0.5))(step)
    assert step.result == [2.5, 2]


def test_shifted_weights_come_back_after_an_exception() -> None:
    theta = torch.tensor([1 / 3, 1e-8, -0.0])
    before = theta.clone()

    def fail() -> None:
        assert not torch.equal(theta, before)
        raise RuntimeError

    with pytest.raises(RuntimeError), shifted({"w": theta}, {"w": torch.full((3,), 0.1)}, 3.0):
        fail()
    assert torch.equal(theta.view(torch.int32), before.view(torch.int32))


def test_lambda_follows_its_rule() -> None:
    assert dual_update(1.0, 0.5, epsilon=0.3, learning_rate=5.0) == pytest.approx(2.0)
    assert dual_update(0.5, 0.1, epsilon=0.3, learning_rate=5.0) == 0.0
    assert math.isnan(dual_update(0.5, math.nan, epsilon=0.3, learning_rate=5.0))


def constant(value: float, *slope: float) -> Callable[[Tensor], Tensor]:
    return lambda theta: linear(*slope)(theta) + value


def test_a_step_uses_lambda_from_before_its_update() -> None:
    rule = DualCombine(Dual(initial=2.0, dual_lr=5.0, epsilon=0.3))
    used = []
    for number, loss in enumerate((0.5, 0.3, 0.0, 0.0, 0.0)):
        step = ToyStep(
            ORIGIN.clone(),
            {"forget": linear(1, 0), "retain": constant(loss, 0, 1)},
            weights={"retain": 2.0},
            step=number,
        )
        rule(step)
        used.append(step.logged["lambda"])
        assert step.result == pytest.approx([1, 2 * used[-1]])
        assert step.asked.count(("retain",)) == 1
    assert used == pytest.approx([2.0, 3.0, 3.0, 1.5, 0.0])


def test_lambda_by_epoch_and_after_warming_up() -> None:
    rule = DualCombine(Dual(initial=1.0, dual_lr=1.0, epsilon=0.0, warmup_epochs=1, every="epoch"))
    used = []
    for number, loss in enumerate((9.0, 9.0, 1.0, 2.0, 4.0, 4.0, 0.0)):
        step = ToyStep(
            ORIGIN.clone(),
            {"forget": linear(1, 0), "retain": constant(loss, 0, 1)},
            step=number,
            epoch=number // 2,
            steps_per_epoch=2,
        )
        rule(step)
        used.append(step.logged["lambda"])
    assert used == pytest.approx([1, 1, 1, 1, 2.5, 2.5, 6.5])


def test_a_dual_that_only_warms_up_or_watches_no_such_term_is_refused() -> None:
    losses = {"forget": linear(1, 0), "retain": linear(0, 1)}
    with pytest.raises(UsageError, match="warms up for 100 of 100 steps") as error:
        DualCombine(Dual(warmup_epochs=10))(ToyStep(ORIGIN.clone(), losses))
    assert "below 10" in str(error.value.hint)
    with pytest.raises(UsageError, match="watch the term 'energy'") as error:
        DualCombine(Dual(term="energy"))(ToyStep(ORIGIN.clone(), losses))
    assert error.value.hint == "they have retain"


@pytest.mark.parametrize(
    ("risen", "exact", "code"),
    [(0.25, 1.2695, 1.3), (0.5, 1.5348, 1.5), (0.8, 2.0579, 2.1), (1.0, 2.6, 2.3), (9e9, 2.8, 2.3), (-1, 1.2, 1.2)],
)
def test_the_published_retain_weights(risen: float, exact: float, code: float) -> None:
    assert adaptive_weight(risen, AdaptiveRetain()) == pytest.approx(exact, abs=5e-5)
    assert adaptive_weight(risen, AdaptiveRetain(high=2.3, decimals=1)) == code


def test_the_retain_weight_is_measured_against_the_first_epoch() -> None:
    rule = AdaptiveRetainCombine(AdaptiveRetain())
    used = []
    for epoch, loss in ((0, 1.0), (0, 3.0), (1, 2.5), (1, 1.0), (2, 3.0)):
        step = ToyStep(ORIGIN.clone(), {"forget": linear(1, 0), "retain": constant(loss, 0, 1)}, epoch=epoch)
        rule(step)
        used.append(step.logged["retain_weight"])
        assert step.result == pytest.approx([1, used[-1]])
    assert used == pytest.approx([1.2, 1.2, 1.5348, 1.2, 2.6], abs=5e-5)


# In a run


@pytest.mark.parametrize("name", COMBINES)
def test_every_rule_trains_saves_and_resumes_bit_for_bit(name: str, make_engine: MakeEngine, tmp_path: Path) -> None:
    def build() -> Engine:
        return make_engine(METHODS.load("grad_diff")(), wrappers=[{"name": name}], steps=6, save_steps=4)

    whole = build()
    before = weights(whole)
    events = fit(whole)
    assert all(math.isfinite(event["loss"]) for event in events)
    assert any(not torch.equal(value, before[key]) for key, value in weights(whole).items())
    saved = Checkpoints(tmp_path / "checkpoints")
    killed = build()
    with pytest.raises(SystemExit):
        killed.fit(emit=lambda event: exit() if event["step"] == 5 else None, checkpoints=saved)
    resumed = build()
    assert saved.load(resumed) == 4
    assert fit(resumed) == events[4:]
    for key, value in weights(resumed).items():
        assert torch.equal(value, weights(whole)[key]), key


@pytest.mark.parametrize("name", COMBINES)
def test_micro_batches_change_nothing_but_rounding(name: str, make_engine: MakeEngine) -> None:
    """Accumulate, then combine: the same as one large batch."""
    found = []
    for budget in (64, 8192):
        engine = make_engine(METHODS.load("npo")(), wrappers=[{"name": name}], budget=budget)
        run = first_step(engine)
        assert engine.combine is not None
        engine.combine(run)
        found.append({key: p.grad for key, p in run.named.items() if p.grad is not None})
    small, large = found
    scale = math.sqrt(dot(large, large))
    assert scale > 0
    for key, value in large.items():
        assert torch.allclose(small[key], value, atol=1e-4 * scale, rtol=1e-3), key


def test_the_sum_is_what_a_run_does_without_a_rule(make_engine: MakeEngine) -> None:
    plain, summed = (
        make_engine(METHODS.load("grad_diff")()),
        make_engine(METHODS.load("grad_diff")(), wrappers=[{"name": "sum"}]),
    )
    assert fit(plain) == fit(summed)
    for key, value in weights(plain).items():
        assert torch.equal(value, weights(summed)[key])


def test_gru_leaves_a_run_without_conflict_alone_and_resolves_one(make_engine: MakeEngine) -> None:
    engine = make_engine(METHODS.load("grad_diff")(), wrappers=[{"name": "gru", "ema_new_weight": 1.0}], steps=4)
    run = first_step(engine)
    forget, retain = run.gradient("forget").tensors, run.gradient("retain").tensors
    assert dot(forget, retain) < 0
    assert engine.combine is not None
    engine.combine(run)
    combined = {name: p.grad for name, p in run.named.items() if p.grad is not None}
    assert abs(dot(combined, retain)) <= 1e-6 * abs(dot(forget, retain))
    engine.optimizers.step()
    assert all(event["projected"] in (0.0, 1.0) and abs(event["cosine"]) <= 1 for event in fit(engine))


def test_the_finite_difference_agrees_with_the_exact_hessian_product(make_engine: MakeEngine) -> None:
    engine = make_engine(METHODS.load("grad_diff")(), model=None)
    engine.model.config._attn_implementation = "eager"
    run = first_step(engine)
    direction = run.gradient("retain").tensors
    before = weights(engine)
    found = hessian_product(lambda: run.gradient("forget").tensors, run.named, direction, relative_step=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in weights(engine).items())

    total = torch.zeros(())
    for micro_batch in run.plan.of("forget"):
        total = total + run._losses(micro_batch)[0]
    names = list(run.named)
    first = torch.autograd.grad(total, [run.named[name] for name in names], create_graph=True)
    inner = sum(((g * direction[name]).sum() for g, name in zip(first, names, strict=True)), torch.zeros(()))
    exact = dict(zip(names, torch.autograd.grad(inner, [run.named[name] for name in names]), strict=True))
    error = {name: found[name] - exact[name] for name in names}
    assert dot(error, error) <= 1e-4 * dot(exact, exact)


def test_the_difference_sees_the_same_dropout_as_the_gradient() -> None:
    """Noise that is drawn anew in every pass would drown the difference."""

    def noisy(theta: Tensor) -> Tensor:
        kept = (torch.rand(2) > 0.5).double()
        return (quadratic([[2, 0.5], [0.5, 1]], [1, 2])(theta * kept)) + theta.sum()

    found = []
    for _ in range(2):
        torch.manual_seed(4)
        step = ToyStep(
            torch.tensor([0.7, -0.4], dtype=torch.float64),
            {"forget": noisy, "retain": quadratic([[1, 0], [0, 3]], [-1, 0.5])},
        )
        UNOCombine(UNO(relative_step=0.1 if found else 1e-6))(step)
        found.append(step.result)
        after = torch.rand(1)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    torch.manual_seed(4)
    torch.rand(2)
    assert torch.equal(after, torch.rand(1))


def test_the_loss_of_a_step_is_that_of_its_first_weights(make_engine: MakeEngine) -> None:
    plain = fit(make_engine(METHODS.load("grad_diff")(), steps=1))
    penalised = fit(make_engine(METHODS.load("grad_diff")(), wrappers=[{"name": "uno"}], steps=1))
    assert [penalised[0][key] for key in ("loss", "forget", "retain")] == pytest.approx(
        [plain[0][key] for key in ("loss", "forget", "retain")], rel=1e-6
    )


def test_dual_moves_lambda_once_per_step_however_it_is_cut(make_engine: MakeEngine) -> None:
    keys = {"name": "dual", "initial": 1.0, "dual_lr": 0.5, "epsilon": 0.3}
    cut, whole = (
        fit(make_engine(METHODS.load("grad_diff")(), wrappers=[keys], budget=budget, steps=3)) for budget in (64, 8192)
    )
    assert [event["lambda"] for event in cut] == pytest.approx([event["lambda"] for event in whole], rel=1e-4)
    assert cut[1]["lambda"] == pytest.approx(1.0 + 0.5 * (cut[0]["retain"] - 0.3))


def test_a_number_that_is_none_stops_the_run_and_not_the_multiplier(make_engine: MakeEngine) -> None:
    engine = make_engine(METHODS.load("grad_diff")(), wrappers=[{"name": "dual"}])
    with torch.no_grad():
        engine.model.get_output_embeddings().weight[3, 3] = math.nan
    with pytest.raises(StoppedError, match="step 1"):
        fit(engine)


# Refusals


@pytest.mark.parametrize("name", NEED_RETAIN)
def test_a_rule_without_retain_rows_says_which_need_them(name: str) -> None:
    with pytest.raises(UsageError, match=f"the wrapper {name} weighs two gradients and so needs retain rows") as error:
        wrap(METHODS.load("grad_ascent")(), [{"name": name}])
    assert "gru_tau and gru_prox do not" in str(error.value.hint)
    with pytest.raises(UsageError, match="grad_diff as configured reads only forget"):
        wrap(METHODS.load("grad_diff")(alpha=0), [{"name": name}])


@pytest.mark.parametrize("name", ["sum", "gru_tau", "gru_prox"])
def test_the_others_work_without(name: str, make_engine: MakeEngine) -> None:
    events = fit(make_engine(METHODS.load("grad_ascent")(), wrappers=[{"name": name}], steps=3))
    assert [event["step"] for event in events] == [1, 2, 3]


def test_experimental_rules_say_so() -> None:
    assert [name for name in COMBINES if WRAPPERS.load(name).experimental] == ["gru_tau", "gru_prox", "uno"]
    for name in ("gru_tau", "gru_prox"):
        assert "reconstructed" in WRAPPERS.load(name).paper


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "gru", "ema_new_weight": 0},
        {"name": "gru", "min_cosine": 0.5},
        {"name": "dual", "dual_lr": 0},
        {"name": "dual", "initial": -1},
        {"name": "adaptive_retain", "low": 3.0},
        {"name": "uno", "relative_step": 0},
        {"name": "gradient_surgery", "forget": "sometimes"},
    ],
)
def test_options_out_of_range_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"wrapper {keys['name']}"):
        build_wrapper(keys)
