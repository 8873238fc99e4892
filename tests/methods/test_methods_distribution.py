"""IdkNLL, UNDIAL, CE-U, PDU, RMU and FLAT: what they ask for, what their terms are, and what they refuse."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from writers_room import rows, variants_of, workshop

from expunge.errors import UsageError
from expunge.losses.flat import Divergence
from expunge.methods.base import Context, Method, Term
from expunge.methods.ceu import CEU
from expunge.methods.flat import FLAT
from expunge.methods.grad_diff import GradDiff
from expunge.methods.idk_nll import IdkNLL
from expunge.methods.pdu import PDU
from expunge.methods.rmu import RMU
from expunge.methods.select import build_method
from expunge.methods.undial import UNDIAL
from expunge.models.reference import Reference
from expunge.testing.conformance import LossCase, Outcome, Padded, run_case
from expunge.testing.contexts import make_context, random_scored
from expunge.testing.tiny import tiny_llama
from expunge.train.reduce import Counts, term_loss


def value(term: Term, ctx: Context) -> Tensor:
    """The term of a micro-batch that is a whole step, without its weight."""
    scored = (ctx if term.dataset is None else ctx.linked[term.dataset]).scored
    whole = Counts(len(scored.row), scored.num_rows)
    return term_loss(term, scored_row=scored.row, num_rows=scored.num_rows, counts=whole)


def forget_term(method: Method, ctx: Context) -> Term:
    terms = method.losses(ctx)
    assert list(terms) == ["forget"]
    return terms["forget"]


def padded(key: str, seed: int, *, lengths: tuple[int, ...], more: int = 0, garbage: int = 0, vocab: int = 5) -> Padded:
    """Answers of `lengths` tokens after two prompt tokens, `more` columns of padding that hold anything."""
    columns = 2 + max(lengths)
    made = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(lengths), columns, vocab, generator=made, dtype=torch.float64)
    ids = torch.randint(vocab, (len(lengths), columns), generator=made)
    places = torch.arange(columns + more)
    attended = places < 2 + torch.tensor(lengths)[:, None]
    noise = torch.Generator().manual_seed(garbage)
    filling = 50 * torch.randn(len(lengths), more, vocab, generator=noise, dtype=torch.float64)
    logits = torch.cat([logits, filling], 1)
    ids = torch.cat([ids, ids.new_zeros(len(lengths), more)], 1)
    return Padded(
        key=key,
        input_ids=ids,
        labels=ids.masked_fill(~attended | (places < 2), -100),
        attention_mask=attended,
        logits=logits,
        ref_logits=logits,
    )


def case_of(**batches: Padded) -> LossCase:
    return LossCase("made here", "", {}, batches, loss=0.0, components={}, gradients={})


# IdkNLL


def test_idk_nll_learns_the_refusal_and_never_forwards_the_answer() -> None:
    method = IdkNLL(gamma=0.5)
    needs = method.needs()
    assert needs.linked == {"alternate": "forget"}
    assert needs.unscored == ("forget",)
    assert needs.references == {}
    ctx = make_context(method, "forget")
    assert ctx.scores is None
    term = forget_term(method, ctx)
    assert (term.weight, term.dataset) == (0.5, "alternate")
    torch.testing.assert_close(value(term, ctx), -ctx.linked["alternate"].scored.logps.mean())


def test_idk_nll_is_the_retain_likelihood_of_other_rows() -> None:
    method = IdkNLL()
    ctx = make_context(method, "forget")
    refusals = ctx.linked["alternate"]
    likelihood = GradDiff().losses(replace(refusals, role="retain"))["retain"]
    assert value(forget_term(method, ctx), ctx) == value(likelihood, refusals)


# FLAT


def answers(seed: int, *, more: int = 0, garbage: int = 0) -> LossCase:
    shape: dict[str, Any] = {"more": more, "garbage": garbage}
    return case_of(
        forget=padded("forget", seed, lengths=(3, 1, 4), **shape),
        alternate=padded("alternate", seed + 1, lengths=(2, 5, 3), **shape),
    )


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 999),
    more=st.integers(1, 30),
    divergence=st.sampled_from(["tv", "kl", "js", "pearson"]),
    cut=st.sampled_from([None, 1, 2]),
)
def test_flat_does_not_know_the_padding(seed: int, more: int, divergence: Divergence, cut: int | None) -> None:
    """Bit for bit; the release divides by the padded length, so its step size follows the longest row of a batch."""
    method = FLAT(divergence=divergence)
    plain = run_case(answers(seed), method, rows=cut)
    wide = run_case(answers(seed, more=more, garbage=seed + 2), method, rows=cut)
    assert wide.loss == plain.loss
    for role, gradient in plain.gradients.items():
        columns = gradient.shape[1]
        assert torch.equal(wide.gradients[role][:, :columns], gradient)
        assert not wide.gradients[role][:, columns:].any()


def test_flat_is_a_mean_over_pairs_of_mean_probabilities() -> None:
    case, whole = answers(4), run_case(answers(4), FLAT(divergence="kl", gamma=2.0))
    values = []
    for row in range(3):
        probability = {}
        for role, batch in case.batches.items():
            kept = (batch.labels[row, 1:] != -100).nonzero()[:, 0]
            chosen = batch.logits[row].softmax(-1)[kept, batch.labels[row, kept + 1]]
            probability[role] = chosen.mean()
        values.append((probability["forget"] - 1).exp() - probability["alternate"])
    assert whole.loss == pytest.approx(2 * torch.stack(values).mean().item(), rel=1e-12)
    for cut in (1, 2):
        assert run_case(case, FLAT(divergence="kl", gamma=2.0), rows=cut).loss == pytest.approx(whole.loss, rel=1e-12)


@pytest.mark.parametrize("divergence", ["tv", "kl", "js", "pearson"])
def test_flat_raises_the_template_and_lowers_the_answer(divergence: Divergence) -> None:
    case = answers(1)
    found: Outcome = run_case(case, FLAT(divergence=divergence))
    for role, sign in {"alternate": -1, "forget": 1}.items():
        batch = case.batches[role]
        place = batch.answer.nonzero(as_tuple=True)
        own = found.gradients[role][(*place, batch.input_ids.roll(-1, dims=1)[place])]
        assert bool((sign * own > 0).all())


# UNDIAL


def test_undial_reads_the_starting_models_distribution_once() -> None:
    needs = UNDIAL().needs()
    assert (needs.roles, needs.references) == (("forget",), {"forget": (Reference("hidden"),)})
    assert needs.positions == {}
    assert UNDIAL(profile="openunlearning").needs().positions == {"forget": "all"}


def test_the_published_undial_needs_a_vocabulary_of_a_hundred() -> None:
    case = case_of(forget=padded("forget", 1, lengths=(2, 3), vocab=99))
    with pytest.raises(UsageError, match="a vocabulary of 99 tokens with its label -100") as caught:
        run_case(case, UNDIAL(profile="openunlearning"))
    assert "profile=canonical" in str(caught.value.hint)
    enough = case_of(forget=padded("forget", 1, lengths=(2, 3), vocab=100))
    assert run_case(enough, UNDIAL(profile="openunlearning")).loss > 0
    assert run_case(case, UNDIAL()).loss > 0


def test_the_published_undial_lowers_one_entry_of_the_vocabulary_at_prompt_and_padding() -> None:
    batch = padded("forget", 3, lengths=(2, 4), more=2, vocab=110)
    found = run_case(case_of(forget=batch), UNDIAL(profile="openunlearning"))
    other = ~batch.answer
    other[:, -1] = False
    residual = found.gradients["forget"][other]
    # The student is the teacher here, so what is pushed down is what the teacher lacks.
    assert bool((residual.argmax(-1) == 10).all())
    assert not found.gradients["forget"][:, -1].any()
    clean = run_case(case_of(forget=batch), UNDIAL())
    assert not clean.gradients["forget"][other].any()


# CE-U


def test_ceu_leaves_the_first_tokens_alone_and_rows_without_others_out() -> None:
    assert CEU().needs().skip_first == {"forget": 1}
    assert CEU(skip_first=0).needs().skip_first == {}
    batch = padded("forget", 1, lengths=(1, 3, 4))
    case = case_of(forget=batch)
    found = run_case(case, CEU())
    assert torch.isfinite(found.gradients["forget"]).all()
    assert not found.gradients["forget"][0].any()
    assert not found.gradients["forget"][:, 1].any(), "the position before each answer's first token"
    tensors = ("input_ids", "labels", "attention_mask", "logits", "ref_logits")
    rest = replace(batch, **{name: getattr(batch, name)[1:] for name in tensors})
    assert run_case(case_of(forget=rest), CEU()).loss == found.loss
    for cut in (1, 2):
        assert run_case(case, CEU(), rows=cut).loss == pytest.approx(found.loss, rel=1e-14)


def test_ceu_without_a_token_left_is_refused_and_with_some_rows_left_says_so() -> None:
    bench = workshop(variants_of(1))
    lengths = bench.datasets["forget"].supervised()
    assert len(set(lengths)) > 1, "answers of different lengths"
    CEU(skip_first=0).prepare(bench)
    assert bench.notes == []
    CEU(skip_first=int(lengths.min())).prepare(bench)
    assert bench.notes == [f"1 forget rows have no token after the first {lengths.min()} and take no part"]
    with pytest.raises(UsageError, match=f"leaves no token of any forget row: the longest answer has {lengths.max()}"):
        CEU(skip_first=int(lengths.max())).prepare(bench)


# PDU


def test_pdu_brings_its_constraint_with_alpha_as_the_first_multiplier() -> None:
    method = PDU(alpha=7.0, epsilon=0.2, dual_lr=3.0, warmup_epochs=2.0, every="epoch")
    assert method.wrappers() == (
        {"name": "dual", "initial": 7.0, "epsilon": 0.2, "dual_lr": 3.0, "warmup_epochs": 2.0, "every": "epoch"},
    )
    retain = method.losses(make_context(method, "retain"))["retain"]
    assert retain.weight == 1, "lambda is all that weighs it"
    assert method.needs().roles == ("forget", "retain")
    assert method.needs().references == {}
    assert PDU(profile="openunlearning").needs().positions == {"forget": "held"}
    assert PDU(retain="kl").needs().references == {"retain": (Reference("hidden"),)}


def test_pdu_is_nothing_where_no_token_stands_out() -> None:
    method = PDU()
    ctx = make_context(method, "forget")
    flat = replace(ctx.scored, distribution=torch.full_like(ctx.scored.logits, 3.0))
    assert value(forget_term(method, replace(ctx, scores=flat)), ctx) == 0


# RMU


def test_rmu_asks_for_hidden_states_and_for_logits_only_where_something_reads_them() -> None:
    needs = RMU(layer=3).needs()
    assert needs.hidden == {"forget": 3, "retain": 3}
    assert needs.positions == {"forget": "held", "retain": "held"}
    assert needs.references == {"retain": (Reference("block", layer=3),)}
    assert needs.truncate
    other = RMU(layer=3, retain_layer=5, kl_positions="answer").needs()
    assert other.hidden == {"forget": 3, "retain": 5}
    assert other.positions == {"forget": "held", "retain": "predict"}
    assert RMU(layer=3, alpha=0).needs().roles == ("forget",)
    assert RMU(layer=3, alpha=0, retain="nll").needs().truncate
    for retain in ("nll", "kl"):
        assert not RMU(layer=3, retain=retain).needs().truncate


def test_rmu_keeps_what_the_starting_model_had_at_no_cost() -> None:
    for profile in ("canonical", "openunlearning"):
        method = RMU(layer=1, profile=profile)
        ctx = make_context(method, "retain")
        assert ctx.scored.hidden is not None
        same = replace(ctx, ref=ctx.ref._replace(block=ctx.scored.hidden.detach()))
        loss = value(method.losses(same)["retain"], same)
        (gradient,) = torch.autograd.grad(loss, ctx.scored.hidden)
        assert loss == 0
        assert not gradient.any()


@settings(derandomize=True, deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_the_published_rmu_is_a_product_of_means_and_the_same_for_equal_lengths(lengths: list[int], seed: int) -> None:
    ours, theirs = RMU(layer=1, alpha=0), RMU(layer=1, alpha=0, profile="openunlearning")
    for shape in (lengths, [lengths[0]] * len(lengths)):
        ctx = make_context(ours, "forget", lengths=shape, seed=seed)
        assert ctx.scored.hidden is not None
        distances = (ctx.scored.hidden - 1).square().mean(-1)
        sums = torch.stack([distances[ctx.scored.row == row].sum() for row in range(len(shape))])
        counts = torch.tensor(shape, dtype=torch.float64)
        torch.testing.assert_close(value(forget_term(ours, ctx), ctx), (sums / counts).mean())
        product = sums.mean() * (1 / counts).mean()
        torch.testing.assert_close(value(forget_term(theirs, ctx), ctx), product)
        if len(set(shape)) == 1:
            torch.testing.assert_close(product, (sums / counts).mean())


def test_rmu_draws_its_direction_from_the_seed() -> None:
    def control(seed: int, coefficient: float = 2.0) -> Tensor:
        bench = workshop(variants_of(1), rows(), seed=seed, model=tiny_llama(300))
        return RMU(layer=1, coefficient=coefficient).prepare(bench).constants["control"]

    assert control(1).shape == (32,)
    assert control(1, 6.5).norm().item() == pytest.approx(6.5, rel=1e-6)
    assert torch.equal(control(1), control(1))
    assert not torch.equal(control(1), control(2))


def test_rmu_names_its_parameters_by_layer_in_any_family() -> None:
    (pattern,) = RMU(layer=7).trainable()
    for name in ("model.layers.5.mlp.down_proj.weight", "transformer.h.7.mlp.c_proj.bias"):
        assert re.search(pattern, name)
    for name in (
        "model.layers.4.mlp.down_proj.weight",
        "model.layers.8.mlp.down_proj.weight",
        "model.layers.17.mlp.down_proj.weight",
        "model.layers.6.mlp.up_proj.weight",
        "transformer.h.6.attn.c_proj.weight",
    ):
        assert not re.search(pattern, name)
    assert RMU(layer=0).trainable() == (pattern.replace("5|6|7", "0"),)
    assert RMU(parameters=("embed",)).trainable() == ("embed",)


def test_a_layer_that_does_not_exist_lists_those_that_do() -> None:
    bench = workshop(variants_of(1), rows(), model=tiny_llama(300))
    for keys in ({}, {"alpha": 0}, {"retain": "nll"}):
        with pytest.raises(UsageError, match="layer 7 does not exist: LlamaForCausalLM has 2 blocks") as caught:
            RMU(**keys).prepare(bench)
        assert caught.value.hint == "layers are 0 to 1"


# What is refused


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "undial", "beta": -1},
        {"name": "undial", "beta": float("inf")},
        {"name": "ceu", "skip_first": -1},
        {"name": "ceu", "skip_first": 1.5},
        {"name": "pdu", "epsilon": -0.1},
        {"name": "pdu", "dual_lr": 0},
        {"name": "pdu", "alpha": 0},
        {"name": "pdu", "warmup_epochs": -1},
        {"name": "pdu", "every": "epochs"},
        {"name": "rmu", "layer": -1},
        {"name": "rmu", "coefficient": 0},
        {"name": "rmu", "coefficient": float("nan")},
        {"name": "rmu", "retain": "activations"},
        {"name": "flat", "divergence": "hellinger"},
        {"name": "idk_nll", "gamma": -1},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_options_out_of_range_are_named_with_what_was_found(keys: dict[str, Any]) -> None:
    name = next(key for key in keys if key != "name")
    with pytest.raises(UsageError, match=rf"method\.{name}: .*found {keys[name]!r}"):
        build_method(keys)


def test_an_unknown_option_says_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown key method\.coeficient for rmu") as caught:
        build_method({"name": "rmu", "coeficient": 2})
    assert "coefficient" in str(caught.value.hint)


def test_what_a_term_lacks_is_an_error_and_no_other_objective() -> None:
    bare = random_scored((2, 3))
    for method, role in ((RMU(layer=1), "forget"), (RMU(layer=1), "retain"), (UNDIAL(), "forget")):
        ctx = make_context(method, role)
        lacking = replace(ctx, scores=bare, ref=ctx.ref._replace(distribution=None, block=None))
        with pytest.raises(UsageError, match=r"hidden states were kept|hidden was not provided"):
            method.losses(lacking)
