"""Reductions: each formula on numbers, and the law that micro-batches do not matter."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import UsageError
from expunge.methods.base import Reduction, Term, Unit
from expunge.train.reduce import Counts, counts, term_loss

VALUES = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
ROW = torch.tensor([0, 0, 0, 1])
WHOLE = Counts(tokens=4, rows=2, micro_batches=1)


def reduced(unit: Unit, reduction: Reduction, values: torch.Tensor = VALUES, **changes: object) -> float:
    given_keys = {"scored_row": ROW, "num_rows": 2, "counts": WHOLE} | changes
    return term_loss(Term(values, unit=unit, reduction=reduction, weight=7.0), **given_keys).item()  # type: ignore[arg-type]


def test_each_reduction() -> None:
    assert reduced("token", "token_mean") == 16 / 4
    assert reduced("token", "micro_token_mean") == 16 / 4
    assert reduced("token", "seq_sum") == (6 + 10) / 2
    assert reduced("token", "seq_mean") == (2 + 10) / 2
    sequences = torch.tensor([3.0, 5.0])
    assert reduced("seq", "seq_sum", sequences) == reduced("seq", "seq_mean", sequences) == 4


def test_counts_are_of_the_whole_step() -> None:
    step = counts([WHOLE, Counts(tokens=6, rows=2), Counts(tokens=0, rows=0, micro_batches=0)])
    assert step == Counts(tokens=10, rows=4, micro_batches=2)
    assert counts([]) == Counts(0, 0, 0)
    assert reduced("token", "token_mean", counts=step) == 16 / 10
    assert reduced("token", "seq_mean", counts=step) == (2 + 10) / 4
    assert reduced("token", "micro_token_mean", counts=step) == 16 / 4 / 2


def test_token_means_and_sequence_means_agree_on_equal_lengths() -> None:
    row = torch.tensor([0, 0, 1, 1])
    assert reduced("token", "token_mean", scored_row=row) == reduced("token", "seq_mean", scored_row=row)


@pytest.mark.parametrize("reduction", ["token_mean", "seq_sum", "seq_mean", "micro_token_mean"])
def test_nothing_scored_is_zero_not_nan(reduction: Reduction) -> None:
    nothing = {"scored_row": ROW[:0], "num_rows": 0, "counts": Counts(0, 0, 0)}
    assert reduced("token", reduction, VALUES[:0], **nothing) == 0
    empty_row = {"scored_row": torch.tensor([0, 0, 2, 2]), "num_rows": 3, "counts": Counts(4, 3, 1)}
    assert torch.isfinite(torch.tensor(reduced("token", reduction, **empty_row)))


@pytest.mark.parametrize("unit", ["token", "seq"])
def test_values_of_another_shape_are_refused(unit: Unit) -> None:
    with pytest.raises(UsageError, match=r"values of shape \(3,\)"):
        reduced(unit, "seq_sum", VALUES[:3])
    with pytest.raises(UsageError, match=r"values of shape \(\)"):
        reduced(unit, "seq_sum", VALUES.mean())


@pytest.mark.parametrize("reduction", ["token_mean", "micro_token_mean"])
def test_token_reductions_of_sequences_are_refused(reduction: Reduction) -> None:
    with pytest.raises(UsageError, match="per sequence"):
        reduced("seq", reduction, VALUES[:2])


def pieces(lengths: list[int], cuts: list[int]) -> Iterator[tuple[list[int], slice]]:
    """The lengths of each micro-batch and where its tokens lie."""
    places = sorted({0, len(lengths), *(cut % (len(lengths) + 1) for cut in cuts)})
    for start, stop in pairwise(places):
        yield lengths[start:stop], slice(sum(lengths[:start]), sum(lengths[:stop]))


def step_loss(lengths: list[int], cuts: list[int], unit: Unit, reduction: Reduction) -> float:
    generator = torch.Generator().manual_seed(len(lengths))
    tokens = torch.randn(sum(lengths), generator=generator, dtype=torch.float64)
    sequences = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    parts = list(pieces(lengths, cuts))
    whole = counts(Counts(sum(part), len(part)) for part, _ in parts)
    total, done = 0.0, 0
    for part, place in parts:
        values = tokens[place] if unit == "token" else sequences[done : done + len(part)]
        row = torch.repeat_interleave(torch.arange(len(part)), torch.tensor(part))
        term = Term(values, unit=unit, reduction=reduction)
        total += term_loss(term, scored_row=row, num_rows=len(part), counts=whole).item()
        done += len(part)
    return total


@pytest.mark.parametrize(
    ("unit", "reduction"),
    [("token", "token_mean"), ("token", "seq_sum"), ("token", "seq_mean"), ("seq", "seq_sum"), ("seq", "seq_mean")],
)
@settings(derandomize=True, deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=8), cuts=st.lists(st.integers(0, 8), max_size=5))
def test_micro_batches_do_not_matter(unit: Unit, reduction: Reduction, lengths: list[int], cuts: list[int]) -> None:
    split = step_loss(lengths, cuts, unit, reduction)
    assert split == pytest.approx(step_loss(lengths, [], unit, reduction), rel=1e-12, abs=1e-13)


def test_the_published_token_mean_depends_on_them() -> None:
    whole, split = (step_loss([1, 5, 2], cuts, "token", "micro_token_mean") for cuts in ([], [1]))
    assert split != pytest.approx(whole, rel=1e-3)


def test_positions_beyond_the_answer_may_be_left_out() -> None:
    values, row = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 1, 1])
    answer = torch.tensor([False, True, True, True])
    whole = Counts(tokens=8, rows=2, micro_batches=1, answers=6)

    def reduced(reduction: str) -> float:
        term = Term(values, unit="token", reduction=reduction, over="answer")  # type: ignore[arg-type]
        return term_loss(term, scored_row=row, num_rows=2, counts=whole, answer=answer).item()

    assert reduced("token_mean") == pytest.approx(9 / 6)
    assert reduced("micro_token_mean") == pytest.approx(9 / 3)
    assert reduced("seq_mean") == pytest.approx((2 + 3.5) / 2)
    assert reduced("seq_sum") == pytest.approx(9 / 2)
    assert reduced("sum") == pytest.approx(9)
