"""Ascent and its reweighted families, retain terms, EUA and the energy wrapper, against their formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.catalog import METHODS
from expunge.errors import UsageError
from expunge.losses.eua import eua_margins
from expunge.methods.base import Context, Method
from expunge.methods.bs_t import BST
from expunge.methods.ceu import CEU
from expunge.methods.eua import EUA
from expunge.methods.grad_ascent import GradAscent
from expunge.methods.grad_diff import GradDiff
from expunge.methods.kl_min import KLMin
from expunge.methods.npo import NPO
from expunge.methods.select import build_method
from expunge.methods.simimp import SimImp
from expunge.methods.simsat import SimSat
from expunge.methods.undial import UNDIAL
from expunge.methods.wga import WGA
from expunge.models.reference import Reference
from expunge.testing.contexts import make_context
from expunge.train.reduce import Counts, term_loss
from expunge.train.wrappers.energy import EnergyTerm

LENGTHS = (3, 1, 4)
FAMILIES: list[Any] = [SimSat, SimImp]
IMPORTANT = torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 0])
Family = Callable[..., Any]


def context(method: Method, role: str = "forget", **own: Tensor) -> Context:
    """A whole step in one micro-batch, with tables a method made."""
    base = make_context(_untotalled(method), role)
    ctx = replace(base, ref=base.ref._replace(own=own))
    if method.needs().totals is None:
        return ctx
    return replace(ctx, totals={name: float(value) for name, value in method.totals(ctx).items()})


def _untotalled(method: Method) -> Method:
    """The same method, whose totals are only asked once the tables are there."""
    needs = replace(method.needs(), totals=None)
    plain: Any = type("Plain", (type(method),), {"__module__": __name__, "needs": lambda self: needs})
    again: Method = plain(**method.model_dump())
    return again


def run(method: Method, ctx: Context) -> tuple[float, Tensor]:
    """Weighted loss and logit gradient."""
    scored = ctx.scored
    counts = Counts(len(scored.row), scored.num_rows)
    loss = torch.zeros((), dtype=torch.float64)
    for term in method.losses(ctx).values():
        value = term_loss(term, scored_row=scored.row, num_rows=scored.num_rows, counts=counts, answer=scored.answer)
        loss = loss + term.weight * value
    (gradient,) = torch.autograd.grad(loss, scored.logits, retain_graph=True)
    return loss.item(), gradient


def split(values: Tensor) -> list[Tensor]:
    return list(torch.split(values, list(LENGTHS)))


def weight(method: Any, p: Tensor) -> Tensor:
    return p**method.beta if isinstance(method, SimSat) else (1 - p) ** method.beta


# Reweighted ascent, level by level


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("profile", ["canonical", "openunlearning"])
def test_token_weights(family: Family, profile: Any) -> None:
    method = family(beta=2.0, profile=profile)
    ctx = context(method)
    p = ctx.scored.logps.exp()
    assert run(method, ctx)[0] == pytest.approx((weight(method, p) * p.log()).mean().item(), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_weights(family: Family) -> None:
    method = family(beta=0.3, level="sequence")
    ctx = context(method)
    sums = torch.stack([each.sum() for each in split(ctx.scored.logps)])
    expected = (weight(method, sums.exp()) * sums).mean()
    assert run(method, ctx)[0] == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("profile", ["canonical", "openunlearning"])
def test_batch_weights_are_one_mean_for_all(family: Family, profile: Any) -> None:
    method = family(beta=0.3, level="batch", profile=profile)
    assert method.needs().totals == ("scored" if profile == "canonical" else None)
    ctx = context(method)
    sums = torch.stack([each.sum() for each in split(ctx.scored.logps)])
    expected = weight(method, sums.exp()).mean() * sums.mean()
    loss, gradient = run(method, ctx)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    # The mean weight takes no gradient.
    (plain,) = torch.autograd.grad(sums.mean(), ctx.scored.logits)
    torch.testing.assert_close(gradient, weight(method, sums.exp()).mean().item() * plain, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_of_one_are_tokens_and_of_all_the_sequence_mean(family: Family) -> None:
    token, one, whole = family(beta=2.0), *(family(beta=2.0, level="group", group_size=n) for n in (1, 9))
    assert run(one, context(one))[0] == pytest.approx(run(token, context(token))[0], rel=1e-13)
    ctx = context(whole)
    means = [weight(whole, each.exp()).mean() * each.sum() for each in split(ctx.scored.logps)]
    assert run(whole, ctx)[0] == pytest.approx((sum(means) / 8).item(), rel=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", ["top_k", "bottom_k"])
@pytest.mark.parametrize("profile", ["canonical", "openunlearning"])
def test_hard_choices(family: Family, level: Any, profile: Any) -> None:
    method = family(level=level, profile=profile, fraction=0.4)
    ctx = context(method)
    total = torch.zeros((), dtype=torch.float64)
    for own in split(ctx.scored.logps.detach()):
        threshold = (-own).quantile(1 - 0.4)
        total += own[(-own > threshold) if level == "top_k" else (-own < threshold)].sum()
    divisor = 8 if profile == "canonical" else 1
    assert run(method, ctx)[0] == pytest.approx(total.item() / divisor, rel=1e-12)


def test_the_papers_word_for_the_level_is_understood() -> None:
    chosen = build_method({"name": "simimp", "granularity": "group", "group_size": 3})
    assert chosen == SimImp(level="group", group_size=3)
    assert chosen.model_dump()["level"] == "group"
    assert type(chosen).model_validate_json(chosen.model_dump_json()) == chosen
    with pytest.raises(UsageError, match=r"method\.level: Input should be 'token'"):
        build_method({"name": "simimp", "level": "groop"})


def test_published_fractions_are_the_defaults() -> None:
    cases: dict[Any, float] = {"top_k": 0.15, "bottom_k": 0.5}
    for level, fraction in cases.items():
        given, plain = SimImp(level=level, fraction=fraction), SimImp(level=level)
        assert run(given, context(given))[0] == run(plain, context(plain))[0]


def test_a_release_that_sums_forget_tokens_sums_retain_tokens() -> None:
    method = SimImp(level="top_k", profile="openunlearning")
    ctx = context(method, "retain")
    assert run(method, ctx)[0] == pytest.approx(-ctx.scored.logps.sum().item(), rel=1e-12)
    assert run(SimImp(level="top_k"), ctx)[0] == pytest.approx(-ctx.scored.logps.mean().item(), rel=1e-12)


def test_random_choices_change_with_the_epoch_and_with_nothing_else() -> None:
    method = SimImp(level="random", soft=0.7)
    draws = torch.rand(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ctx = context(method, draw=draws)
    chosen = [method._chosen(replace(ctx, epoch=epoch)) for epoch in range(6)]
    assert all([int(each.sum()) for each in split(one)] == [1, 1, 2] for one in chosen)
    assert len({tuple(one.tolist()) for one in chosen}) > 1
    assert torch.equal(method._chosen(ctx), chosen[0])
    weights = torch.where(chosen[0], 0.7, 0.3)
    assert run(method, ctx)[0] == pytest.approx((weights * ctx.scored.logps).mean().item(), rel=1e-6)


def test_level_and_exponent_zero_is_ascent() -> None:
    ascent = run(GradAscent(), context(GradAscent()))
    for family in FAMILIES:
        for level in ("token", "group"):
            method = family(beta=0, level=level, group_size=2)
            loss, gradient = run(method, context(method))
            assert loss == pytest.approx(ascent[0], rel=1e-14)
            torch.testing.assert_close(gradient, ascent[1], rtol=1e-13, atol=1e-15)
    summed = context(GradAscent()).scored.logps.sum().item() / 3
    for method in (SimImp(beta=0, level="sequence"), SimImp(beta=0, level="batch")):
        assert run(method, context(method))[0] == pytest.approx(summed, rel=1e-13)


# Annotated importance


@pytest.mark.parametrize("profile", ["canonical", "openunlearning"])
def test_hard_annotations_are_a_mean_over_important_tokens(profile: Any) -> None:
    method = SimImp(importance="annotated", profile=profile)
    ctx = context(method, important=IMPORTANT)
    expected = ctx.scored.logps[IMPORTANT > 0].mean()
    loss, gradient = run(method, ctx)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert not gradient[IMPORTANT == 0].any()
    everything = context(method, important=torch.ones(8))
    assert run(method, everything)[0] == pytest.approx(run(GradAscent(), everything)[0], rel=1e-12)


def test_annotations_and_saturation_multiply() -> None:
    method = SimSat(importance="annotated", beta=2.0)
    ctx = context(method, important=IMPORTANT)
    kept = ctx.scored.logps[IMPORTANT > 0]
    assert run(method, ctx)[0] == pytest.approx((kept.exp() ** 2 * kept).mean().item(), rel=1e-12)


@pytest.mark.parametrize("profile", ["canonical", "openunlearning"])
def test_soft_annotations(profile: Any) -> None:
    method = SimImp(importance="annotated", soft=0.8, profile=profile)
    assert method.needs().totals is None
    ctx = context(method, important=IMPORTANT)
    weights = torch.where(IMPORTANT > 0, 0.8, 0.2)
    total = (weights * ctx.scored.logps).sum().item()
    assert run(method, ctx)[0] == pytest.approx(total / (8 if profile == "canonical" else 1), rel=1e-6)


def test_a_step_without_an_important_token_costs_nothing() -> None:
    for profile in ("canonical", "openunlearning"):
        method = SimImp(importance="annotated", profile=profile)
        loss, gradient = run(method, context(method, important=torch.zeros(8)))
        assert loss == 0
        assert not gradient.any()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"importance": "annotated", "level": "group"}, "per token, not per group"),
        ({"annotations": "words.json"}, "nothing reads"),
        ({"soft": 0.5}, "method.soft is for"),
        ({"soft": 0.5, "level": "top_k"}, "method.soft is for"),
    ],
)
def test_options_that_nothing_would_read_are_refused(keys: Mapping[str, Any], message: str) -> None:
    for family in FAMILIES:
        with pytest.raises(UsageError, match=message):
            family(**keys)


# Ascent


def test_tempered_ascent_is_a_token_mean_of_scaled_logits() -> None:
    method = GradAscent(temperature=2.0)
    ctx = context(method)
    scaled = (ctx.scored.logits / 2).log_softmax(-1).gather(-1, ctx.scored.targets[:, None])
    assert run(method, ctx)[0] == pytest.approx(scaled.mean().item(), rel=1e-12)


@pytest.mark.parametrize("profile", ["canonical", "openunlearning"])
def test_the_likeliest_tokens_alone(profile: Any) -> None:
    method = GradDiff(alpha=0, lowest_loss_fraction=0.5, gamma=2.0, profile=profile)
    kept = torch.tensor([1 / 3] * 3 + [1.0] + [0.5] * 4, dtype=torch.float64)
    ctx = context(method, kept=kept)
    best = [each.sort(descending=True).values[: max(1, len(each) // 2)] for each in split(ctx.scored.logps)]
    assert run(method, ctx)[0] == pytest.approx(2 * torch.cat(best).mean().item(), rel=1e-12)


def test_every_token_is_plain_ascent() -> None:
    method = GradAscent(lowest_loss_fraction=1.0)
    ctx = context(method, kept=torch.ones(8))
    assert run(method, ctx)[0] == pytest.approx(run(GradAscent(), ctx)[0], rel=1e-13)


def test_kl_min_is_grad_diff_with_kl() -> None:
    one, two = KLMin(alpha=5.0), GradDiff(retain="kl", alpha=5.0)
    assert one.needs() == two.needs()
    for role in ("forget", "retain"):
        found, expected = run(one, context(one, role)), run(two, context(two, role))
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    with pytest.raises(ValueError, match="kl"):
        KLMin(retain="nll")  # type: ignore[arg-type]


# BS-T


def test_belief_methods_sum_over_answers_and_the_port_averages() -> None:
    paper, port = BST(lambda_t=0, gamma=3.0), BST(lambda_t=0, gamma=3.0, profile="openunlearning")
    ctx = context(paper)
    each = split(ctx.scored.logps)
    assert run(paper, ctx)[0] == pytest.approx(sum(one.sum().item() for one in each), rel=1e-12)
    assert run(port, ctx)[0] == pytest.approx(sum(one.mean().item() for one in each), rel=1e-12)


# Retain terms: hidden states


def with_hidden(method: Method, *, ref: Tensor | None = None) -> tuple[Context, Tensor]:
    base = context(method, "retain")
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(8, 5, generator=generator, dtype=torch.float64).requires_grad_()
    frozen = torch.randn(8, 5, generator=generator, dtype=torch.float64) if ref is None else ref
    ctx = replace(base, scores=replace(base.scored, hidden=hidden), ref=base.ref._replace(block=frozen))
    return ctx, hidden


@pytest.mark.parametrize("profile", ["canonical", "openunlearning"])
def test_hidden_states_are_kept_sequence_by_sequence(profile: Any) -> None:
    method = NPO(retain="hidden", retain_layer=3, alpha=2.0, profile=profile)
    needs = method.needs()
    assert needs.hidden == {"retain": 3}
    assert needs.references["retain"] == (Reference("block", layer=3),)
    assert needs.positions == {"retain": "predict" if profile == "canonical" else "held"}
    ctx, hidden = with_hidden(method)
    (term,) = method.losses(ctx).values()
    scored = ctx.scored
    found = term_loss(term, scored_row=scored.row, num_rows=3, counts=Counts(8, 3))
    assert ctx.ref.block is not None
    squares = split((hidden - ctx.ref.block).square().mean(-1))
    own = sum(each.mean() for each in squares) / 3
    product = sum(each.sum() for each in squares) / 3 * (1 / 3 + 1 + 1 / 4) / 3
    expected = own if profile == "canonical" else product
    assert term.weight == 2.0
    assert found.item() == pytest.approx(torch.as_tensor(expected).item(), rel=1e-12)


def test_hidden_states_of_the_starting_model_cost_nothing() -> None:
    method = GradDiff(retain="hidden", retain_layer=-1, kl_positions="attended")
    assert method.needs().positions == {"retain": "attended"}
    ctx, hidden = with_hidden(method)
    ctx = replace(ctx, ref=ctx.ref._replace(block=hidden.detach()))
    values = method.losses(ctx)["retain"].values
    (gradient,) = torch.autograd.grad(values.sum(), hidden)
    assert not values.any()
    assert not gradient.any()


def test_hidden_states_need_a_layer() -> None:
    with pytest.raises(UsageError, match="none is named"):
        GradDiff(retain="hidden")
    assert GradDiff(retain="hidden", alpha=0).needs().roles == ("forget",)
    method = GradDiff(retain="hidden", retain_layer=0)
    ctx = context(method, "retain")
    blind = replace(ctx, scores=replace(ctx.scored, hidden=None))
    with pytest.raises(UsageError, match="no hidden states were kept"):
        method.losses(blind)


# EUA


def test_scalar_margins_are_constants() -> None:
    method = EUA(margin="scalar", alpha=0)
    assert not any(method.needs().references.values())
    constants = {"m_in": torch.tensor(-3.0), "m_out": torch.tensor(-1.0)}
    for role, name in {"forget": "m_out", "retain": "m_in"}.items():
        ctx = replace(context(method, role), constants=constants)
        energy = -ctx.scored.lse
        gap = constants[name] - energy if role == "forget" else energy - constants[name]
        assert run(method, ctx)[0] == pytest.approx(0.05 * gap.relu().square().mean().item(), rel=1e-12)


def test_energies_of_the_whole_text_and_likelihood_of_the_answer() -> None:
    method = EUA(energy_positions="attended")
    needs = method.needs()
    assert needs.positions == {"forget": "attended", "retain": "attended"}
    answer = torch.tensor([False, True, True, True, False, False, True, True])
    ctx = context(method, "retain")
    ctx = replace(ctx, scores=replace(ctx.scored, answer=answer))
    terms = method.losses(ctx)
    assert (terms["retain_energy"].over, terms["retain"].over) == ("scored", "answer")
    counts = Counts(8, 3, answers=5)
    found = term_loss(terms["retain"], scored_row=ctx.scored.row, num_rows=3, counts=counts, answer=answer)
    assert found.item() == pytest.approx(-ctx.scored.logps[answer].mean().item(), rel=1e-12)


def test_a_wider_divergence_leaves_energies_on_the_answer() -> None:
    method = EUA(retain="kl", kl_positions="attended")
    assert method.needs().positions == {"retain": "attended"}
    terms = method.losses(context(method, "retain"))
    assert (terms["retain_energy"].over, terms["retain"].over) == ("answer", "scored")
    wide = EUA(retain="kl", energy_positions="attended")
    terms = wide.losses(context(wide, "retain"))
    assert (terms["retain_energy"].over, terms["retain"].over) == ("scored", "answer")


# The energy wrapper


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "eua"])
def test_energy_terms_stand_beside_those_of_any_method(name: str) -> None:
    method: Method = METHODS.load(name)()
    wrapped = EnergyTerm(gamma=0.5).wrap(method)
    assert wrapped.name == method.name
    assert wrapped.model_dump() == method.model_dump()
    assert list(type(wrapped).model_fields) == list(type(method).model_fields)
    assert isinstance(wrapped, type(method))
    needs, before = wrapped.needs(), method.needs()
    assert set(needs.roles) == {*before.roles, "forget", "retain"}
    assert not {"forget", "retain"} & set(needs.unscored)
    assert not needs.truncate
    assert needs.linked == before.linked
    for role in ("forget", "retain"):
        asked = needs.references[role]
        assert asked == (*before.references.get(role, ()), Reference("eua_margin"))
        assert needs.positions_of(role) == before.positions_of(role)


@pytest.mark.parametrize(
    "method", [GradAscent(), NPO(), GradDiff(retain="kl"), CEU(), WGA(alpha=0)], ids=lambda m: m.name
)
def test_energy_terms_are_those_of_eua(method: Method) -> None:
    keys: dict[str, Any] = {"ratio": 0.5, "temperature": 2.0, "fill": "neg_inf"}
    wrapped = EnergyTerm(gamma=0.5, **keys).wrap(method)
    alone = EUA(gamma=0.5, alpha=0, **keys)
    for role, energy in {"forget": "forget", "retain": "retain_energy"}.items():
        ctx = make_context(wrapped, role)
        terms = wrapped.losses(ctx)
        own = method.losses(ctx) if role in method.needs().roles else {}
        extra = terms.pop("forget_energy" if role == "forget" else "retain_energy")
        expected = alone.losses(ctx)[energy]
        assert (extra.weight, extra.unit, extra.reduction) == (0.5, expected.unit, expected.reduction)
        assert torch.equal(extra.values, expected.values)
        assert terms.keys() == own.keys()
        assert all(torch.equal(terms[key].values, own[key].values) for key in own)


def test_energy_terms_with_one_boundary_for_all() -> None:
    wrapped = EnergyTerm(margin="scalar").wrap(NPO())
    assert wrapped.needs().references == NPO().needs().references


def test_what_the_energy_wrapper_refuses() -> None:
    with pytest.raises(UsageError, match="made of energy terms already"):
        EnergyTerm().wrap(EUA())
    with pytest.raises(UsageError, match="padding of the retain rows"):
        EnergyTerm().wrap(GradDiff(retain="kl", profile="openunlearning"))
    with pytest.raises(UsageError, match="padding of the forget rows"):
        EnergyTerm().wrap(UNDIAL(profile="openunlearning"))


def test_a_margin_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="selects 0 of 11"):
        eua_margins(torch.zeros(1, 11), ratio=0.05, temperature=1, fill="zero")
