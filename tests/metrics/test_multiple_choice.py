"""Multiple choice by log-likelihood: by hand, by law, and from a trace's variants."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.metrics.bootstrap import draw_weights
from expunge.metrics.estimate import Column, Estimate, mean_estimate, pooled_estimate
from expunge.metrics.multiple_choice import (
    Choices,
    accuracy,
    answer_probability,
    chance,
    choices_of,
    chosen,
    confidence,
    option_shares,
    right_share,
)
from expunge.metrics.ragged import Ragged
from expunge.metrics.view import SplitView, view_split
from expunge.testing.tables import Row, make_tables, text_row

laws = settings(derandomize=True, deadline=None, max_examples=60)
options = st.lists(st.floats(-60, 0), min_size=2, max_size=5)
questions = st.lists(options, min_size=1, max_size=6)


def asked(rows: list[list[float]], right: list[int]) -> Choices:
    return Choices(Ragged.from_rows(rows), np.array(right))


def test_four_options_by_hand() -> None:
    choices = asked([[-1.0, -2.0, -0.5, -3.0]], [0])
    assert accuracy(choices).tolist() == [0]
    assert answer_probability(choices) == pytest.approx([0.317265], abs=1e-6)
    assert confidence(choices) == pytest.approx([np.exp(-0.5) / 1.159532], abs=1e-6)
    assert chance(choices).tolist() == [0.25]
    assert accuracy(asked([[-1.0, -2.0, -0.5, -3.0]], [2])).tolist() == [1]


def test_lengths_change_the_ranking() -> None:
    choices = asked([[-4.0, -3.0], [-1.0, -2.0]], [0, 0])
    assert accuracy(choices).tolist() == [0, 1]
    assert accuracy(choices, lengths=Ragged.from_rows([[8, 2], [1, 4]])).tolist() == [1, 0]
    for wrong in ([[8, 0], [1, 4]], [[8, 2, 1], [4]]):
        with pytest.raises(MetricError, match="above 0 for every option"):
            accuracy(choices, lengths=Ragged.from_rows(wrong))


def test_several_right_options_add_up() -> None:
    scores = Ragged.from_rows([[0.0, 0.0, 0.0], [np.log(3.0), 0.0]])
    right = scores.with_values(np.array([True, True, False, False, True]))
    assert right_share(scores, right) == pytest.approx([2 / 3, 0.25])


def test_a_broken_model_is_no_number_by_zero() -> None:
    choices = asked([[-2e4, -1e4, -1e4 - 1.0]], [1])
    assert answer_probability(choices) == pytest.approx([1 / (1 + np.exp(-1.0))])


@laws
@given(questions, st.floats(-30, 30))
def test_shares_are_a_distribution_that_no_constant_changes(rows: list[list[float]], shift: float) -> None:
    scores = Ragged.from_rows(rows)
    shares = option_shares(scores)
    assert shares.sums() == pytest.approx(np.ones(len(rows)))
    assert option_shares(scores.with_values(scores.values + shift)).values == pytest.approx(shares.values, abs=1e-9)
    choices = Choices(scores, np.zeros(len(rows), dtype=int))
    assert (confidence(choices) >= chance(choices) - 1e-12).all()
    assert (answer_probability(choices) <= confidence(choices) + 1e-12).all()


@laws
@given(questions)
def test_the_first_of_the_highest_is_chosen(rows: list[list[float]]) -> None:
    assert chosen(Ragged.from_rows(rows)).tolist() == [int(np.argmax(row)) for row in rows]


@laws
@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=9), min_size=1, max_size=4))
def test_splits_put_together_are_their_rows(splits: list[list[float]]) -> None:
    parts = []
    for number, values in enumerate(splits):
        weights = draw_weights([None] * len(values), label=str(number), draws=20)
        parts.append(mean_estimate(Column(np.array(values), np.ones(len(values), bool), weights), name="x"))
    together = pooled_estimate(parts)
    everything = np.concatenate([np.array(values) for values in splits])
    assert together.value == pytest.approx(everything.mean())
    assert (together.n, together.n_total) == (len(everything), len(everything))
    assert together.draws is not None
    assert together.draws.min() >= everything.min() - 1e-12


def test_a_single_row_stays_as_it_is_in_every_draw() -> None:
    drawn = Estimate(0.5, np.array([0.0, 1.0]), 1, 1)
    alone = Estimate(1.0, None, 1, 1)
    together = pooled_estimate([drawn, alone])
    assert together.draws is not None
    assert (together.value, together.draws.tolist()) == (0.75, [0.5, 1.0])
    assert pooled_estimate([alone, alone]).draws is None


# From a trace


def texts(row: int, scores: list[float], right: int, *, ends: bool = False) -> list[Row]:
    """The options of a row, each of one token, and with `ends` an end token that counts for nothing."""
    return [
        text_row("bio", row, "answer" if n == right else f"option_{n}", [s, *[-9.0 * n] * ends], ends=ends)
        for n, s in enumerate(scores)
    ]


def view(*rows: list[Row]) -> SplitView:
    tables = make_tables([text for row in rows for text in row], exact=True)
    return view_split(tables.trace, tables.generations, "bio")


@pytest.mark.parametrize("ends", [False, True])
def test_options_are_found_by_their_variants(ends: bool) -> None:
    choices = choices_of(view(texts(0, [-1.0, -2.0, -3.0], 1, ends=ends), texts(1, [-5.0, -4.0], 0, ends=ends)))
    assert choices.scores.values.tolist() == [-1, -2, -3, -5, -4]
    assert choices.scores.lengths.tolist() == [3, 2]
    assert choices.right.tolist() == [1, 0]


def test_the_order_of_the_table_does_not_matter() -> None:
    rows = [text for number in range(3) for text in texts(number, [-1.0 - number, -2.0, -0.5, -3.0], number)]
    both = [make_tables(each, exact=True) for each in (rows, rows[::-1])]
    forward, backward = (view_split(tables.trace, tables.generations, "bio") for tables in both)
    one, two = choices_of(forward), choices_of(backward)
    assert one.scores.values.tolist() == two.scores.values.tolist()
    assert one.right.tolist() == two.right.tolist() == [0, 1, 2]


def test_a_purged_trace_still_says_which_option_is_right() -> None:
    tables = make_tables(texts(0, [-1.0, -2.0, -3.0, -4.0], 3))
    trace = tables.trace
    for name in ("prompt", "target", "token"):
        index = trace.schema.get_field_index(name)
        trace = trace.set_column(index, trace.schema.field(index), pa.nulls(4, trace.schema.field(index).type))
    assert choices_of(view_split(trace, tables.generations, "bio")).right.tolist() == [3]


def test_rows_without_options_are_refused() -> None:
    whole = texts(0, [-1.0, -2.0, -3.0], 1)
    lost = texts(1, [-1.0, -2.0, -3.0, -4.0], 1)
    del lost[2]
    with pytest.raises(MetricError, match=r"bio: 1 of 2 rows hold no options .*\(rows 1\)"):
        choices_of(view(whole, lost))
    with pytest.raises(MetricError, match="1 of 1 rows hold no options"):
        choices_of(view([text_row("bio", 0, "answer", [-1.0])]))


def test_an_option_of_an_end_token_alone_is_refused() -> None:
    rows = texts(0, [-1.0, -2.0], 0, ends=True)
    rows[1] = text_row("bio", 0, "option_1", [-2.0])
    with pytest.raises(MetricError, match=r"1 options hold no token \(rows 0\)"):
        choices_of(view(rows))
