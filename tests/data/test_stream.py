"""Epochs over the anchor, even draws beside it, and a continuation that is the same bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.stream import PairedStream, Step
from expunge.errors import UsageError


def build(**options: Any) -> PairedStream:
    defaults: dict[str, Any] = {
        "sizes": {"forget": 10, "retain": 7},
        "anchor": "forget",
        "batch": {"forget": 4, "retain": 4},
        "seed": 0,
    }
    return PairedStream(**(defaults | options))


def take(stream: PairedStream, count: int) -> list[Step]:
    return [stream.next() for _ in range(count)]


SHAPES = st.fixed_dictionaries(
    {
        "forget": st.integers(1, 30),
        "retain": st.integers(1, 30),
        "forget_batch": st.integers(1, 40),
        "retain_batch": st.integers(1, 40),
        "seed": st.integers(0, 2**40),
        "draw": st.sampled_from(["permutation", "replacement"]),
    }
)


def from_shape(shape: dict[str, Any]) -> PairedStream:
    return build(
        sizes={"forget": shape["forget"], "retain": shape["retain"]},
        batch={"forget": shape["forget_batch"], "retain": shape["retain_batch"]},
        seed=shape["seed"],
        draw=shape["draw"],
    )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(shape=SHAPES)
def test_each_epoch_covers_the_anchor_exactly_once(shape: dict[str, Any]) -> None:
    stream = from_shape(shape)
    for epoch in range(3):
        steps = take(stream, stream.steps_per_epoch)
        assert {step.epoch for step in steps} == {epoch}
        assert sorted(row for step in steps for row in step.rows["forget"]) == list(range(shape["forget"]))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(shape=SHAPES)
def test_permutations_cover_the_other_role_evenly(shape: dict[str, Any]) -> None:
    stream = from_shape(shape | {"draw": "permutation"})
    drawn: list[int] = []
    for step in take(stream, 25):
        drawn += step.rows["retain"]
        counts = Counter(drawn)
        assert max(counts.values()) - min(counts[row] for row in range(shape["retain"])) <= 1
    passes = len(drawn) // shape["retain"]
    for number in range(passes):
        part = drawn[number * shape["retain"] : (number + 1) * shape["retain"]]
        assert sorted(part) == list(range(shape["retain"]))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(shape=SHAPES, before=st.integers(0, 20))
def test_a_resumed_stream_equals_an_uninterrupted_one(shape: dict[str, Any], before: int) -> None:
    whole = take(from_shape(shape), before + 10)
    first = from_shape(shape)
    take(first, before)
    second = from_shape(shape)
    take(second, 3)
    second.load(json.loads(json.dumps(first.state())))
    assert take(second, 10) == whole[before:] == take(first, 10)


def test_batch_sizes() -> None:
    equal = take(build(), 3)
    assert [(len(s.rows["forget"]), len(s.rows["retain"])) for s in equal] == [(4, 4), (4, 4), (2, 2)]
    other = take(build(batch={"forget": 4, "retain": 3}), 3)
    assert [(len(s.rows["forget"]), len(s.rows["retain"])) for s in other] == [(4, 3), (4, 3), (2, 3)]
    large = take(build(batch={"forget": 32, "retain": 32}), 2)
    assert [(len(s.rows["forget"]), len(s.rows["retain"])) for s in large] == [(10, 7), (10, 7)]
    assert [s.epoch for s in large] == [0, 1]
    assert build().steps_per_epoch == 3


def test_epochs_and_roles_are_shuffled_differently_and_seeds_too() -> None:
    def order(stream: PairedStream, role: str = "forget") -> list[int]:
        return [row for step in take(stream, 10) for row in step.rows[role]]

    sizes = {"forget": 40, "retain": 40}
    rows = order(build(sizes=sizes))
    assert rows[:40] != list(range(40))
    stream = build(sizes=sizes)
    assert order(stream) != order(stream)
    assert order(build(sizes=sizes)) == rows != order(build(sizes=sizes, seed=1))
    assert rows != order(build(sizes=sizes), "retain")


def test_the_order_never_changes() -> None:
    """Pinned: a new release must not reorder a run that is resumed with it."""
    assert take(build(), 2) == [
        Step(epoch=0, rows={"forget": [3, 7, 5, 4], "retain": [0, 6, 5, 1]}),
        Step(epoch=0, rows={"forget": [2, 0, 1, 9], "retain": [3, 4, 2, 2]}),
    ]
    assert build(draw="replacement").next().rows["retain"] == [4, 5, 6, 4]


def test_one_role_alone() -> None:
    stream = PairedStream({"train": 5}, anchor="train", batch={"train": 2}, seed=0)
    steps = take(stream, 3)
    assert sorted(row for step in steps for row in step.rows["train"]) == [0, 1, 2, 3, 4]
    assert [len(step.rows["train"]) for step in steps] == [2, 2, 1]


def test_a_state_of_other_settings_is_refused() -> None:
    state = build().state()
    with pytest.raises(UsageError, match="seed was 0, now 1"):
        build(seed=1).load(state)
    with pytest.raises(UsageError, match="sizes was"):
        build(sizes={"forget": 10, "retain": 8}).load(state)
    with pytest.raises(UsageError, match="draw was 'permutation', now 'replacement'"):
        build(draw="replacement").load(state)


@pytest.mark.parametrize(
    "options",
    [
        {"anchor": "train"},
        {"sizes": {"forget": 0, "retain": 7}},
        {"batch": {"forget": 4}},
        {"batch": {"forget": 4, "retain": 0}},
        {"seed": -1},
    ],
)
def test_impossible_streams(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        build(**options)
