"""UNDIAL, CE-U, PDU, RMU and FLAT: printed values, identities and limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from expunge.errors import UsageError
from expunge.losses.ceu import ceu_loss
from expunge.losses.eepo import eepo_loss
from expunge.losses.flat import DIVERGENCES, Divergence, flat_loss
from expunge.losses.kl import kl_loss
from expunge.losses.logprobs import normalise
from expunge.losses.pdu import pdu_loss
from expunge.losses.rmu import control_vector, rmu_loss
from expunge.losses.undial import entropy, undial_loss

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
TARGET = torch.tensor([0])


def gradient(values: Tensor, leaf: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(values.sum(), leaf)
    return found


def logits_of(seed: int, *, rows: int = 5, vocab: int = 7, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    return values.requires_grad_(), torch.randint(vocab, (rows,), generator=generator)


def test_ceu_of_the_printed_example() -> None:
    leaf = LOGITS.clone().requires_grad_()
    loss = ceu_loss(leaf, TARGET)
    assert loss.item() == pytest.approx(1.864979, abs=1e-6)
    assert gradient(loss, leaf)[0].tolist() == pytest.approx([0.643914, -0.428358, -0.157584, -0.057972], abs=1e-6)
    label = torch.tensor([[0, 0.665241, 0.244728, 0.090031]])
    assert entropy(label.clamp(min=1e-30).log()).item() == pytest.approx(0.832396, abs=1e-6)
    assert loss.item() - 0.832396 == pytest.approx(1.032584, abs=1e-6)


@given(st.integers(0, 10_000), st.floats(0.1, 8))
def test_ceu_has_the_gradient_of_the_complement_and_of_eepo(seed: int, scale: float) -> None:
    leaf, targets = logits_of(seed, scale=scale)
    found = gradient(ceu_loss(leaf, targets), leaf)
    probability = normalise(leaf, targets).logp.exp()
    if probability.max() < 1 - 1e-6:
        assert torch.allclose(found, gradient(-torch.log1p(-probability), leaf), rtol=1e-6, atol=1e-9)
        assert torch.allclose(found, gradient(eepo_loss(normalise(leaf, targets).logp), leaf), rtol=1e-6, atol=1e-9)
    assert torch.allclose(found.sum(-1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(ceu_loss(leaf + 5, targets), ceu_loss(leaf, targets), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ceu_is_finite_where_the_target_is_certain(dtype: torch.dtype) -> None:
    leaf = torch.tensor([[90.0, 1.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = ceu_loss(leaf, TARGET)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient(loss, leaf)).all()


def test_ceu_is_twice_differentiable() -> None:
    leaf, targets = logits_of(3)
    targets = targets.clone()

    def with_constant_label(values: Tensor) -> Tensor:
        label = leaf.detach().scatter(-1, targets[:, None], -torch.inf).softmax(-1)
        return -(label * values.log_softmax(-1)).sum(-1)

    first = torch.autograd.grad(ceu_loss(leaf, targets).sum(), leaf, create_graph=True)[0]
    expected = torch.autograd.grad(with_constant_label(leaf).sum(), leaf, create_graph=True)[0]
    assert torch.allclose(first, expected)
    assert torch.allclose(gradient(first[:, 0], leaf), gradient(expected[:, 0], leaf))


def test_undial_of_the_printed_example() -> None:
    leaf = LOGITS.clone().requires_grad_()
    loss = undial_loss(leaf, LOGITS, TARGET, beta=2)
    assert loss.item() == pytest.approx(1.584849, abs=1e-6)
    teacher = LOGITS - torch.tensor([[2.0, 0, 0, 0]])
    assert teacher.softmax(-1)[0].tolist() == pytest.approx([0.196612, 0.534447, 0.196612, 0.072329], abs=1e-6)
    assert kl_loss(LOGITS, teacher).item() == pytest.approx(0.420442, abs=1e-6)
    assert gradient(loss, leaf)[0].tolist() == pytest.approx([0.447302, -0.297564, -0.109468, -0.040271], abs=1e-6)


@given(st.integers(0, 10_000), st.floats(0, 20))
def test_undial_is_at_least_the_teachers_entropy_and_moves_nothing_at_beta_0(seed: int, beta: float) -> None:
    leaf, targets = logits_of(seed)
    reference, _ = logits_of(seed + 1)
    loss = undial_loss(leaf, reference, targets, beta=beta)
    teacher = reference.detach().clone()
    teacher[torch.arange(5), targets] -= beta
    assert bool((loss >= entropy(teacher) - 1e-9).all())
    assert torch.allclose(gradient(loss, leaf), leaf.softmax(-1) - teacher.softmax(-1), atol=1e-12)
    still = gradient(undial_loss(leaf, leaf, targets, beta=0), leaf)
    assert still.abs().max() < 1e-12
    assert not undial_loss(leaf.detach(), reference, targets, beta=beta).requires_grad, "a gradient through the teacher"


@given(st.integers(0, 10_000))
def test_undial_becomes_ceu_as_beta_grows(seed: int) -> None:
    leaf, targets = logits_of(seed)
    far = undial_loss(leaf, leaf, targets, beta=1e4)
    assert torch.allclose(far, ceu_loss(leaf, targets), atol=1e-9)
    assert torch.allclose(gradient(far, leaf), gradient(ceu_loss(leaf, targets), leaf), atol=1e-12)


@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_pdu_measures_how_far_one_token_stands_out(seed: int, shift: float) -> None:
    assert pdu_loss(LOGITS).item() == pytest.approx(2.25)
    leaf, _ = logits_of(seed)
    assert torch.allclose(pdu_loss(leaf + shift), pdu_loss(leaf), atol=1e-9)
    assert torch.allclose(pdu_loss(2 * leaf), 4 * pdu_loss(leaf))
    assert pdu_loss(torch.full((2, 7), shift)).abs().max() < 1e-6
    assert bool((pdu_loss(leaf) > 0).all())


def test_rmu_of_the_printed_example() -> None:
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    control = 2 * torch.tensor([0.6, 0.8], dtype=torch.float64)
    values = rmu_loss(hidden, control)
    assert values.tolist() == pytest.approx([0.10, 4.50])
    assert values.mean().item() == pytest.approx(2.30)


def test_a_control_vector_has_its_length_and_is_drawn_again_from_its_seed() -> None:
    first = control_vector(64, coefficient=6.5, seed=3)
    assert first.norm().item() == pytest.approx(6.5, rel=1e-6)
    assert bool((first >= 0).all())
    assert torch.equal(first, control_vector(64, coefficient=6.5, seed=3))
    assert not torch.equal(first, control_vector(64, coefficient=6.5, seed=4))
    with pytest.raises(UsageError, match="must be positive"):
        control_vector(64, coefficient=0, seed=3)


def pair(template: float, forget: float) -> tuple[Tensor, Tensor]:
    values = torch.tensor([template, forget], dtype=torch.float64)
    return values[:1].requires_grad_(), values[1:].requires_grad_()


@pytest.mark.parametrize(
    ("divergence", "expected"), [("tv", -0.169837), ("kl", -0.150671), ("pearson", -0.39), ("js", -0.150668)]
)
def test_flat_of_the_printed_example(divergence: Divergence, expected: float) -> None:
    template, forget = pair(0.6, 0.2)
    assert flat_loss(template, forget, divergence=divergence).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("divergence", "template_weights", "forget_weights"),
    [
        ("tv", (0.5, 0.3932, 0.2100), (0.5, 0.3932, 0.2100)),
        ("kl", (1, 1, 1), (0.3679, 0.6065, 1)),
        ("js", (0.5, 0.3775, 0.2689), (0.5, 0.6225, 0.7311)),
        ("pearson", (1, 1, 1), (1, 1.25, 1.5)),
    ],
)
def test_flat_weighs_both_answers_as_printed(
    divergence: Divergence, template_weights: tuple[float, ...], forget_weights: tuple[float, ...]
) -> None:
    for place, value in enumerate((0.0, 0.5, 1.0)):
        template, forget = pair(value, value)
        ours = torch.autograd.grad(flat_loss(template, forget, divergence=divergence).sum(), [template, forget])
        assert -ours[0].item() == pytest.approx(template_weights[place], abs=1e-4)
        assert ours[1].item() == pytest.approx(forget_weights[place], abs=1e-4)


@given(st.floats(0, 1))
def test_flat_in_closed_form(value: float) -> None:
    template, forget = pair(value, value)
    assert flat_loss(template, forget, divergence="tv").item() == pytest.approx(0, abs=1e-12)
    assert flat_loss(template, forget, divergence="kl").item() == pytest.approx(math.exp(value - 1) - value)
    u = DIVERGENCES["js"].g(forget)
    two_steps = -torch.log(2 - u.exp())
    assert DIVERGENCES["js"].conjugate(forget).item() == pytest.approx(two_steps.item(), abs=1e-9)
    assert flat_loss(template, forget, divergence="kl").item() >= -1e-12


def test_flat_of_equal_answers_at_the_printed_points() -> None:
    assert DIVERGENCES["js"].conjugate(torch.tensor(0.2, dtype=torch.float64)).item() == pytest.approx(
        0.104992, abs=1e-6
    )
    assert flat_loss(*pair(1.0, 1.0), divergence="kl").item() == 0
    assert flat_loss(*pair(0.999, 0.999), divergence="kl").item() > 0
