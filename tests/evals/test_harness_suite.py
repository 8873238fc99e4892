"""The harness suite: the harness's numbers and rows, equal to our own multiple choice on the same rows."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from expunge import api
from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.recompute import Recomputed, recompute
from expunge.evals.suite import SuiteData, Tables
from expunge.evals.suites.harness import QUANTILE, harness, measure
from expunge.report.samples import pick_samples
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.runs.tables import GENERATIONS, HARNESS, TRACE
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

MISSING = importlib.util.find_spec("lm_eval") is None
needs_harness = pytest.mark.skipif(MISSING, reason="lm_eval is not installed (pip install 'expunge[harness]')")

ROWS = [
    {"query": "What falls from clouds?", "choices": ["rain", "wet stones of the sea"], "gold": 0},
    {"query": "What do cows eat?", "choices": ["iron", "grass in the morning", "the sea"], "gold": 1},
    {"query": "Who reads books?", "choices": ["a river", "stones", "people"], "gold": 2},
    {"query": "Where is the moon?", "choices": ["above the river", "in the sea"], "gold": 0},
]
CHOICE = """
task: cows
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{query}}}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
WRITTEN = """
task: said
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
TEXT = """
task: read
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{query}}}}"
metric_list: [{{metric: word_perplexity, higher_is_better: false}}]
"""
GROUP = """
group: animals
task: [cows]
aggregate_metric_list: [{{metric: acc, aggregation: mean, weight_by_size: true}}]
"""


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is read is kept here, and nothing is asked of the Hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        if not MISSING:
            patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cached"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks over local rows, which are ARC's as well."""
    folder = tmp_path_factory.mktemp("tasks")
    file = folder / "arc_easy.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    for name, text in (("cows", CHOICE), ("said", WRITTEN), ("read", TEXT), ("animals", GROUP)):
        (folder / f"{name}.yaml").write_text(text.format(file=file))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer([f"Question: {row['query']} Answer: {row['choices']}" for row in ROWS])
    folder = tmp_path_factory.mktemp("models") / "model"
    tiny_llama(len(tokenizer), max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recomputed:
    if MISSING:
        pytest.skip("lm_eval is not installed (pip install 'expunge[harness]')")
    out = tmp_path_factory.mktemp("runs") / "run"
    tasks = ["animals", "said", "read"]
    return api.evaluate(model, suite="harness", tasks=tasks, tasks_path=folder, out=out, token_budget=512)


@pytest.mark.slow
def test_it_agrees_with_our_own_multiple_choice(run: Recomputed, folder: Path, model: Path, tmp_path: Path) -> None:
    ours = api.evaluate(model, suite="utility", source=folder, out=tmp_path / "ours", token_budget=512)
    assert run.scores["cows.acc"].value == ours.scores["arc_easy.accuracy"].value
    assert run.scores["cows.acc_norm"].value == ours.scores["arc_easy.accuracy_norm"].value
    assert run.scores["cows.acc"].n == len(ROWS)


@pytest.mark.slow
def test_scores_rows_and_groups(run: Recomputed) -> None:
    assert set(run.scores) == {"cows.acc", "cows.acc_norm", "said.exact_match", "read.word_perplexity", "animals.acc"}
    assert run.scores["read.word_perplexity"].direction == "lower"
    assert run.scores["animals.acc"].value == run.scores["cows.acc"].value
    assert run.scores["animals.acc"].n == len(ROWS)
    home = run.path.parents[1]
    worst = pick_samples(home, "cows.acc", number=4).samples
    assert np.mean([row.value for row in worst]) == run.scores["cows.acc"].value
    row = next(row for row in worst if row.row == 1)
    assert (row.question.text, row.answer.text) == ("Question: What do cows eat?\nAnswer:", "grass in the morning")
    assert (row.output.text == "grass in the morning") == (row.value == 1)
    said = pick_samples(home, "said.exact_match", number=4).samples
    assert all(row.output.text is not None for row in said)


@pytest.mark.slow
def test_it_is_measured_again_without_the_harness(run: Recomputed, monkeypatch: pytest.MonkeyPatch) -> None:
    home = run.path.parents[1]
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert recompute(home).scores == run.scores


@pytest.mark.slow
def test_a_chat_template_and_what_a_purge_leaves(folder: Path, model: Path, run: Recomputed, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"suite": "harness", "tasks": ["cows"], "tasks_path": folder, "limit": 2}
    chat = api.evaluate(model, template="auto", out=tmp_path / "run", token_budget=512, **settings)
    assert chat.path.name != run.path.name
    assert chat.scores["cows.acc"].n == 2
    worst = pick_samples(tmp_path / "run", "cows.acc").samples[0]
    assert worst.question.text is not None
    assert worst.question.text.startswith("<|user|>Question: ")
    purge(Run.open(tmp_path / "run"))
    assert recompute(tmp_path / "run").scores == chat.scores
    with pytest.raises(UsageError, match="cannot ask by the template 'tofu/phi'"):
        api.evaluate(model, template="tofu/phi", out=tmp_path / "run", token_budget=512, **settings)


@pytest.mark.slow
def test_tables_are_taken_up_where_nothing_changed(
    folder: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[dict[str, Any]] = []

    def again(limit: int) -> Recomputed:
        events.clear()
        return api.evaluate(
            model,
            suite="harness",
            tasks=["cows"],
            tasks_path=folder,
            limit=limit,
            out=tmp_path / "run",
            progress=events.append,
        )

    if MISSING:
        pytest.skip("lm_eval is not installed (pip install 'expunge[harness]')")
    capfd.readouterr()
    first = again(1)
    assert capfd.readouterr().out == ""
    phases = [event for event in events if event.get("name") == "harness"]
    assert phases[-1]["done"] == phases[-1]["total"] == 2
    assert again(1).scores == first.scores
    assert any("reusing" in event.get("text", "") for event in events)
    assert again(2).scores["cows.acc"].n == 2


@needs_harness
@pytest.mark.slow
def test_tasks_that_nobody_knows(folder: Path) -> None:
    # The harness reads thousands of its own files to say so.
    with pytest.raises(UsageError, match="unknown task of lm-evaluation-harness 'cow'") as caught:
        harness(SuiteData(tasks=("cow",), tasks_path=folder))
    assert caught.value.hint == "did you mean 'cows'?"


@needs_harness
@pytest.mark.slow
def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent is no folder"):
        harness(SuiteData(tasks=("cows",), tasks_path=tmp_path / "absent"))
    (tmp_path / "lost.yaml").write_text(CHOICE.format(file=tmp_path / "lost.jsonl").replace("cows", "lost"))
    with pytest.raises(DataError, match="the harness cannot load lost: "):
        harness(SuiteData(tasks=("lost",), tasks_path=tmp_path))
    (tmp_path / "code.yaml").write_text(
        (folder / "cows.yaml").read_text().replace("cows", "code") + "unsafe_code: true"
    )
    with pytest.raises(UsageError, match="'code' runs code that the model writes"):
        harness(SuiteData(tasks=("code",), tasks_path=tmp_path))


# From tables, without the harness


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="needs the package `lm_eval`") as caught:
        harness(SuiteData(tasks=("arc_easy",)))
    assert caught.value.hint == "pip install 'expunge[harness]'"


def test_without_tasks_and_with_rows_of_a_recipe() -> None:
    with pytest.raises(UsageError, match="no task of lm-evaluation-harness is named"):
        harness(SuiteData())
    with pytest.raises(UsageError, match=r"questions of its own, but eval\.forget is set"):
        harness(SuiteData(tasks=("arc_easy",), splits={"forget": ()}))


def tables(values: list[dict[str, Any]], *, rows: int = 3) -> Tables:
    texts = [
        {
            "split": "t",
            "row": row,
            "variant": "answer",
            "id": f"t:{row}",
            "prompt": "p",
            "target": "a",
            "target_zlib": 9,
        }
        for row in range(rows)
    ]
    return Tables(
        pa.Table.from_pylist(texts, schema=TRACE),
        pa.Table.from_pylist([], schema=GENERATIONS),
        harness=pa.Table.from_pylist(values, schema=HARNESS),
    )


def whole(metric: str, value: float | None, stderr: float | None, n: int = 3) -> dict[str, Any]:
    return {"split": "t", "metric": metric, "value": value, "stderr": stderr, "n": n, "direction": "higher"}


def test_means_come_from_their_rows_and_other_numbers_from_the_harness() -> None:
    rows = [{"split": "t", "metric": "acc", "row": row, "value": value} for row, value in enumerate((1.0, 0.0, 1.0))]
    found = measure(tables([whole("acc", 0.9, 0.9), whole("f1", 0.5, 0.1), whole("bleu", 7.0, None), *rows]))
    acc, f1 = found.scores["t.acc"], found.scores["t.f1"]
    reach = QUANTILE * np.std([1, 0, 1], ddof=1) / 3**0.5
    assert (acc.value, acc.low, acc.high) == pytest.approx((2 / 3, 2 / 3 - reach, 2 / 3 + reach))
    assert (f1.low, f1.high) == pytest.approx((0.5 - QUANTILE * 0.1, 0.5 + QUANTILE * 0.1))
    assert (found.scores["t.bleu"].low, found.scores["t.bleu"].high) == (None, None)
    assert list(found.rows) == ["t.acc"]
    assert found.rows["t.acc"].values.tolist() == [1, 0, 1]


def test_what_is_not_a_number_is_skipped() -> None:
    rows = [{"split": "t", "metric": "acc", "row": row, "value": None} for row in range(3)]
    found = measure(tables([whole("acc", None, None), whole("mcc", None, None), *rows]))
    assert found.skipped == dict.fromkeys(("t.acc", "t.mcc"), "the harness gives no finite number")
    assert not found.scores


def test_the_reference_has_the_same_rows() -> None:
    ours = tables([whole("acc", 0.5, 0.1)])
    assert measure(ours, reference=tables([whole("acc", 0.4, 0.1)])).scores["t.acc"].ideal == 0.4
    with pytest.raises(MetricError, match="measured on other tasks or other rows"):
        measure(ours, reference=tables([whole("acc", 0.4, 0.1)], rows=2))
    with pytest.raises(MetricError, match=r"harness\.parquet is missing"):
        measure(replace(ours, harness=None))
    with pytest.raises(UsageError, match="no profile 'tofu'"):
        measure(ours, profile="tofu")
