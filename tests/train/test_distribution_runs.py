"""Whole runs of IdkNLL, UNDIAL, CE-U, PDU, RMU and FLAT on a small model: what moves, what is kept, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import ModelError, UsageError
from expunge.losses.rmu import control_vector
from expunge.methods.base import Method, Needs
from expunge.methods.ceu import CEU
from expunge.methods.flat import FLAT
from expunge.methods.idk_nll import IdkNLL
from expunge.methods.pdu import PDU
from expunge.methods.rmu import RMU
from expunge.methods.undial import UNDIAL
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Engine
from expunge.train.monitor import VOLATILE

MakeEngine = Callable[..., Engine]
DOWN = "model.layers.{}.mlp.down_proj.weight"
METHODS: list[Method] = [
    IdkNLL(retain="hidden", retain_layer=0),
    UNDIAL(beta=3, alpha=1),
    UNDIAL(alpha=0.5, retain="kl", kl_positions="attended"),
    CEU(skip_first=3, alpha=1),
    PDU(retain="kl", alpha=2, epsilon=0.0),
    RMU(layer=0, retain="nll"),
    RMU(layer=1, retain="kl", parameters=("",)),
    RMU(layer=1, alpha=0),
    FLAT(divergence="js", alpha=1),
    FLAT(divergence="kl"),
    FLAT(divergence="pearson"),
]


def fit(engine: Engine, checkpoints: Checkpoints | None = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append, checkpoints=checkpoints)
    return [{key: value for key, value in event.items() if key not in VOLATILE} for event in events]


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.retain}-{m.alpha:g}")
def test_how_a_step_is_cut_changes_nothing(method: Method, make_engine: MakeEngine) -> None:
    whole, cut = (fit(make_engine(method, budget=budget, steps=3)) for budget in (4096, 64))
    assert all(event["grad_norm"] > 0 for event in whole)
    for one, two in zip(whole, cut, strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert two[key] == (pytest.approx(value, rel=2e-4, abs=1e-6) if isinstance(value, float) else value), key


# RMU


class WholeRMU(RMU):
    """With a forward that goes on to the logits."""

    def needs(self) -> Needs:
        found = super().needs()
        assert found.truncate
        return Needs(**{**vars(found), "truncate": False})


@pytest.mark.parametrize("layer", [0, 1])
def test_a_forward_that_ends_at_the_layer_gives_the_same_steps(layer: int, make_engine: MakeEngine) -> None:
    cut, whole = make_engine(RMU(layer=layer)), make_engine(WholeRMU(layer=layer))
    assert fit(cut) == fit(whole)
    for name, value in weights(cut).items():
        assert torch.equal(value, weights(whole)[name]), name


@pytest.mark.parametrize(("layer", "moved"), [(0, [DOWN.format(0)]), (1, [DOWN.format(0), DOWN.format(1)])])
def test_rmu_moves_the_mlps_up_to_its_layer_alone(layer: int, moved: list[str], make_engine: MakeEngine) -> None:
    engine = make_engine(RMU(layer=layer), weight_decay=0.1)
    before = weights(engine)
    events = fit(engine)
    assert events[0]["retain"] == 0, "the starting model is the one that is trained"
    assert events[-1]["retain"] > 0
    assert events[-1]["forget"] < events[0]["forget"]
    assert [name for name, value in weights(engine).items() if not torch.equal(value, before[name])] == moved


def test_rmu_trains_what_its_recipe_names(make_engine: MakeEngine) -> None:
    engine = make_engine(RMU(layer=1, parameters=(r"layers\.0\.self_attn",)))
    assert set(engine.trained) == {f"model.layers.0.self_attn.{each}_proj.weight" for each in "qkvo"}
    by_wrapper = make_engine(RMU(layer=1), wrappers=[{"name": "layers", "layers": [0]}])
    assert set(by_wrapper.trained) == {name for name in weights(by_wrapper) if ".layers.0." in name}
    with pytest.raises(UsageError, match="no parameter's name matches 'no_such_matrix'"):
        make_engine(RMU(layer=1, parameters=("no_such_matrix",)))


def test_rmu_steers_one_way_through_a_kill(make_engine: MakeEngine, tmp_path: Path) -> None:
    method = RMU(layer=1, coefficient=6.5)
    whole = make_engine(method, folder=tmp_path / "whole")
    events = fit(whole)
    control = whole.data.constants["control"]
    assert torch.equal(control, control_vector(32, coefficient=6.5, seed=3))

    saved, folder = Checkpoints(tmp_path / "checkpoints"), tmp_path / "killed"
    killed = make_engine(method, save_steps=2, folder=folder)
    with pytest.raises(SystemExit):
        killed.fit(emit=lambda event: exit() if event["step"] == 3 else None, checkpoints=saved)
    resumed = make_engine(method, folder=folder)
    assert saved.load(resumed) == 2
    assert torch.equal(resumed.data.constants["control"], control)
    assert fit(resumed) == events[2:]
    for name, value in weights(resumed).items():
        assert torch.equal(value, weights(whole)[name]), name


@pytest.mark.parametrize("keys", [{}, {"alpha": 0.0}, {"retain": "nll"}], ids=str)
def test_a_layer_that_does_not_exist_lists_those_that_do(keys: dict[str, Any], make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match="layer 7 does not exist: LlamaForCausalLM has 2 blocks") as caught:
        make_engine(RMU(**keys))
    assert caught.value.hint == "layers are 0 to 1"


# PDU


def test_lambda_begins_with_alpha_and_follows_the_retain_loss(make_engine: MakeEngine) -> None:
    method = PDU(alpha=2.0, epsilon=1.0, dual_lr=0.5, warmup_epochs=1.0)
    events = fit(make_engine(method, steps=6))
    # An epoch has three steps.
    expected = 2.0
    for step, event in enumerate(events):
        assert event["lambda"] == pytest.approx(expected, rel=1e-6)
        if step >= 3:
            expected = max(0.0, expected + 0.5 * (event["retain"] - 1.0))
    assert expected > 2.0, "a model that knows nothing breaks the bound"


def test_lambda_never_falls_below_zero(make_engine: MakeEngine) -> None:
    events = fit(make_engine(PDU(alpha=1.0, epsilon=100.0)))
    assert [event["lambda"] for event in events] == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_with_a_multiplier_of_one_the_first_step_is_that_of_the_plain_sum(make_engine: MakeEngine) -> None:
    ours, plain = make_engine(PDU(alpha=1.0), steps=1), make_engine(PDU(), steps=1, wrappers=[{"name": "sum"}])
    ours_events, plain_events = fit(ours), fit(plain)
    assert "lambda" not in plain_events[0], "another combining rule takes the place of dual"
    assert ours_events[0]["grad_norm"] == pytest.approx(plain_events[0]["grad_norm"], rel=1e-5)
    for name, value in weights(ours).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=1e-5, atol=1e-7)


# What is refused before the first step


def test_the_published_undial_is_there_to_be_compared_and_not_to_be_run(make_engine: MakeEngine) -> None:
    with pytest.raises(ModelError, match="depend on the padding") as caught:
        make_engine(UNDIAL(profile="openunlearning"))
    assert "profile=canonical" in str(caught.value.hint)


def test_ceu_with_nothing_to_unlearn(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match="skip_first=500 leaves no token of any forget row"):
        make_engine(CEU(skip_first=500))
