"""How objectives relate: one lattice of identities over all of them, and laws that each in the catalogue must obey.

A method is covered by its catalogue line. What it reads of the starting model has a documented value there
(`AT_START`), which a method that reads something must have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from expunge.catalog import METHODS
from expunge.methods.base import Context, Method
from expunge.methods.kl_min import KLMin
from expunge.methods.select import build_method
from expunge.models.reference import Reference
from expunge.models.score import Scored
from expunge.testing.contexts import make_context, reference_values
from expunge.train.reduce import Counts, term_loss

NAMES = METHODS.names()
VOCAB = 11


def method(name: str, **keys: Any) -> Method:
    return build_method({"name": name, **keys})


def objective(chosen: Method, ctx: Context) -> Tensor:
    """The weighted loss of a micro-batch that is a whole step."""
    total = torch.zeros((), dtype=torch.float64)
    for term in chosen.losses(ctx).values():
        scored = (ctx if term.dataset is None else ctx.linked[term.dataset]).scored
        total = total + term.weight * term_loss(
            term,
            scored_row=scored.row,
            num_rows=scored.num_rows,
            counts=Counts(len(scored.row), scored.num_rows),
            answer=scored.answer,
        )
    return total


def gradient(chosen: Method, ctx: Context) -> Tensor:
    (found,) = torch.autograd.grad(objective(chosen, ctx), ctx.scored.logits, retain_graph=True)
    return found


def forget(chosen: Method, *, lengths: tuple[int, ...] = (3, 1, 4), seed: int = 0) -> Context:
    return make_context(chosen, "forget", lengths=lengths, seed=seed)


def forwarded(chosen: Method) -> Iterator[str]:
    needs = chosen.needs()
    yield from (role for role in needs.roles if role not in needs.unscored)


# The lattice

ASCENTS: list[tuple[str, dict[str, Any]]] = [
    ("grad_diff", {"alpha": 0}),
    ("grad_ascent", {"temperature": 1.0}),
    ("kl_min", {"alpha": 0}),
    ("wga", {"beta": 0, "alpha": 0}),
    ("satimp", {"beta1": 0, "beta2": 0, "alpha": 0}),
    ("simsat", {"beta": 0, "alpha": 0}),
    ("simimp", {"beta": 0, "alpha": 0}),
    ("simimp", {"beta": 0, "alpha": 0, "level": "group", "group_size": 2}),
    ("bs_s", {"base": {"name": "grad_diff", "alpha": 0}, "lambda_s": 0}),
]
"""Where the lattice meets gradient ascent, whatever the lengths of answers."""
ONE_TOKEN: list[tuple[str, dict[str, Any]]] = [
    *ASCENTS,
    ("bs_t", {"lambda_t": 0, "alpha": 0}),
    ("bs_t", {"lambda_t": 0, "alpha": 0, "profile": "openunlearning"}),
    ("simimp", {"beta": 0, "alpha": 0, "level": "sequence"}),
    ("simsat", {"beta": 0, "alpha": 0, "level": "batch"}),
]
"""Where only answers of one token do: there sums and means agree."""
PAIRS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("wga", {"beta": 2.5}, "satimp", {"beta1": 2.5, "beta2": 0, "alpha": 1}),
    ("wga", {"beta": 2.5}, "simsat", {"beta": 2.5}),
    ("simimp", {"beta": 2.5}, "satimp", {"beta1": 0, "beta2": 2.5, "alpha": 1}),
    ("tnpo", {"beta": 3.0}, "wtnpo", {"beta": 3.0, "exponent": 0}),
    ("bs_s", {"base": {"name": "npo"}, "lambda_s": 0}, "npo", {}),
    ("bs_s", {"base": {"name": "bs_t"}, "lambda_s": 0}, "bs_t", {}),
    ("kl_min", {}, "grad_diff", {"retain": "kl"}),
]
"""The same objective under two names."""


def keys(value: Any) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, Mapping) else str(value)


def assert_same(one: Method, two: Method, **shape: Any) -> None:
    found, expected = forget(one, **shape), forget(two, **shape)
    assert objective(one, found).item() == pytest.approx(objective(two, expected).item(), rel=1e-12)
    torch.testing.assert_close(gradient(one, found), gradient(two, expected), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("name", "own"), ASCENTS, ids=keys)
def test_gradient_ascent_under_other_names(name: str, own: dict[str, Any]) -> None:
    assert_same(method(name, **own), method("grad_ascent"))


@pytest.mark.parametrize(("name", "own"), ONE_TOKEN, ids=keys)
def test_gradient_ascent_on_answers_of_one_token(name: str, own: dict[str, Any]) -> None:
    assert_same(method(name, **own), method("grad_ascent"), lengths=(1, 1, 1))


@pytest.mark.parametrize(("one", "its", "two", "other"), PAIRS, ids=keys)
def test_the_same_objective_under_two_names(one: str, its: dict[str, Any], two: str, other: dict[str, Any]) -> None:
    assert_same(method(one, **its), method(two, **other))


@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), beta=st.floats(0.1, 5))
def test_on_one_token_tnpo_has_the_gradient_of_npo(seed: int, beta: float) -> None:
    token, sequence = method("tnpo", beta=beta), method("npo", beta=beta)
    shape: dict[str, Any] = {"lengths": (1, 1, 1), "seed": seed}
    found = gradient(token, forget(token, **shape)), gradient(sequence, forget(sequence, **shape))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-13)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), beta=st.floats(0, 3), family=st.sampled_from(["simsat", "simimp"]))
def test_on_one_token_a_sequence_is_a_token(seed: int, beta: float, family: str) -> None:
    token, sequence = (method(family, beta=beta, level=level) for level in ("token", "sequence"))
    assert_same(token, sequence, lengths=(1, 1, 1), seed=seed)


# Detached weights: the gradient is c (target - q), c a constant

WEIGHTED: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "grad_ascent": ({}, lambda p, r: torch.ones_like(p)),
    "wga": ({"beta": 2}, lambda p, r: p**2),
    "satimp": ({"beta1": 2, "beta2": 0.5}, lambda p, r: p**2 * (1 - p) ** 0.5),
    "simsat": ({"beta": 3}, lambda p, r: p**3),
    "simimp": ({"beta": 0.5}, lambda p, r: (1 - p) ** 0.5),
    "tnpo": ({"beta": 2}, lambda p, r: 2 * p**2 / (p**2 + r**2)),
    "wtnpo": ({"beta": 2, "exponent": 1.5}, lambda p, r: 2 * p**3.5 / (p**2 + r**2)),
}
"""Token weights by their formula, in the probability now and in the starting model."""


@pytest.mark.parametrize("name", WEIGHTED)
@settings(derandomize=True, deadline=None, max_examples=10)
@given(seed=st.integers(0, 999))
def test_token_weights_take_no_gradient(name: str, seed: int) -> None:
    own, weight = WEIGHTED[name]
    chosen = method(name, **own)
    ctx = forget(chosen, seed=seed)
    targets, q = ctx.scored.targets, ctx.scored.logits.detach().softmax(-1)
    start = torch.zeros(()) if ctx.ref.token_logp is None else ctx.ref.token_logp.detach()
    now = q.gather(-1, targets[:, None]).squeeze(-1)
    expected = weight(now, start.exp())[:, None] * (one_hot(targets, VOCAB) - q) / len(targets)
    torch.testing.assert_close(gradient(chosen, ctx), expected, rtol=1e-10, atol=1e-13)


# Laws of every method in the catalogue


def on_padded_logits(ctx: Context, extra: int) -> tuple[Context, Tensor, Tensor]:
    """The micro-batch over (rows, positions, V) logits: two of a prompt, the scored ones, `extra` of padding."""
    scored = ctx.scored
    order = torch.arange(len(scored.row))
    counts = scored.row.bincount(minlength=scored.num_rows)
    place = 2 + order - (counts.cumsum(0) - counts)[scored.row]
    shape = (scored.num_rows, 2 + int(counts.max()) + extra, scored.logits.shape[-1])
    leaf = torch.full(shape, 0.5, dtype=scored.logits.dtype)
    leaf[scored.row, place] = scored.logits.detach()
    leaf.requires_grad_()
    mask = torch.zeros(shape[:2], dtype=torch.bool)
    mask[scored.row, place] = True
    return replace(ctx, scores=replace(scored, distribution=leaf[mask])), leaf, mask


@pytest.mark.parametrize("name", NAMES)
def test_masked_positions_have_no_gradient_and_padding_changes_nothing(name: str) -> None:
    chosen = method(name)
    for role in forwarded(chosen):
        ctx = make_context(chosen, role)
        if not ctx.scored.logits.shape[-1]:
            continue  # the forward ended before the logits
        plain = gradient(chosen, ctx)
        for extra in (0, 5):
            padded, leaf, mask = on_padded_logits(ctx, extra)
            loss = objective(chosen, padded)
            assert loss.item() == objective(chosen, ctx).item()
            (found,) = torch.autograd.grad(loss, leaf)
            assert not found[~mask].any()
            assert torch.equal(found[mask], plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_in_another_place_changes_nothing(name: str) -> None:
    """Rows in reverse, whole: what travels with a row stays with it."""
    chosen = method(name)
    for role in forwarded(chosen):
        ctx = make_context(chosen, role)
        expected = objective(chosen, ctx).item()
        assert objective(chosen, reversed_rows(ctx)).item() == pytest.approx(expected, rel=1e-12)


def reversed_rows(ctx: Context) -> Context:
    scored = ctx.scored
    order = (-scored.row).argsort(stable=True)

    def move(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[order]

    again = Scored(
        distribution=scored.logits[order],
        targets=scored.targets[order],
        row=scored.num_rows - 1 - scored.row[order],
        num_rows=scored.num_rows,
        answer=move(scored.answer),
        hidden=move(scored.hidden),
    )
    ref = ctx.ref
    moved = ref._replace(
        seq_logp=None if ref.seq_logp is None else ref.seq_logp.flip(0),
        token_logp=move(ref.token_logp),
        eua_margin=move(ref.eua_margin),
        distribution=move(ref.logits),
        block=move(ref.block),
        own={key: value[order] for key, value in ref.own.items()},
    )
    linked = {key: reversed_rows(other) for key, other in ctx.linked.items()}
    return replace(ctx, scores=again, ref=moved, linked=linked)


READ_LOGITS_AS_ENERGIES = ("eua",)
"""Methods to which a constant added to all logits of a position is a change."""


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_on_all_logits_changes_energies_alone(name: str) -> None:
    chosen = method(name)
    for role in forwarded(chosen):
        ctx = make_context(chosen, role)
        if not ctx.scored.logits.shape[-1]:
            continue
        shift = torch.linspace(-3, 3, len(ctx.scored.row), dtype=torch.float64)[:, None]
        moved = replace(ctx, scores=replace(ctx.scored, distribution=ctx.scored.logits + shift))
        same = objective(chosen, moved).item() == pytest.approx(objective(chosen, ctx).item(), rel=1e-9, abs=1e-12)
        assert same == (name not in READ_LOGITS_AS_ENERGIES)


# At the starting model


def at_start(chosen: Method, role: str) -> Context:
    """A micro-batch of the starting model itself, linked rows included."""
    ctx = make_context(chosen, role)
    needs = chosen.needs()

    def own(context: Context) -> Context:
        if context.scores is None:
            return context
        starting = replace(
            context.scores,
            distribution=context.scores.logits.detach(),
            hidden=None if context.scores.hidden is None else context.scores.hidden.detach(),
        )
        found = reference_values(starting, needs.references.get(context.role, ()))
        return replace(context, ref=found._replace(own=context.ref.own))

    return replace(own(ctx), linked={name: own(other) for name, other in ctx.linked.items()})


def of_two_over_beta(chosen: Any) -> float:
    return 2 / float(chosen.beta) * math.log(2) * float(chosen.gamma)


AT_START: dict[str, Callable[[Any], float] | None] = {
    "npo": of_two_over_beta,
    "idk_dpo": of_two_over_beta,
    "altpo": of_two_over_beta,
    # Token weights of 1, margins, teachers and labels: see the tests below and those of each loss.
    "tnpo": None,
    "wtnpo": None,
    "eua": None,
    "undial": None,
    "kl_min": None,
    "rmu": None,
    "whp": None,
    "alkn": None,
}
"""Methods that read the starting model -> their forget loss there; None: no closed form."""


def test_every_method_that_reads_the_starting_model_says_what_it_is_worth_there() -> None:
    reads = {name for name in NAMES if any(method(name).needs().references.values())}
    assert reads <= set(AT_START), "add the method's value at the starting model"


@pytest.mark.parametrize("name", [name for name, value in AT_START.items() if value is not None and name in NAMES])
def test_value_at_the_starting_model(name: str) -> None:
    chosen, value = method(name), AT_START[name]
    assert value is not None
    assert objective(chosen, at_start(chosen, "forget")).item() == pytest.approx(value(chosen), rel=1e-12)


def test_tnpo_is_ascent_at_the_starting_model() -> None:
    chosen, ascent = method("tnpo"), method("grad_ascent")
    ctx = at_start(chosen, "forget")
    torch.testing.assert_close(gradient(chosen, ctx), gradient(ascent, ctx), rtol=1e-13, atol=1e-15)


def test_undial_without_strength_moves_nothing_at_the_starting_model() -> None:
    chosen = method("undial", beta=0)
    assert gradient(chosen, at_start(chosen, "forget")).abs().max() < 1e-15


RETAINING = [name for name in NAMES if "retain" in METHODS.load(name).model_fields and name not in ("eua", "rmu")]


@pytest.mark.parametrize("name", RETAINING)
def test_divergence_from_the_starting_model_is_nothing_at_first(name: str) -> None:
    chosen = method(name, retain="kl", **({"alpha": 1.0} if "alpha" in METHODS.load(name).model_fields else {}))
    ctx = at_start(chosen, "retain")
    assert any(item.kind == "hidden" for item in chosen.needs().references["retain"])
    assert objective(chosen, ctx).item() == pytest.approx(0, abs=1e-14)
    assert gradient(chosen, ctx).abs().max() < 1e-15


@pytest.mark.parametrize("name", [name for name in RETAINING if name != "kl_min"])
def test_hidden_states_of_the_starting_model_are_kept_at_no_cost(name: str) -> None:
    chosen = method(name, retain="hidden", retain_layer=1, alpha=2.0)
    assert chosen.needs().hidden["retain"] == 1
    ctx = at_start(chosen, "retain")
    loss = objective(chosen, ctx)
    assert ctx.scored.hidden is not None
    (found,) = torch.autograd.grad(loss, ctx.scored.hidden)
    assert loss.item() == 0
    assert not found.any()


# Printed values of whole objectives: F1 (one answer of two tokens), F2 (four tokens of vocabulary), F5 (KL)

PRINTED: list[tuple[str, dict[str, Any], float]] = [
    ("grad_ascent", {}, -1.039721),
    ("npo", {"beta": 0.1}, 12.733597),
    ("npo", {"beta": 1.0}, 0.543867),
    ("simnpo", {"beta": 4.5, "delta": 1.0, "gamma": 1.0}, 0.270117),
    ("wga", {"beta": 1.0}, -0.346574),
    ("wga", {"beta": 3.0}, -0.054152),
    ("simsat", {"beta": 5.0}, -0.011507),
    ("simsat", {"beta": 1.0, "level": "sequence"}, -0.259930),
    ("simimp", {"beta": 1.0}, -0.693147),
    ("simimp", {"beta": 5.0}, -0.175317),
    ("satimp", {"beta1": 5, "beta2": 1}, -0.00592289),
    ("satimp", {"beta1": 4, "beta2": 0.1}, -0.02284111),
    ("tnpo", {"beta": 1.0}, -0.728693),
    ("tnpo", {"beta": 4.0}, -0.173311),
    ("wtnpo", {"beta": 4.0, "exponent": 1.5}, -0.042637),
]


@pytest.mark.parametrize(("name", "own", "value"), PRINTED, ids=keys)
def test_printed_values_of_one_answer(name: str, own: dict[str, Any], value: float) -> None:
    chosen = method(name, **own)

    def scored(first: float, second: float) -> Scored:
        p = torch.tensor([[first, 1 - first], [second, 1 - second]], dtype=torch.float64)
        return Scored(p.log().requires_grad_(), torch.tensor([0, 0]), torch.tensor([0, 0]), 1)

    start = reference_values(scored(0.8, 0.5), chosen.needs().references.get("forget", ()))
    assert objective(chosen, Context("forget", scored(0.5, 0.25), start)).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "own", "role", "target", "value"),
    [
        ("ceu", {"skip_first": 0}, "forget", 0, 1.864979),
        ("undial", {"beta": 2.0}, "forget", 0, 1.584849),
        ("bs_t", {"lambda_t": 0, "k": 2}, "forget", 2, -2.440190),
        ("bs_t", {"lambda_t": 0.5, "k": 2}, "forget", 2, -1.574660),
        ("bs_t", {"lambda_t": 1, "k": 2}, "forget", 2, -0.709131),
        ("eua", {"ratio": 0.5, "gamma": 1.0}, "forget", 0, 1.502846),
        ("eua", {"ratio": 0.5, "gamma": 1.0, "alpha": 0}, "retain", 0, 0.00287532),
        ("eua", {"ratio": 0.5, "gamma": 1.0, "temperature": 2.0, "profile": "openunlearning"}, "forget", 0, 0.254613),
        ("eua", {"ratio": 0.5, "gamma": 1.0, "fill": "neg_inf"}, "forget", 0, (2.440190 - 0.313262) ** 2),
    ],
    ids=keys,
)
def test_printed_values_of_one_token(name: str, own: dict[str, Any], role: str, target: int, value: float) -> None:
    chosen = method(name, **own)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64).requires_grad_()
    scored = Scored(logits, torch.tensor([target]), torch.tensor([0]), 1)
    ctx = Context(role, scored, reference_values(scored, chosen.needs().references.get(role, ())))
    assert objective(chosen, ctx).item() == pytest.approx(value, abs=1e-5)


def test_printed_divergence() -> None:
    now, start = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.5, 0.3, 0.2], [0.7, 0.2, 0.1]))
    place = torch.tensor([0])
    ref = reference_values(Scored(start, place, place, 1), (Reference("hidden"),))
    ctx = Context("retain", Scored(now.requires_grad_(), place, place, 1), ref)
    assert objective(KLMin(), ctx).item() == pytest.approx(0.0851228, abs=1e-7)
