"""Every recorded loss of a published implementation, reproduced by the method object and the engine's reduction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

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
    load_loss_cases,
    run_case,
)
from expunge.train.wrappers.dual import dual_update


def assert_numbers(found: Mapping[str, float], recorded: Mapping[str, float], tolerance: Tolerance) -> None:
    for name, value in found.items():
        assert value == pytest.approx(recorded[name], rel=tolerance.rtol, abs=tolerance.atol), name


def assert_matches(outcome: Outcome, case: LossCase, loss: Tolerance, gradient: Tolerance) -> None:
    if case.dual is not None and loss == LOSS:
        loss, gradient = DUAL, DUAL
    assert_numbers({"loss": outcome.loss + case.constant}, {"loss": case.loss}, loss)
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


DUAL = Tolerance(1e-7, 1e-9)
"""Of a constraint, whose multiplier the release keeps in float32."""
CORRECT = {
    "undial_masked_v128_QUIRK": {"forget_loss": 6.705673491258007},
    "rmu_default_QUIRK": {"forget_loss": 2.088352575472, "retain_loss": 1.948351172476},
}
"""What the formula gives where the release has a quirk, computed by hand."""


def differs_in_canonical(case: LossCase) -> bool:
    """Where the published release and the formula disagree on one micro-batch."""
    return (
        case.quirk
        or case.method == "PDU"
        or case.params.get("retain_loss_type") == "KL"
        or (case.method == "EUA" and case.params["beta2"] != 1)
    )


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
    elif loss_case.quirk:
        assert_without_quirk(outcome, loss_case)
    elif loss_case.method == "PDU":
        assert_canonical_pdu(outcome, loss_case)
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


def assert_without_quirk(outcome: Outcome, case: LossCase) -> None:
    """The formula's value, and neither the recorded one nor its gradient."""
    for name, value in CORRECT.get(case.id, {}).items():
        assert outcome.components[name] == pytest.approx(value, rel=1e-9), name
    assert outcome.loss != pytest.approx(case.loss, rel=1e-3)
    assert any(
        not torch.allclose(outcome.gradients[role], recorded, rtol=1e-3, atol=1e-6)
        for role, recorded in case.gradients.items()
    )


def assert_canonical_pdu(outcome: Outcome, case: LossCase) -> None:
    """Positions that predict an answer token, in the place of those that hold one."""
    batch = case.batches["forget"]
    logits = batch.logits[:, :-1][batch.labels[:, 1:] != -100]
    expected = (logits.amax(-1) - logits.mean(-1)).square().mean()
    assert outcome.components["forget_loss"] == pytest.approx(expected.item(), rel=LOSS.rtol)
    assert outcome.components["forget_loss"] != pytest.approx(case.components.get("forget_loss", case.loss), rel=1e-3)


def test_multipliers_of_recorded_constraints(conformance_dir: Path) -> None:
    for case in load_loss_cases(conformance_dir):
        if case.dual is None:
            continue
        outcome = run_case(case, build_method(case))
        updated = dual_update(
            case.dual.before,
            outcome.terms["retain"],
            epsilon=case.params["retain_loss_eps"],
            learning_rate=case.params["dual_step_size"],
        )
        warm = "warm-up" in case.note
        assert (case.dual.before if warm else updated) == pytest.approx(case.dual.after, rel=DUAL.rtol), case.id
        (wrapper,) = build_method(case).wrappers()
        assert wrapper["initial"] == case.dual.before


@pytest.mark.parametrize(
    ("key", "beta", "expected"),
    [
        ("forget_v128", 10.0, 6.705673491258007),
        ("forget", 10.0, 3.892906959573869),
        ("forget", 3.0, 3.9044075235812694),
        ("forget_conf", 10.0, 4.838911041991922),
    ],
)
def test_masked_undial_against_an_independent_implementation(
    conformance_dir: Path, key: str, beta: float, expected: float
) -> None:
    cases = {case.id: case for case in load_loss_cases(conformance_dir)}
    if not {"undial_nomask", "npo_conf", "ga"} <= cases.keys():
        pytest.skip("another set of recorded losses")
    batches = {batch.key: batch for case in cases.values() for batch in case.batches.values()}
    case = replace(cases["undial_nomask"], batches={"forget": batches[key]}, params={"beta": beta, "alpha": 0.0})
    outcome = run_case(case, build_method(case, profile="canonical"))
    assert outcome.loss == pytest.approx(expected, rel=1e-12)
    assert not outcome.gradients["forget"][~batches[key].answer].any()


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
