"""How methods relate to each other and to their formulas, on random micro-batches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from expunge.errors import UsageError
from expunge.methods.base import Context, Method, Needs
from expunge.methods.eua import EUA
from expunge.methods.grad_ascent import GradAscent
from expunge.methods.grad_diff import GradDiff
from expunge.methods.idk_dpo import IdkDPO
from expunge.methods.npo import NPO
from expunge.methods.satimp import SatImp
from expunge.methods.simnpo import SimNPO
from expunge.methods.wga import WGA
from expunge.models.reference import Reference, ReferenceValues
from expunge.testing.contexts import make_context, random_scored
from expunge.train.reduce import Counts, term_loss


def run(method: Method, ctx: Context, counts: Counts | None = None) -> tuple[float, torch.Tensor]:
    """Weighted loss and logit gradient of one micro-batch that is a whole step."""
    scored = ctx.scored
    size = counts or Counts(len(scored.row), scored.num_rows)
    loss = sum(
        (
            term.weight * term_loss(term, scored_row=scored.row, num_rows=scored.num_rows, counts=size)
            for term in method.losses(ctx).values()
        ),
        start=torch.zeros((), dtype=torch.float64),
    )
    (gradient,) = torch.autograd.grad(loss, scored.logits, retain_graph=True)
    return loss.item(), gradient


def forget(method: Method, **keys: Any) -> tuple[float, torch.Tensor]:
    return run(method, make_context(method, "forget", **keys))


def at_start(method: Method, role: str) -> Context:
    """A micro-batch of the starting model itself."""
    logits = random_scored((3, 1, 4)).logits.detach()
    ctx = make_context(method, role, frozen=logits)
    linked = {
        name: make_context(method, name, lengths=(4, 2, 5), seed=1, frozen=other.scored.logits.detach())
        for name, other in ctx.linked.items()
    }
    return replace(ctx, linked=linked)


@pytest.mark.parametrize(
    "method", [GradDiff(alpha=0), WGA(beta=0, alpha=0), SatImp(beta1=0, beta2=0, alpha=0)], ids=lambda m: m.name
)
def test_lattice_gradient_ascent(method: Method) -> None:
    loss, gradient = forget(GradAscent())
    other, other_gradient = forget(method)
    assert method.needs() == GradAscent().needs()
    assert other == pytest.approx(loss, rel=1e-14)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0])
def test_lattice_wga_is_satimp_without_importance(beta: float) -> None:
    loss, gradient = forget(WGA(beta=beta))
    other, other_gradient = forget(SatImp(beta1=beta, beta2=0))
    assert other == pytest.approx(loss, rel=1e-13)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-12, atol=1e-15)


def test_gradient_ascent_is_minus_the_retain_likelihood_bit_for_bit() -> None:
    ctx = make_context(GradDiff(), "retain")
    loss, gradient = run(GradDiff(), ctx)
    ascent, ascent_gradient = run(GradAscent(), replace(ctx, role="forget"))
    assert ascent == -loss
    assert torch.equal(ascent_gradient, -gradient)


def test_equal_batches_and_weights_cancel() -> None:
    method = GradDiff(gamma=2, alpha=2)
    forgotten, up = run(method, make_context(method, "forget"))
    kept, down = run(method, make_context(method, "retain"))
    assert forgotten + kept == 0
    assert not (up + down).any()


def test_npo_at_the_starting_model_is_gradient_ascent_on_sequence_sums() -> None:
    method = NPO(beta=0.1)
    ctx = at_start(method, "forget")
    loss, gradient = run(method, ctx)
    (ascent,) = torch.autograd.grad(ctx.scored.logps.sum() / 3, ctx.scored.logits)
    assert loss == pytest.approx(20 * math.log(2), rel=1e-14)
    torch.testing.assert_close(gradient, ascent, rtol=1e-13, atol=1e-15)


def test_npo_with_a_small_beta_has_the_gradient_of_ascent() -> None:
    ctx = make_context(NPO(beta=1e-7), "forget")
    (ascent,) = torch.autograd.grad(ctx.scored.logps.sum() / 3, ctx.scored.logits, retain_graph=True)
    _, gradient = run(NPO(beta=1e-7), ctx)
    torch.testing.assert_close(gradient, ascent, rtol=1e-5, atol=1e-7)


def test_dpo_and_kl_at_the_starting_model() -> None:
    loss, _ = run(IdkDPO(beta=0.5), at_start(IdkDPO(beta=0.5), "forget"))
    assert loss == pytest.approx(4 * math.log(2), rel=1e-14)
    loss, gradient = run(NPO(retain="kl"), at_start(NPO(retain="kl"), "retain"))
    assert loss == pytest.approx(0, abs=1e-14)
    assert gradient.abs().max() < 1e-15


def test_dpo_with_the_forgotten_answer_as_refusal_has_no_gradient() -> None:
    method = IdkDPO()
    ctx = make_context(method, "forget")
    _, gradient = run(method, replace(ctx, linked={"alternate": ctx}))
    assert not gradient.any()


@pytest.mark.parametrize(
    "method", [GradAscent(), WGA(beta=2), SatImp(), NPO(beta=0.5), SimNPO(delta=0.3)], ids=lambda m: m.name
)
def test_the_gradient_is_a_detached_coefficient_times_target_minus_prediction(method: Method) -> None:
    ctx = make_context(method, "forget")
    _, gradient = run(method, ctx)
    with torch.no_grad():
        scored = ctx.scored
        direction = one_hot(scored.targets, 11) - scored.logits.softmax(-1)
        expected = coefficient(method, ctx)[:, None] * direction
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)


def coefficient(method: Method, ctx: Context) -> torch.Tensor:
    """(N,) the published weight of each token, normaliser included."""
    scored = ctx.scored
    p, tokens, rows = scored.logps.exp(), len(scored.row), scored.num_rows
    if isinstance(method, WGA):
        return p**method.beta / tokens
    if isinstance(method, SatImp):
        return method.gamma * p**method.beta1 * (1 - p) ** method.beta2 / tokens
    if isinstance(method, NPO):
        assert ctx.ref.seq_logp is not None
        return 2 * torch.sigmoid(method.beta * (scored.seq_logps - ctx.ref.seq_logp))[scored.row] / rows
    if isinstance(method, SimNPO):
        mean = -scored.seq_logps / scored.seq_lengths
        weight = 2 * torch.sigmoid(-method.beta * (mean - method.delta)) / scored.seq_lengths
        return method.gamma * weight[scored.row] / rows
    return torch.full_like(p, 1 / tokens)


@pytest.mark.parametrize("leading", ["canonical", "openunlearning"])
def test_eua_margins_and_energies_share_their_temperature(leading: str) -> None:
    method = EUA(temperature=2.0, ratio=0.5, profile=leading)
    needs = method.needs()
    assert needs.roles == ("forget", "retain")
    for role in needs.roles:
        (margin,) = needs.references[role]
        assert margin == Reference("eua_margin", ratio=0.5, temperature=2.0, leading_temperature=leading == "canonical")
    ctx = make_context(method, "forget")
    assert ctx.ref.eua_margin is not None
    lse = torch.logsumexp(ctx.scored.logits / 2, -1) * (2 if leading == "canonical" else 1)
    expected = (ctx.ref.eua_margin[:, 1] + lse).relu().square()
    torch.testing.assert_close(method.losses(ctx)["forget"].values, expected)


def test_eua_reads_retain_rows_even_without_a_retain_likelihood() -> None:
    method = EUA(alpha=0)
    assert "retain" in method.needs().roles
    assert set(method.losses(make_context(method, "retain"))) == {"retain_energy"}


def test_eua_with_kl_reads_both_on_answer_positions() -> None:
    method = EUA(retain="kl", profile="openunlearning", kl_positions="answer")
    assert {item.kind for item in method.needs().references["retain"]} == {"hidden", "eua_margin"}
    with pytest.raises(UsageError, match="'all'"):
        EUA(retain="kl", profile="openunlearning")
    with pytest.raises(UsageError, match="'held'"):
        EUA(retain="hidden", retain_layer=0, profile="openunlearning")


def test_kl_positions_follow_the_profile_unless_said() -> None:
    assert GradDiff(retain="kl").needs().positions == {"retain": "predict"}
    assert GradDiff(retain="kl", profile="openunlearning").needs().positions == {"retain": "all"}
    chosen = GradDiff(retain="kl", profile="openunlearning", kl_positions="attended")
    assert chosen.needs().positions == {"retain": "attended"}
    assert GradDiff(retain="nll", kl_positions="all").needs().positions == {}


def test_without_a_retain_term_nothing_is_asked_for_retain() -> None:
    assert NPO(alpha=0, retain="kl").needs() == Needs(
        roles=("forget",), references={"forget": (Reference("seq_logp"),)}
    )
    assert IdkDPO(alpha=0).needs().roles == ("forget",)


def test_idk_dpo_links_refusals_to_forget_rows() -> None:
    needs = IdkDPO().needs()
    assert needs.linked == {"alternate": "forget"}
    assert set(needs.references) == {"forget", "alternate"}


@pytest.mark.parametrize("method", [SimNPO(), GradDiff(), WGA(), SatImp(), GradAscent()], ids=lambda m: m.name)
def test_reference_free_methods_ask_for_no_reference(method: Method) -> None:
    assert method.needs().references == {}


@pytest.mark.parametrize(
    ("method", "role", "kind"),
    [
        (NPO(), "forget", "seq_logp"),
        (IdkDPO(), "forget", "seq_logp"),
        (EUA(), "retain", "eua_margin"),
        (NPO(retain="kl"), "retain", "hidden"),
    ],
    ids=["npo", "idk_dpo", "eua", "kl"],
)
def test_a_missing_reference_is_an_error_not_a_default(method: Method, role: str, kind: str) -> None:
    ctx = replace(make_context(method, role), ref=ReferenceValues())
    with pytest.raises(UsageError, match=rf"starting model's {kind} was not provided for the {role} rows"):
        method.losses(ctx)


def test_the_published_profile_averages_inside_micro_batches() -> None:
    half = Counts(tokens=16, rows=6, micro_batches=2)
    canonical, _ = run(GradAscent(), make_context(GradAscent(), "forget"), half)
    method = GradAscent(profile="openunlearning")
    published, _ = run(method, make_context(method, "forget", lengths=(3, 1, 3)), half)
    alone, _ = run(method, make_context(method, "forget", lengths=(3, 1, 3)))
    assert published == pytest.approx(alone / 2, rel=1e-14)
    assert canonical == pytest.approx(forget(GradAscent())[0] / 2, rel=1e-14)


def test_defaults_are_the_documented_ones() -> None:
    assert SatImp().model_dump(include={"beta1", "beta2", "gamma", "alpha"}) == {
        "beta1": 4.0, "beta2": 0.1, "gamma": 1.0, "alpha": 0.1,
    }  # fmt: skip
    assert SimNPO().model_dump(include={"beta", "delta", "gamma", "alpha"}) == {
        "beta": 4.5, "delta": 0.0, "gamma": 0.125, "alpha": 1.0,
    }  # fmt: skip
    assert EUA().model_dump(include={"ratio", "temperature", "fill", "gamma", "alpha"}) == {
        "ratio": 0.1, "temperature": 1.0, "fill": "zero", "gamma": 0.05, "alpha": 1.0,
    }  # fmt: skip
    assert (NPO().beta, IdkDPO().beta, WGA().beta) == (0.1, 0.1, 1.0)
