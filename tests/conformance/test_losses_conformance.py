"""Every recorded loss of a published implementation, reproduced by the method object and the engine's reduction."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch.nn.functional import kl_div

from expunge.testing.conformance import (
    FLOAT32,
    GRADIENT,
    LOSS,
    LossCase,
    Outcome,
    Tolerance,
    build_method,
    run_case,
)


def assert_numbers(found: Mapping[str, float], recorded: Mapping[str, float], tolerance: Tolerance) -> None:
    for name, value in found.items():
        assert value == pytest.approx(recorded[name], rel=tolerance.rtol, abs=tolerance.atol), name


def assert_matches(outcome: Outcome, case: LossCase, loss: Tolerance, gradient: Tolerance) -> None:
    assert_numbers({"loss": outcome.loss}, {"loss": case.loss}, loss)
    if case.components:
        assert_numbers(outcome.components, case.components, loss)
    for role, recorded in case.gradients.items():
        torch.testing.assert_close(
            outcome.gradients[role].to(recorded.dtype),
            recorded,
            rtol=gradient.rtol,
            atol=gradient.atol,
            msg=lambda text, role=role: f"gradient of {role}: {text}",
        )


def differs_in_canonical(case: LossCase) -> bool:
    """Where the published release and the formula disagree on one micro-batch."""
    return case.params.get("retain_loss_type") == "KL" or (case.method == "EUA" and case.params["beta2"] != 1)


def test_published_profile(loss_case: LossCase) -> None:
    outcome = run_case(loss_case, build_method(loss_case, profile="openunlearning"))
    assert_matches(outcome, loss_case, LOSS, GRADIENT)
    recorded_parts = set(loss_case.components) & set(outcome.components)
    assert not loss_case.components or "forget_loss" in recorded_parts
    assert "retain_loss" in recorded_parts or loss_case.params.get("alpha", 0) == 0


def test_published_profile_in_float32(loss_case: LossCase) -> None:
    outcome = run_case(loss_case, build_method(loss_case, profile="openunlearning"), dtype=torch.float32)
    assert_matches(outcome, loss_case, FLOAT32, FLOAT32)


@pytest.mark.parametrize("rows", [None, 2, 1], ids=lambda rows: f"rows_{rows}")
def test_canonical_profile_at_any_micro_batch(loss_case: LossCase, rows: int | None) -> None:
    outcome = run_case(loss_case, build_method(loss_case, profile="canonical"), rows=rows)
    if not differs_in_canonical(loss_case):
        assert_matches(outcome, loss_case, LOSS, GRADIENT)
    elif loss_case.method == "EUA":
        assert_canonical_eua(outcome, loss_case)
    else:
        assert_canonical_kl(outcome, loss_case)


def assert_canonical_eua(outcome: Outcome, case: LossCase) -> None:
    """With a leading T, energies and margins grow by T, so the squared hinges grow by T squared."""
    scale = case.params["beta2"] ** 2
    assert outcome.components["forget_loss"] == pytest.approx(scale * case.components["forget_loss"], rel=LOSS.rtol)
    assert outcome.components["retain_loss"] == pytest.approx(case.components["retain_loss"], rel=LOSS.rtol)
    assert outcome.loss != pytest.approx(case.loss, rel=1e-3)
    rescaled = build_method(case, profile="canonical", gamma=case.params["gamma"] / scale)
    for role, gradient in run_case(case, rescaled).gradients.items():
        torch.testing.assert_close(gradient, case.gradients[role], rtol=GRADIENT.rtol, atol=GRADIENT.atol)


def assert_canonical_kl(outcome: Outcome, case: LossCase) -> None:
    """The mean over positions that predict an answer token, by torch's own kl_div and autograd."""
    batch = case.batches["retain"]
    supervised = (batch.labels[:, 1:] != -100).nonzero(as_tuple=True)
    leaf = batch.logits.clone().requires_grad_()
    expected = kl_div(
        leaf[supervised].log_softmax(-1),
        batch.ref_logits[supervised].log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    (case.params["alpha"] * expected).backward()
    assert outcome.components["retain_loss"] == pytest.approx(expected.item(), rel=LOSS.rtol)
    assert outcome.components["retain_loss"] != pytest.approx(case.components["retain_loss"], rel=1e-3)
    torch.testing.assert_close(outcome.gradients["retain"], leaf.grad, rtol=GRADIENT.rtol, atol=GRADIENT.atol)
    assert outcome.components["forget_loss"] == pytest.approx(case.components["forget_loss"], rel=LOSS.rtol)
