"""Gradients as one long vector, and the laws of what is done with them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.train.gradients import (
    added,
    averaged,
    cosine,
    dot,
    gru_projection,
    norm,
    orthogonal,
    scaled,
    squared_cosine,
)

Vector = dict[str, Tensor]


def vector(*values: float, dtype: torch.dtype = torch.float64) -> Vector:
    """Over two tensors, as a model's gradient is over many."""
    flat = torch.tensor(values, dtype=dtype)
    return {"a": flat[:1], "b": flat[1:].reshape(1, -1)}


def flat(a: Vector) -> list[float]:
    return torch.cat([tensor.flatten() for tensor in a.values()]).tolist()


numbers = st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
vectors = st.lists(numbers, min_size=5, max_size=5).map(lambda values: vector(*values))


def test_the_published_numbers_of_gru() -> None:
    found = gru_projection(vector(-1, -2), vector(2, 1))
    assert flat(found.tensors) == pytest.approx([0.6, -1.2])
    assert found.changed
    assert found.cosine == pytest.approx(-4 / 5)
    assert abs(dot(found.tensors, vector(2, 1))) <= 1e-12


@settings(derandomize=True, deadline=None)
@given(vectors, vectors)
def test_what_is_projected_never_conflicts_and_is_never_longer(unlearn: Vector, retain: Vector) -> None:
    found = gru_projection(unlearn, retain).tensors
    assert dot(found, retain) >= -1e-9 * (1 + norm(unlearn) * norm(retain))
    assert norm(found) <= norm(unlearn) * (1 + 1e-12)
    if dot(unlearn, retain) >= 0:
        assert flat(found) == flat(unlearn)


@settings(derandomize=True, deadline=None)
@given(vectors, vectors)
def test_projecting_twice_is_projecting_once(unlearn: Vector, retain: Vector) -> None:
    once = gru_projection(unlearn, retain).tensors
    twice = gru_projection(once, retain).tensors
    assert flat(twice) == pytest.approx(flat(once), abs=1e-9 * (1 + norm(unlearn)))


@settings(derandomize=True, deadline=None)
@given(vectors, vectors, st.floats(1e-3, 1e3))
def test_the_length_of_the_retain_gradient_does_not_matter(unlearn: Vector, retain: Vector, factor: float) -> None:
    one, other = gru_projection(unlearn, retain), gru_projection(unlearn, scaled(retain, factor))
    assert flat(other.tensors) == pytest.approx(flat(one.tensors), abs=1e-9 * (1 + norm(unlearn)))


@settings(derandomize=True, deadline=None)
@given(vectors)
def test_opposite_gradients_cancel(retain: Vector) -> None:
    found = gru_projection(scaled(retain, -1), retain).tensors
    assert norm(found) <= 1e-12 * (1 + norm(retain))


@settings(derandomize=True, deadline=None)
@given(vectors, vectors)
def test_float32_gradients_are_projected_by_float64_sums(unlearn: Vector, retain: Vector) -> None:
    short = {name: tensor.float() for name, tensor in unlearn.items()}
    other = {name: tensor.float() for name, tensor in retain.items()}
    found = gru_projection(short, other).tensors
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert dot(found, other) >= -1e-6 * (1e-30 + norm(short) * norm(other))


def test_no_retain_gradient_projects_nothing() -> None:
    found = gru_projection(vector(1, 2, 3), vector(0, 0, 0))
    assert flat(found.tensors) == [1, 2, 3]
    assert (found.changed, found.cosine) == (False, 0.0)


def test_a_clipped_cosine_takes_less_away() -> None:
    unlearn, retain = vector(-4, 3), vector(1, 0)
    clipped = gru_projection(unlearn, retain, min_cosine=-0.5).tensors
    assert flat(clipped) == pytest.approx([-4 + 0.5 * 5, 3])
    assert flat(gru_projection(unlearn, retain, min_cosine=-0.9).tensors) == pytest.approx([0, 3])


def test_the_average_weighs_the_new_gradient() -> None:
    first = averaged(None, vector(1, 2), new_weight=0.8)
    assert flat(first) == pytest.approx([0.8, 1.6])
    assert flat(averaged(first, vector(2, 0), new_weight=0.8)) == pytest.approx([1.76, 0.32])
    assert flat(averaged(first, vector(2, 0), new_weight=1.0)) == [2, 0]


def test_the_published_numbers_of_surgery() -> None:
    assert flat(orthogonal(vector(1, 0), vector(3, 4))) == pytest.approx([0.64, -0.48])
    assert flat(orthogonal(vector(1, 2), vector(0, 0))) == [1, 2]


@settings(derandomize=True, deadline=None)
@given(vectors, vectors)
def test_what_is_orthogonal_has_no_component_left(a: Vector, b: Vector) -> None:
    assert abs(dot(orthogonal(a, b), b)) <= 1e-9 * (1 + norm(a) * norm(b))


def test_the_published_gradient_of_the_squared_cosine() -> None:
    """Quadratic losses, whose Hessians are known."""
    theta = torch.tensor([0.7, -0.4], dtype=torch.float64)
    h_f = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    h_r = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    g_f = h_f @ (theta - torch.tensor([1.0, 2.0], dtype=torch.float64))
    g_r = h_r @ (theta - torch.tensor([-1.0, 0.5], dtype=torch.float64))
    found = squared_cosine({"w": g_f}, {"w": g_r})
    gradient = h_f @ found.forget["w"] + h_r @ found.retain["w"]
    assert gradient.tolist() == pytest.approx([0.117646, -0.393538], abs=1e-6)
    assert squared_cosine(vector(3, 4), vector(1, 0)).value == pytest.approx(0.36)


def test_gradients_without_a_direction_have_no_angle() -> None:
    zero = vector(0, 0)
    assert cosine(zero, vector(1, 2)) == 0
    found = squared_cosine(vector(1, 2), zero)
    assert (found.value, flat(found.forget), flat(found.retain)) == (0.0, [0, 0], [0, 0])


@settings(derandomize=True, deadline=None)
@given(vectors, vectors)
def test_a_dot_product_is_that_of_the_flat_vectors(a: Vector, b: Vector) -> None:
    one, other = (torch.tensor(flat(each), dtype=torch.float64) for each in (a, b))
    assert dot(a, b) == pytest.approx(float(one @ other), rel=1e-12, abs=1e-12 * float(one.norm() * other.norm()))


def test_a_missing_tensor_counts_as_zero() -> None:
    part = {"a": torch.ones(1)}
    whole = {"a": torch.ones(1), "b": torch.ones(2)}
    assert (dot(part, whole), dot({}, whole)) == (1.0, 0.0)
    assert added(part, whole, 2.0)["b"].tolist() == [2, 2]
    assert added(whole, part, 2.0)["a"].tolist() == [3]
