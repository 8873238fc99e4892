"""The PISTOL suite: which edges are forgotten, its scores by hand, and real contracts against a direct computation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_models import Plain, soon_ended
from rouge_score.rouge_scorer import RougeScorer

from expunge import api
from expunge.config.schema import Recipe
from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.recompute import recompute
from expunge.evals.run import EvalOptions, build_suite
from expunge.evals.suite import Suite, SuiteData, Tables
from expunge.evals.suites.pistol import METRICS, SPLITS, measure, pistol, rule
from expunge.metrics.explain import explain
from expunge.metrics.registry import direction_of, find_metric
from expunge.report.samples import pick_samples
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tables import answer_row, make_tables, text_row


def write(path: Path, edges: tuple[str, ...]) -> Path:
    rows = [
        {"question": f"What is {number} of {edge}?", "answer": f"{number}.", "edge": edge}
        for edge in edges
        for number in range(2)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def contracts(tmp_path: Path) -> Path:
    return write(tmp_path / "sample_data_1.json", ("A_B", "A_C", "B_D", "E_F", "E_g"))


def sizes(suite: Suite) -> dict[str, int]:
    return {split.name: len(split.examples) for split in suite.splits}


def edges_of(suite: Suite) -> dict[str, list[str]]:
    return {split.name: sorted({example.id.split(":")[0] for example in split.examples}) for split in suite.splits}


def test_real_contracts_lie_around_the_published_edge(shared: Path) -> None:
    suite = pistol(SuiteData(source=str(shared / "data/pistol")))
    assert sizes(suite) == {
        **{"forget": 20, "retain_linked": 140, "retain_further": 120},
        **{"retain_independent_sales": 60, "retain_independent_employment": 60},
    }
    assert (suite.options or {})["forget_split"] == "A_C"
    assert all(split.generate and split.stats for split in suite.splits)
    assert set(sizes(pistol(SuiteData(source=str(shared / "data/pistol"), limit=3))).values()) == {3}


def test_edges_that_are_named(contracts: Path) -> None:
    suite = pistol(SuiteData(source=str(contracts), forget_split="E_F, A_B"))
    assert edges_of(suite) == {"forget": ["A_B", "E_F"], "retain_linked": ["A_C", "B_D", "E_g"]}
    with pytest.raises(UsageError, match="unknown edge 'A_D'"):
        pistol(SuiteData(source=str(contracts), forget_split="A_D"))
    with pytest.raises(DataError, match="every edge of"):
        pistol(SuiteData(source=str(contracts), forget_split="A_B,A_C,B_D,E_F,E_g"))


def test_a_run_knows_its_edges(contracts: Path) -> None:
    source = {"path": str(contracts), "fields": {"group": "edge"}}
    recipe: dict[str, Any] = {
        "data": {"forget": source | {"rows": "4:6"}, "retain": source},
        "eval": {"source": str(contracts)},
    }
    assert edges_of(build_suite("pistol", Recipe.model_validate(recipe), EvalOptions()))["forget"] == ["B_D"]
    named = build_suite("pistol", Recipe.model_validate(recipe), EvalOptions(forget_split="A_B"))
    assert edges_of(named)["forget"] == ["A_B"]
    other = write(contracts.with_name("sample_data_9.json"), ("X_Y",))
    recipe["data"]["forget"] = {"path": str(other)}
    with pytest.raises(UsageError, match="none of the run's 2 forget rows is a question of"):
        build_suite("pistol", Recipe.model_validate(recipe), EvalOptions())


def test_what_is_not_said(contracts: Path) -> None:
    with pytest.raises(UsageError, match="needs PISTOL's contracts"):
        pistol(SuiteData())
    with pytest.raises(UsageError, match=r"eval\.retain is set"):
        pistol(SuiteData(source=str(contracts), splits={"retain": ()}))
    other = write(contracts.with_name("sample_data_9.json"), ("X_Y", "X_Z"))
    with pytest.raises(UsageError, match=r"which edges of .* is not said"):
        pistol(SuiteData(source=str(other)))


def test_edges_are_resampled_whole(contracts: Path) -> None:
    both = pistol(SuiteData(source=str(contracts), forget_split="A_B,A_C"))
    assert {example.group for example in both.splits[0].examples} == {"A_B", "A_C"}


# Scores by hand


def tables() -> Tables:
    """Two rows of every split, the last token being the end token."""
    ranks = {split: [1, 2, 4] if split == "forget" else [1, 101, 1] for split in SPLITS}
    texts = [
        text_row(split, row, "answer", [-0.5] * 4, moments=True, rank=[*ranks[split], 9])
        for split in SPLITS
        for row in range(2)
    ]
    answers = [answer_row(split, row, rouge=row / 2) for split in SPLITS for row in range(2)]
    return make_tables(texts, answers)


def test_ranks_by_hand() -> None:
    measured = measure(tables())
    scores = measured.scores
    assert scores["forget.mrr"].value == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert scores["forget.thr"].value == 1
    assert scores["retain_linked.mrr"].value == pytest.approx((2 + 1 / 101) / 3)
    assert scores["factual.thr"].value == pytest.approx(2 / 3)
    assert (scores["retain.thr"].n, scores["forget.rougeL_recall"].value) == (8, 0.25)
    assert set(scores) == {f"{split}.{metric}" for split in (*SPLITS, "retain") for metric in METRICS}
    assert not measured.skipped
    for name, score in scores.items():
        assert score.low is not None, name
        assert score.high is not None, name
        assert score.low <= score.value <= score.high, name
        assert find_metric(name) is not None, name
        assert score.direction == rule(name).direction == direction_of(name), name
        assert "pistol" in explain(name).card.where, name
        assert explain(name).card.ideal == rule(name).ideal, name
    assert "retain.mrr" not in measured.rows
    assert measured.rows["forget.rougeL_recall"].values.tolist() == [0, 0.5]


def test_kept_edges_together_are_their_rows(contracts: Path) -> None:
    whole = measure(tables()).scores
    parts = [whole[f"{split}.rougeL_recall"] for split in SPLITS[1:5]]
    assert whole["retain.rougeL_recall"].value == pytest.approx(np.mean([part.value for part in parts]))


def test_the_retrained_model_and_other_profiles() -> None:
    scores = measure(tables(), reference=tables()).scores
    assert all(score.ideal == score.value for score in scores.values())
    linked = make_tables([text_row("retain_linked", 0, "answer", [-1.0] * 2, moments=True)])
    with pytest.raises(MetricError, match="no 'forget' rows"):
        measure(tables(), reference=linked)
    with pytest.raises(UsageError, match="it has: canonical"):
        measure(tables(), profile="openunlearning")
    assert measure(linked).skipped["factual.mrr"] == "no factual_data.json beside the contracts"


# A whole evaluation


@pytest.fixture(scope="module")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return soon_ended(shared, tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def evaluated(model: Plain, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return api.evaluate(
        model.folder,
        suite="pistol",
        source=shared / "data/pistol/sample_data_1.json",
        forget_split="A_B,E1_q1",
        limit=2,
        template="plain",
        token_budget=600,
        out=tmp_path_factory.mktemp("runs") / "mine",
        device="cpu",
    )


def test_every_score_equals_a_direct_unbatched_computation(evaluated: Any, model: Plain, shared: Path) -> None:
    rows = json.loads((shared / "data/pistol/sample_data_1.json").read_text(encoding="utf-8"))
    expected: dict[str, list[list[float]]] = {}
    for split, edge in (("forget", "A_B"), ("retain_linked", "A_C"), ("retain_independent_sales", "E2_F2")):
        for row in [row for row in rows if row["edge"] == edge][:2]:
            logits, ids = model.traced(row["question"], row["answer"])
            rank = 1 + (logits > logits.gather(-1, ids[:, None])).sum(-1)
            said = model.continued(row["question"], 200)
            recall = RougeScorer(["rougeL"], use_stemmer=True).score(row["answer"], said)["rougeL"].recall
            hits = (rank <= 100).double().mean()
            expected.setdefault(split, []).append([float((1 / rank).mean()), float(hits), recall])
    for split, values in expected.items():
        found = [evaluated.scores[f"{split}.{metric}"].value for metric in ("mrr", "thr", "rougeL_recall")]
        assert found == pytest.approx(np.mean(values, axis=0).tolist(), rel=1e-6), split
    assert 0 < evaluated.scores["forget.mrr"].value < 1


def test_it_is_measured_again_and_after_a_purge(evaluated: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(evaluated.path.parents[1], tmp_path / "copy")
    purge(Run.open(copy))
    assert recompute(copy).scores == evaluated.scores


def test_rows_behind_a_score(evaluated: Any) -> None:
    worst, best = (
        pick_samples(evaluated.path, "retain_linked.mrr", number=1, order=order).samples[0]
        for order in ("worst", "best")
    )
    assert worst.value < best.value
    assert worst.id.startswith("A_C:")
    with pytest.raises(UsageError, match="is not a mean over the rows of one split"):
        pick_samples(evaluated.path, "retain.mrr")
