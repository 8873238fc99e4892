"""ALKN: soft labels, the mask and its two readings, the walk back, and what one request leaves to the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from expunge.config.schema import Recipe
from expunge.errors import UsageError
from expunge.losses.alkn import alkn_loss, alkn_soft_label
from expunge.methods.alkn import ALKN
from expunge.methods.select import select_method
from expunge.testing.contexts import make_context
from expunge.train.wrappers.alkn import ALKNGradientMask, ALKNMask, trimmed_threshold
from expunge.train.wrappers.select import wrap

# The loss


@pytest.mark.parametrize(
    ("k", "values"), [(1.5, {0.0: 0.0, 0.5: 0.158, 1.0: 0.343}), (10.0, {0.0: 0.0, 0.5: 0.047, 1.0: 0.880})]
)
def test_soft_labels_are_the_printed_ones(k: float, values: dict[float, float]) -> None:
    p0 = torch.tensor(list(values), dtype=torch.float64)
    assert alkn_soft_label(p0.log(), k=k).tolist() == pytest.approx(list(values.values()), abs=6e-4)


def test_the_loss_weighs_the_likelihood_by_the_soft_label() -> None:
    logps = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    ref = torch.log(torch.tensor([0.5, 1.0], dtype=torch.float64)).requires_grad_()
    values = alkn_loss(logps, ref, k=1.5)
    weights = alkn_soft_label(ref, k=1.5)
    assert torch.equal(values, -weights * logps)
    values.sum().backward()
    assert torch.equal(logps.grad, -weights)  # type: ignore[arg-type]
    assert ref.grad is None


def test_what_was_never_likely_asks_for_nothing() -> None:
    assert alkn_loss(torch.tensor([-3.0]), torch.tensor([-float("inf")]), k=1.5).item() == 0


@settings(derandomize=True, max_examples=50)
@given(st.lists(st.floats(-40, 0), min_size=1, max_size=8), st.floats(0.1, 50))
def test_soft_labels_grow_with_the_starting_probability(values: list[float], k: float) -> None:
    ref = torch.tensor(sorted(values), dtype=torch.float64)
    found = alkn_soft_label(ref, k=k)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found.diff() >= -1e-15).all()


# The method


def test_retain_rows_are_loaded_but_not_forwarded() -> None:
    needs = ALKN().needs()
    assert needs.roles == ("forget", "retain")
    assert needs.unscored == ("retain",)
    assert list(ALKN().losses(make_context(ALKN(), "forget"))) == ["forget"]


def test_it_brings_its_mask_unless_the_recipe_has_one() -> None:
    assert [type(mask) for mask in wrap(ALKN(), []).masks] == [ALKNMask]
    chosen = wrap(ALKN(), [{"name": "alkn", "keep": "smallest"}]).masks
    assert [mask.keep for mask in chosen if isinstance(mask, ALKNMask)] == ["smallest"]


def test_without_retain_rows_it_says_what_is_missing() -> None:
    recipe = Recipe.model_validate({"data": {"forget": "f.jsonl"}, "method": {"name": "alkn"}})
    with pytest.raises(UsageError, match="alkn needs retain data"):
        select_method(recipe)


class Weights(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value.clone())


@pytest.mark.parametrize("coefficient", [0.0, -1.0, 1.0, 0.5])
def test_negation(coefficient: float) -> None:
    before, after = torch.randn(64), torch.randn(64)
    model = Weights(after)
    with torch.no_grad():
        ALKN(coefficient=coefficient).finish(model, {"weight": before})
    if coefficient in (0.0, -1.0):
        assert torch.equal(model.weight, before if coefficient == 0 else after)
    assert torch.allclose(model.weight, before - coefficient * (after - before), atol=1e-6)


# The mask

SHAPES = {"a": (40, 25), "b": (300,), "c": (3,)}


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def parameters(seed: int = 5) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(value) for name, value in tensors(seed).items()}


def make_mask(steps: int = 10, inherited: Any = None, **keys: Any) -> ALKNGradientMask:
    mask = ALKNGradientMask(ALKNMask(**keys), tensors(1), inherited or {})
    mask.begin(total_steps=steps)
    return mask


def take_steps(
    mask: ALKNGradientMask, named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, count: int, seed: int = 20
) -> list[dict[str, Tensor]]:
    """Steps with random gradients; which entries the mask kept in each."""
    kept = []
    for step in range(count):
        for name, gradient in tensors(seed + step).items():
            named[name].grad = gradient
        mask.on_gradient(named)
        kept.append({name: p.grad != 0 for name, p in named.items() if p.grad is not None})
        optimizer.step()
        mask.after_step(named)
    return kept


def test_rho_one_masks_nothing() -> None:
    masked, free = parameters(), parameters()
    mask = make_mask(rho=1, rho_end=1)
    take_steps(mask, masked, torch.optim.SGD(masked.values(), lr=0.1), 3)
    assert mask.logged() == {"kept": 1.0}
    optimizer = torch.optim.SGD(free.values(), lr=0.1)
    for step in range(3):
        for name, gradient in tensors(20 + step).items():
            free[name].grad = gradient
        optimizer.step()
    assert all(torch.equal(masked[name], free[name]) for name in SHAPES)


@pytest.mark.parametrize("hold", [False, True])
def test_under_plain_sgd_masked_entries_keep_their_bits(hold: bool) -> None:
    named, before = parameters(), tensors(5)
    (kept,) = take_steps(make_mask(hold=hold), named, torch.optim.SGD(named.values(), lr=0.1), 1)
    for name, parameter in named.items():
        assert torch.equal(parameter[~kept[name]], before[name][~kept[name]])
        assert (parameter[kept[name]] != before[name][kept[name]]).all()


def test_the_release_lets_decay_and_momentum_move_masked_entries_and_we_do_not() -> None:
    moved = {}
    for hold in (False, True):
        named = parameters()
        optimizer = torch.optim.AdamW(named.values(), lr=0.1, weight_decay=0.1)
        mask = make_mask(hold=hold)
        take_steps(mask, named, optimizer, 2)
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        (kept,) = take_steps(mask, named, optimizer, 1, seed=22)
        moved[hold] = any((named[name][~kept[name]] != before[name][~kept[name]]).any() for name in SHAPES)
    assert moved == {False: True, True: False}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("size", [500, 20_000])
def test_about_the_asked_share_lies_above_the_threshold(share: float, size: int) -> None:
    spread = torch.rand(size, generator=torch.Generator().manual_seed(0))
    assert float((spread > trimmed_threshold(spread, share)).float().mean()) == pytest.approx(share, abs=0.05)
    # A product of two normal variables has heavy tails, which the trimmed line does not follow exactly.
    heavy = torch.randn(2, size, generator=torch.Generator().manual_seed(0)).prod(0)
    assert float((heavy > trimmed_threshold(heavy, share)).float().mean()) == pytest.approx(share, abs=0.2)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9, 10, 11])
def test_small_tensors_have_a_threshold_between_their_ends(size: int) -> None:
    values = torch.arange(size, dtype=torch.float32)
    found = trimmed_threshold(values, 0.8)
    assert -size <= found <= size
    assert trimmed_threshold(values, 1.0) == -float("inf")


def test_the_share_goes_down_in_five_levels_towards_its_half() -> None:
    mask = make_mask(steps=10)
    shares = []
    for step in range(10):
        mask.step = step
        shares.append(round(mask.share, 6))
    assert shares == [0.8, 0.8, 0.72, 0.72, 0.64, 0.64, 0.56, 0.56, 0.48, 0.48]
    mask = make_mask(steps=2, rho=0.6, rho_end=0.6)
    assert mask.share == 0.6


def test_scores_accumulate_over_steps() -> None:
    mask, named = make_mask(), parameters()
    take_steps(mask, named, torch.optim.SGD(named.values(), lr=0.0), 3)
    expected = sum((tensors(20 + step)["a"] for step in range(3)), torch.zeros(SHAPES["a"])) * tensors(1)["a"]
    assert torch.allclose(mask.score["a"], expected, atol=1e-5)


@pytest.mark.parametrize("keep", ["largest", "smallest"])
def test_the_retain_loss_after_negation_moves_as_the_docstring_says(keep: str) -> None:
    """One step of descent, negated: the retain loss changes by `+eta sum g G_r` over kept entries."""
    named, retain = parameters(), tensors(1)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    mask = make_mask(keep=keep, rho=0.5, rho_end=0.5)
    take_steps(mask, named, torch.optim.SGD(named.values(), lr=1e-3), 1)
    change = 0.0
    for name, parameter in named.items():
        negated = before[name] - (parameter.detach() - before[name])
        change += float(((negated - before[name]) * retain[name]).sum())
    everything = 1e-3 * sum(float((tensors(20)[name] * retain[name]).sum()) for name in SHAPES)
    if keep == "largest":
        assert change > max(everything, 0)
    else:
        assert change < min(everything, 0)


# From one request to the next


def after_a_request(seed: int, inherited: Any = None, **keys: Any) -> dict[str, dict[str, Tensor]]:
    mask, named = make_mask(inherited=inherited, **keys), parameters()
    take_steps(mask, named, torch.optim.SGD(named.values(), lr=0.0), 3, seed=seed)
    left: dict[str, dict[str, Tensor]] = {"mask": {}, "threshold": {}}
    for key, tensor in mask.bequest().items():
        name, kind = key.removeprefix("alkn/").split("/")
        left[kind][name] = tensor
    return left


def test_the_union_of_masks_only_grows_and_thresholds_stay() -> None:
    first = after_a_request(20)
    second = after_a_request(40, first)
    third = after_a_request(60, second)
    for name in SHAPES:
        assert first["mask"][name].dtype == torch.bool
        for earlier, later in ((first, second), (second, third)):
            assert (later["mask"][name] >= earlier["mask"][name]).all()
            assert later["threshold"][name] == earlier["threshold"][name]
    assert any((second["mask"][name] > first["mask"][name]).any() for name in SHAPES)


def test_entries_of_earlier_requests_are_held_back() -> None:
    first = after_a_request(20)
    shares = {}
    for kappa in (0.0, 0.5, 50.0):
        mask, named = make_mask(inherited=first, kappa=kappa), parameters()
        (kept,) = take_steps(mask, named, torch.optim.SGD(named.values(), lr=0.0), 1, seed=40)
        shares[kappa] = float(kept["a"][first["mask"]["a"]].float().mean())
        elsewhere = kept["a"][~first["mask"]["a"]]
        assert elsewhere.any()
    assert shares[0.0] > shares[0.5] > shares[50.0] == 0


def test_tensors_that_earlier_requests_moved_most_are_slowed_down() -> None:
    dense = {"mask": {"a": torch.zeros(40, 25) > 0, "b": torch.ones(300) > 0, "c": torch.zeros(3) > 0}}
    thresholds = {name: torch.tensor(-float("inf"), dtype=torch.float64) for name in SHAPES}
    mask = make_mask(inherited={**dense, "threshold": thresholds}, kappa=0, low_lr_ratio=0.25)
    assert mask.slow == {"b", "c"}
    named, plain = parameters(), parameters()
    take_steps(mask, named, torch.optim.AdamW(named.values(), lr=0.1, weight_decay=0.2), 1)
    free = make_mask(rho=1, rho_end=1)
    take_steps(free, plain, torch.optim.AdamW(plain.values(), lr=0.1, weight_decay=0.2), 1)
    for name, share in {"a": 1.0, "b": 0.25}.items():
        ours, theirs = named[name] - tensors(5)[name], plain[name] - tensors(5)[name]
        assert torch.allclose(ours, share * theirs, atol=1e-6), name


def test_a_resumed_mask_is_the_same_mask() -> None:
    whole, named = make_mask(), parameters()
    take_steps(whole, named, torch.optim.SGD(named.values(), lr=0.0), 4)
    first, again = make_mask(), make_mask()
    take_steps(first, parameters(), torch.optim.SGD(parameters().values(), lr=0.0), 2)
    again.load_state_dict(first.state_dict())
    take_steps(again, parameters(), torch.optim.SGD(parameters().values(), lr=0.0), 2, seed=22)
    for name in SHAPES:
        assert torch.equal(whole.score[name], again.score[name])
    assert whole.thresholds == again.thresholds
    assert whole.share == again.share


def test_the_mask_is_built_from_the_retain_set_and_what_was_inherited() -> None:
    asked = []
    left = {"alkn/model.a/mask": torch.ones(3) > 0, "alkn/model.a/threshold": torch.tensor(0.5)}
    left["wagle/x"] = torch.ones(1)
    workshop = SimpleNamespace(
        datasets={"retain": "rows"},
        inherited=left,
        gradient=lambda dataset: asked.append(dataset) or {"model.a": torch.ones(3)},
    )
    mask = ALKNMask().build(workshop, nn.Linear(1, 1))  # type: ignore[arg-type]
    assert asked == ["rows"]
    assert mask.fixed
    assert mask.thresholds == {"model.a": 0.5}
    assert mask.earlier["model.a"].all()


OUT_OF_RANGE = (
    {"rho": 0.2},
    {"rho": 1.2},
    {"rho": 0.5, "rho_end": 0.6},
    {"rho_end": 0.1},
    {"keep": "no"},
    {"kappa": -1},
)


@pytest.mark.parametrize("keys", OUT_OF_RANGE)
def test_keys_out_of_range_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ALKNMask(**keys)
