"""Methods whose rows or labels a model makes, in the engine: what travels with what; the budget is no matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from expunge.losses.npo import npo_loss
from expunge.methods.base import Context, Method
from expunge.methods.bs_s import BSS
from expunge.methods.forgetting_sft import ForgettingSFT
from expunge.methods.select import build_method
from expunge.methods.unstar import ROWS, UnStar
from expunge.methods.whp import WHP
from expunge.train.engine import Engine
from expunge.train.monitor import VOLATILE
from expunge.train.step import StepRun

MakeEngine = Callable[..., Engine]
BRIEF = {"max_new_tokens": 6}


def fit(engine: Engine) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append)
    return [{key: value for key, value in event.items() if key not in VOLATILE} for event in events]


@pytest.mark.parametrize("base", [{"name": "npo", "beta": 0.3}, {"name": "grad_diff"}, {"name": "idk_dpo"}], ids=str)
def test_without_a_share_for_beliefs_a_run_has_the_bits_of_its_base(
    base: dict[str, Any], make_engine: MakeEngine
) -> None:
    plain, wrapped = make_engine(build_method(base)), make_engine(BSS(base=base, lambda_s=0, resample=1))
    assert fit(plain) == fit(wrapped)
    for one, two in zip(plain.model.parameters(), wrapped.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_beliefs_travel_with_their_questions_and_have_the_starting_models_word(make_engine: MakeEngine) -> None:
    engine = make_engine(BSS(base={"name": "npo", "beta": 0.1}, num_beliefs=2, lambda_s=0.6, **BRIEF), steps=1)
    plan = engine.splitter(engine.stream.next())
    run, data = StepRun(engine, plan), engine.data
    for micro_batch in plan.of("forget"):
        for belief in ("belief0", "belief1"):
            for row, other in zip(micro_batch.rows, micro_batch.linked[belief], strict=True):
                assert data.datasets[belief].examples[other].prompt == data.datasets["forget"].examples[row].prompt
        context: Context = run._context("forget", micro_batch.rows, micro_batch.linked, {})
        terms = engine.method.losses(context)
        assert {name: round(term.weight, 12) for name, term in terms.items()} == {
            "forget": 0.4,
            "belief0_forget": 0.3,
            "belief1_forget": 0.3,
        }
        linked = context.linked["belief0"]
        # No step was taken: the starting model is the one that is trained.
        torch.testing.assert_close(linked.scored.seq_logps, linked.ref.seq_logp, rtol=1e-5, atol=1e-5)
        expected = npo_loss(linked.scored.seq_logps, linked.ref.seq_logp, beta=0.1)  # type: ignore[arg-type]
        torch.testing.assert_close(terms["belief0_forget"].values, expected)


def test_beliefs_made_later_are_compared_with_the_starting_model(make_engine: MakeEngine) -> None:
    method = BSS(base={"name": "npo"}, num_beliefs=1, resample=1, **BRIEF)
    engine = make_engine(method, steps=4, learning_rate=1e-2)
    first = engine.data.datasets["belief0"]
    before = {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}
    fit(engine)
    assert engine.epoch == 1
    later = engine.data.datasets["belief0"]
    assert [example.answer for example in later.examples] != [example.answer for example in first.examples]
    engine.model.load_state_dict(before, strict=False)
    run = StepRun(engine, engine.splitter(engine.stream.next()))
    context = run._context("belief0", list(range(len(later.encoded))), {}, {})
    torch.testing.assert_close(context.ref.seq_logp, context.scored.seq_logps.detach(), rtol=1e-4, atol=1e-4)


METHODS: list[Method] = [
    BSS(num_beliefs=2, **BRIEF),
    WHP(reinforced_learning_rate=1e-2, anchors={"Ashes of Noon": "Tide", "Forget Vane": "A Person"}),
    WHP(reinforced_learning_rate=1e-2, labels="soft", alpha=1),
    UnStar(overlap=0, epochs_per_round=1, **BRIEF),
    ForgettingSFT(reference_learning_rate=1e-3, rho=0.5),
]


@pytest.mark.parametrize("method", METHODS, ids=[f"{n}-{method.name}" for n, method in enumerate(METHODS)])
def test_the_budget_is_no_matter(method: Method, make_engine: MakeEngine) -> None:
    small, large = fit(make_engine(method, budget=64, steps=3)), fit(make_engine(method, budget=8192, steps=3))
    for one, two in zip(small, large, strict=True):
        assert one.keys() == two.keys()
        for key in ("loss", "grad_norm"):
            assert one[key] == pytest.approx(two[key], rel=5e-4, abs=1e-6)


def test_questions_that_are_not_trained_on_pull_nowhere(make_engine: MakeEngine) -> None:
    # A model with random weights answers nothing rightly, so that no anti-sample is live.
    engine = make_engine(UnStar(alpha=0, overlap=0.9, **BRIEF), steps=1)
    (event,) = fit(engine)
    assert event["forget"] == 0
    assert event["grad_norm"] == 0
    assert ROWS in engine.data.datasets


def test_all_positive_tokens_are_fine_tuning_on_both_sets(make_engine: MakeEngine) -> None:
    engine = make_engine(ForgettingSFT(rho=1), steps=1)
    plan = engine.splitter(engine.stream.next())
    run = StepRun(engine, plan)
    tokens = sum(plan.counts[role].tokens for role in ("forget", "retain"))
    assert run.totals == {"positive": tokens, "negative": 0}
    losses = run.backward("forget", "retain")
    expected = 0.0
    for micro_batch in plan.micro_batches:
        context = run._context(micro_batch.role, micro_batch.rows, {}, {})
        expected -= float(context.scored.logps.detach().sum()) / tokens
    assert float(losses.total) == pytest.approx(expected, rel=1e-5)
