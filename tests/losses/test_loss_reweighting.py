"""Choosing and averaging inside sequences, tempered ascent, hidden-state distance: printed values, limits, laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.losses.grad_ascent import grad_ascent_loss, tempered_logps
from expunge.losses.hidden import hidden_distance_loss, mean_inverse_length
from expunge.losses.reweighting import beyond_quantile, group_means, kept_count, lowest, weighted_ascent_loss
from expunge.losses.satimp import satimp_loss, satimp_weight
from expunge.losses.segment import segment_mean

LOGPS = torch.tensor([0.5, 0.25], dtype=torch.float64).log()

sequences = st.lists(st.lists(st.floats(0.001, 1), min_size=0, max_size=7), min_size=1, max_size=4)


def flat(found: list[list[float]], shuffle: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and rows, positions in any order."""
    values = torch.tensor([value for each in found for value in each], dtype=torch.float64)
    row = torch.tensor([number for number, each in enumerate(found) for _ in each], dtype=torch.int64)
    order = torch.randperm(len(row), generator=torch.Generator().manual_seed(shuffle))
    return values[order], row[order]


def test_instance_weight_of_a_sequence() -> None:
    total = LOGPS.sum()[None]
    weight = satimp_weight(total, beta1=1, beta2=0)
    assert weighted_ascent_loss(total, weight).item() == pytest.approx(-0.259930, abs=1e-6)
    one = LOGPS[:1]
    assert torch.equal(
        weighted_ascent_loss(one, satimp_weight(one, beta1=3, beta2=0)), satimp_loss(one, beta1=3, beta2=0)
    )


def test_instance_weights_underflow_on_long_answers() -> None:
    assert satimp_weight(torch.tensor([-800.0], dtype=torch.float64), beta1=1, beta2=0).item() == 0
    assert satimp_weight(torch.tensor([-800.0], dtype=torch.float64), beta1=0, beta2=5).item() == 1


@settings(derandomize=True, deadline=None, max_examples=60)
@given(found=sequences, size=st.integers(1, 9), shuffle=st.integers(0, 9))
def test_groups_average_neighbours_in_the_order_of_weights(found: list[list[float]], size: int, shuffle: int) -> None:
    weights, row = flat(found, shuffle)
    grouped = group_means(weights, row, len(found), size=size)
    for number in range(len(found)):
        own, seen = weights[row == number], grouped[row == number]
        order = own.argsort(descending=True, stable=True)
        chunks = [own[order][start : start + size].mean() for start in range(0, len(own), size)]
        expected = torch.stack([chunks[place // size] for place in range(len(own))]) if len(own) else own
        torch.testing.assert_close(seen[order].sort(descending=True).values, expected)
    if size == 1:
        assert torch.equal(grouped, weights)
    if size >= max(map(len, found)):
        torch.testing.assert_close(grouped, segment_mean(weights, row, len(found))[row])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(found=sequences, quantile=st.floats(0, 1), shuffle=st.integers(0, 9))
def test_quantiles_are_those_of_each_sequence(found: list[list[float]], quantile: float, shuffle: int) -> None:
    values, row = flat(found, shuffle)
    above = beyond_quantile(values, row, len(found), quantile=quantile, above=True)
    below = beyond_quantile(values, row, len(found), quantile=quantile, above=False)
    assert not (above & below).any()
    for number, each in enumerate(found):
        if each:
            threshold = np.quantile(np.array(each), quantile)
            clear = (values[row == number] - threshold).abs() > 1e-12
            assert torch.equal(above[row == number][clear], (values[row == number] > threshold)[clear])
            assert torch.equal(below[row == number][clear], (values[row == number] < threshold)[clear])


def test_the_whole_fraction_still_leaves_out_the_minimum() -> None:
    values, row = torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([0, 0, 0, 1])
    assert beyond_quantile(values, row, 2, quantile=0, above=True).tolist() == [True, False, True, False]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(found=sequences, fraction=st.floats(0.01, 1), shuffle=st.integers(0, 9))
def test_lowest_keeps_the_count_and_the_smallest(found: list[list[float]], fraction: float, shuffle: int) -> None:
    values, row = flat(found, shuffle)
    kept = lowest(values, row, len(found), fraction=fraction)
    for number, each in enumerate(found):
        own, chosen = values[row == number], kept[row == number]
        assert int(chosen.sum()) == (max(1, math.floor(fraction * len(each) + 1e-9)) if each else 0)
        assert chosen.all() or not chosen.any() or own[chosen].max() <= own[~chosen].min()


def test_a_product_that_is_meant_to_be_whole_is() -> None:
    assert kept_count(torch.tensor([100, 5, 1]), fraction=0.29).tolist() == [29, 1, 1]
    assert kept_count(torch.tensor([5]), fraction=0.8).tolist() == [4]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tempered_ascent(temperature: float) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    logps = tempered_logps(logits, torch.tensor([1]), temperature=temperature)
    scaled = (logits.detach() / temperature).log_softmax(-1)
    assert logps.item() == pytest.approx(scaled[0, 1].item(), rel=1e-14)
    (gradient,) = torch.autograd.grad(grad_ascent_loss(logps).sum(), logits)
    hot = torch.nn.functional.one_hot(torch.tensor([1]), 4)
    torch.testing.assert_close(gradient, (hot - scaled.exp()) / temperature, rtol=1e-12, atol=1e-15)


def test_hidden_distance() -> None:
    """The printed mean squares of a steering vector, and what an equal state costs."""
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    vector = 2 * torch.tensor([0.6, 0.8], requires_grad=True)
    loss = hidden_distance_loss(states, vector)
    assert loss.tolist() == pytest.approx([0.10, 4.50], abs=1e-6)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(states.grad, states.detach() - vector.detach())
    same = hidden_distance_loss(states, states)
    assert not same.any()
    assert hidden_distance_loss(states.bfloat16(), vector).dtype == torch.float32


def test_mean_inverse_length() -> None:
    assert mean_inverse_length(torch.tensor([0, 0, 1]), 3).item() == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert mean_inverse_length(torch.tensor([0, 0, 1, 1]), 2).item() == 0.5
