"""Sums and means per sequence on the flat layout."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.losses.segment import segment_mean, segment_sum

rows = st.lists(st.integers(0, 5), max_size=30)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(rows=rows)
def test_sums_and_means_are_those_of_a_loop(rows: list[int]) -> None:
    values = torch.arange(1.0, len(rows) + 1, dtype=torch.float64)
    row = torch.tensor(rows, dtype=torch.int64)
    for index in range(6):
        mine = [v for v, r in zip(values.tolist(), rows, strict=True) if r == index]
        assert segment_sum(values, row, 6)[index] == sum(mine)
        mean = segment_mean(values, row, 6)[index].item()
        assert abs(mean - (sum(mine) / len(mine) if mine else 0.0)) < 1e-12


def test_gradient_reaches_every_token_once() -> None:
    values = torch.zeros(4, requires_grad=True)
    row = torch.tensor([2, 0, 2, 2])
    segment_sum(values, row, 3).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1, 1, 1, 1]
    (gradient,) = torch.autograd.grad(segment_mean(values, row, 3).sum(), values)
    torch.testing.assert_close(gradient, torch.tensor([1 / 3, 1, 1 / 3, 1 / 3]))
