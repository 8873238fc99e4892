"""Energies and the bound of Leak@k at temperatures other than 1: kept where asked for, equal to plain computations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge import api
from expunge.config.schema import EvalSection, ModelSection, Recipe
from expunge.data.example import Example, Turn
from expunge.data.template import build_template
from expunge.errors import UsageError
from expunge.evals.jobs import plan_jobs
from expunge.evals.passes import Subject, run_passes
from expunge.evals.recompute import recompute
from expunge.evals.suite import Measured, Split, Suite
from expunge.evals.suites.tofu import measure
from expunge.evals.trace import token_stats, trace
from expunge.losses import logprobs
from expunge.metrics.auc import auc
from expunge.metrics.explain import explain
from expunge.metrics.registry import direction_of
from expunge.models.load import load_model, load_tokenizer
from expunge.runs.tables import TRACE, trace_schema
from expunge.testing.runs import tiny_run
from expunge.testing.tables import make_tables, random_tables, text_row
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

ASKED = (0.5, 2.0)
COLUMNS = ["lse_t0.5", "lse_t2"]
FORGET = [{"question": f"Where was {name} born?", "answer": "In Oslo."} for name in ("Mira", "Idris", "Tove")]
RETAIN = [{"question": f"What does {name} write?", "answer": "Poems, often."} for name in ("Anan", "Solen")]


def nothing(*args: Any, **kwargs: Any) -> Measured:
    return Measured({}, {})


# The pass


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    n=st.integers(1, 20),
    vocab=st.integers(2, 30),
    seed=st.integers(0, 999),
    moments=st.booleans(),
    temperatures=st.lists(st.floats(0.01, 100), min_size=1, max_size=3),
)
def test_log_sum_exps_are_the_textbook_s_and_change_nothing_else(
    n: int, vocab: int, seed: int, moments: bool, temperatures: list[float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, vocab, generator=generator) * 5
    targets = torch.randint(vocab, (n,), generator=generator)
    before = logprobs.CHUNK_BYTES
    try:
        logprobs.CHUNK_BYTES = 4 * vocab * 3
        found = token_stats(logits, targets, moments=moments, temperatures=temperatures)
        plain = token_stats(logits, targets, moments=moments)
    finally:
        logprobs.CHUNK_BYTES = before
    assert found.tempered is not None
    for column, temperature in zip(found.tempered.unbind(-1), temperatures, strict=True):
        wanted = torch.logsumexp(logits.double() / temperature, -1)
        assert torch.allclose(column.double(), wanted, rtol=1e-5, atol=1e-4)
    assert plain.tempered is None
    for name, value in plain._asdict().items():
        assert value is None or torch.equal(value, getattr(found, name)), name


def test_every_text_has_its_own_also_where_a_pass_is_shared() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), seed=3)
    turns = (Turn("user", "Which letter?"), Turn("assistant", "A"))
    letters = Example("q", 0, turns=turns, extra={"options": ("A", "B", "C"), "gold": 0})
    asked = Example("w", 0, turns=(Turn("user", "Where?"), Turn("assistant", "In Tallinn, Estonia.")))
    splits = (Split("letters", (letters,), ("options",)), Split("forget", (asked,), stats=True))
    plan = plan_jobs(Suite("tofu", splits, nothing), build_template("auto", tokenizer), max_length=512)
    found = trace(model, plan, pad_id=0, token_budget=4096, temperatures=ASKED).table
    plain = trace(model, plan, pad_id=0, token_budget=4096).table
    assert found.schema == trace_schema(ASKED)
    assert plain.schema == TRACE
    assert found.select(plain.column_names).equals(plain)
    for row, job in zip(found.to_pylist(), plan.jobs, strict=True):
        item = plan.dataset.encoded[job.unique]
        with torch.no_grad():
            logits = model(torch.from_numpy(item.input_ids[None].astype("int64"))).logits[0].double()
        at = torch.from_numpy(item.supervised.nonzero()[0] - 1)
        for temperature, name in zip(ASKED, COLUMNS, strict=True):
            assert row[name] == pytest.approx(torch.logsumexp(logits[at] / temperature, -1).tolist(), abs=2e-4)


# The metrics


def test_numbers_by_hand() -> None:
    texts = [
        text_row("forget", 0, "answer", [-0.5, -0.25], lse=[3.0, 1.0]) | {"lse_t0.5": [6.5, 2.25]},
        text_row("retain", 0, "answer", [-0.5, -0.25], lse=[5.0, 1.0]) | {"lse_t0.5": [6.0, 2.0]},
    ]
    measured = measure(make_tables(texts, temperatures=[0.5]))
    found = {name: score.value for name, score in measured.scores.items()}
    assert (found["energy.auroc"], found["energy.auroc_t0.5"]) == (1, 0)
    p = np.exp((3.0 - 0.5) / 0.5 - 6.5 + (1.0 - 0.25) / 0.5 - 2.25)
    assert found["forget.leak_at_128_exact_t0.5_p1"] == pytest.approx(1 - (1 - p) ** 128)
    score = measured.scores["energy.auroc_t0.5"]
    assert (score.direction, score.ideal) == ("higher", 1.0)
    assert {"energy.auroc_t0.5", "forget.leak_at_128_exact_t0.5_p1"} <= measured.rows.keys()


def test_a_retrained_model_without_them_gives_no_ideal_of_the_bound() -> None:
    texts = [
        text_row(split, row, "answer", [-0.5, -0.25]) | {"lse_t2": [8.0, 8.0]}
        for split in ("forget", "retain")
        for row in range(3)
    ]
    plain, more = make_tables(texts), make_tables(texts, temperatures=[2.0])
    assert measure(more, reference=more).scores["forget.leak_at_128_exact_t2_p1"].ideal is not None
    alone = measure(more, reference=plain).scores["forget.leak_at_128_exact_t2_p1"]
    assert alone.ideal is None
    assert not [name for name in measure(plain, reference=more).scores if "_t2" in name]


def test_nothing_is_said_of_them_where_they_were_not_asked_for() -> None:
    measured = measure(random_tables(rows=8, small=4))
    assert not [name for name in (*measured.scores, *measured.skipped) if "_t" in name.partition(".")[2][-5:]]


def test_names_are_explained_and_judged() -> None:
    assert explain("energy.auroc_t0.5").info.name == "energy.auroc_tT"
    assert explain("forget.leak_at_128_exact_t0.5_p1").info.name == "<split>.leak_at_K_exact"
    assert (direction_of("energy.auroc_t2"), direction_of("forget.leak_at_128_exact_t2_p1")) == ("higher", "lower")
    with pytest.raises(UsageError):
        explain("energy.auroc_twice")


# From a recipe to a number


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("tempered") / "run", forget=FORGET, retain=RETAIN)


def recipe(run: Path, *temperatures: float) -> Recipe:
    rows = {name: str(run.with_name(f"{run.name}-{name}.jsonl")) for name in ("forget", "retain")}
    return Recipe.model_validate({"data": rows, "eval": {"temperatures": list(temperatures)}, "device": "cpu"})


def test_an_evaluation_equals_a_direct_unbatched_computation(run: Path) -> None:
    plain = api.evaluate(run, recipe=recipe(run), token_budget=512)
    spec = json.loads((plain.path / "spec.json").read_text())
    before = pq.read_table(plain.path / "trace.parquet")
    assert "temperatures" not in spec
    assert before.schema.names == TRACE.names

    found = api.evaluate(run, recipe=recipe(run, *ASKED), token_budget=512)
    assert json.loads((found.path / "spec.json").read_text())["temperatures"] == list(ASKED)
    after = pq.read_table(found.path / "trace.parquet")
    assert after.column_names == [*TRACE.names, *COLUMNS]
    assert after.select(TRACE.names).equals(before)
    assert {name: found.scores[name] for name in plain.scores} == plain.scores

    model = load_model(ModelSection(model_name_or_path=str(run / "model")), device=torch.device("cpu")).model
    direct = Direct(model, load_tokenizer(str(run / "model")))
    for temperature in ASKED:
        energies = [[direct.energy(row, temperature) for row in rows] for rows in (FORGET, RETAIN)]
        name = f"energy.auroc_t{temperature:g}"
        assert found.scores[name].value == pytest.approx(auc(*map(np.array, energies)))
        bound = np.mean([1 - (1 - direct.chance(row, temperature)) ** 128 for row in FORGET])
        assert found.scores[f"forget.leak_at_128_exact_t{temperature:g}_p1"].value == pytest.approx(bound, rel=1e-3)

    assert recompute(found.path).scores == found.scores
    again = api.evaluate(run, recipe=recipe(run), token_budget=512)
    assert again.scores == found.scores, "what was kept is reported from then on"


class Direct:
    """One text at a time, all logits, float64."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def logits(self, row: dict[str, str], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, V) divided logits at the answer's tokens, and (N,) those tokens."""
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        whole = self.tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
        prompt = self.tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)
        first = len(prompt["input_ids"])
        logits = self.model(torch.tensor([whole])).logits[0, first - 1 : -1].double()
        return logits / temperature, torch.tensor(whole[first:])

    def energy(self, row: dict[str, str], temperature: float) -> float:
        return -temperature * float(torch.logsumexp(self.logits(row, temperature)[0][0], -1))

    def chance(self, row: dict[str, str], temperature: float) -> float:
        logits, tokens = self.logits(row, temperature)
        return float(torch.log_softmax(logits, -1).gather(-1, tokens[:, None]).sum().exp())


# What is refused


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, 0.5], "named twice"),
        ([1], "1 is always measured"),
        ([0], "greater than or equal to 0.01"),
        ([-1], "greater than or equal to 0.01"),
        ([1000], "less than or equal to 100"),
        ([0.12345678], "more than six digits"),
        ([float("nan")], "finite"),
        ("hot", "valid tuple"),
    ],
)
def test_temperatures_that_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalSection.model_validate({"temperatures": value})


def test_what_is_wrong_is_said_with_the_key() -> None:
    with pytest.raises(UsageError) as told:
        api.validate({"eval": {"temperatures": [1, 2]}})
    assert (
        told.value.message == "eval.temperatures: 1 is always measured, so it cannot be asked for, found [1, 2] (list)"
    )


def test_one_number_is_a_list() -> None:
    assert EvalSection.model_validate({"temperatures": 0.5}).temperatures == (0.5,)


def test_a_suite_without_a_trace_refuses_them(tmp_path: Path) -> None:
    suite = Suite("harness", (), nothing, passes=lambda subject, progress: make_tables([]))
    subject = Subject(suite, template=None, model=None, tokenizer=None, temperatures=ASKED)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"traces no tokens, so it has no energies at eval\.temperatures"):
        run_passes(tmp_path, {}, subject, token_budget=64, progress=lambda event: None)
