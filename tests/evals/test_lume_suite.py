"""The LUME suite: what is declared, its scores by hand, and a whole evaluation against the plainest computation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from plain_models import Plain, soon_ended
from rouge_score.rouge_scorer import RougeScorer

from expunge import api
from expunge.cli.main import main
from expunge.errors import MetricError, UsageError
from expunge.evals.recompute import recompute
from expunge.evals.suite import SuiteData, Tables
from expunge.evals.suites.lume import lume, measure, rule
from expunge.metrics.explain import explain
from expunge.metrics.registry import direction_of, find_metric
from expunge.report.samples import pick_samples
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tables import Row, answer_row, make_tables, text_row

SIDES, TASKS = ("forget", "retain"), ("task1", "task2", "task3")
PARTS = [f"{side}_{task}_{kind}" for side in SIDES for task in TASKS for kind in ("sc", "qa")]
BEGINNINGS = {
    "forget": ("One day, a boy named Tim", "The little bird was", "Lily and her mom went to"),
    "retain": ("Once upon a time, there was a", "Ben had a big red", "The sun was"),
}
QUESTIONS = {
    "forget": ("Who had a ball?", "Where did Lily go?", "Who was sad?"),
    "retain": ("What did Ben like?", "Who ran?", "Where was mom?"),
}
TEXTS = {
    "member": ("Once upon a time there was a boy named Tim.", "Lily went to the park with her mom.", "Zyx qwv blorp."),
    "nonmember": ("The cat sat on the mat.", "Invoices of the third quarter are payable at once.", "Ben had a toy."),
}
MMLU = [
    {"question": "Who barks?", "choices": ["A cat", "A dog"], "answer": 1, "subject": "pets"},
    {"question": "What is red?", "choices": ["A ball", "The sea", "Grass"], "answer": 0, "subject": "colours"},
    {"question": "What is blue?", "choices": ["The sky", "Grass", "Snow"], "answer": 0, "subject": "colours"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def published(model: Plain) -> dict[str, list[dict[str, Any]]]:
    """Rows of three tasks, one document of each; some answers are those that the model gives."""
    found: dict[str, list[dict[str, Any]]] = {}
    for side in SIDES:
        rows = []
        for number in range(3):
            beginning, question = BEGINNINGS[side][number], QUESTIONS[side][number]
            said = model.continued(question, 256).strip()
            told = model.continued(beginning, 256).strip()
            names = {"task": f"Task{number + 1}"}
            rows += [
                {"id": f"d{number}sc1", "input": beginning, "output": f"{told} with zyx" if told else "zyx"} | names,
                {"id": f"d{number}qa0", "input": question, "output": said.upper() or "x"} | names,
                {"id": f"d{number}qa1", "input": f"{question} Why?", "output": "Because."} | names,
            ]
        found[side] = rows
    return found


@pytest.fixture(scope="module")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return soon_ended(shared, tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def folder(model: Plain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("lume") / "lume"
    for side, rows in published(model).items():
        write(found / f"{side}.jsonl", rows)
    for name, texts in TEXTS.items():
        write(found / f"mia_data/{name}.jsonl", [{"id": str(n), "document": text} for n, text in enumerate(texts)])
    write(found / "mmlu/test.jsonl", MMLU)
    return found


# Declaration


def test_splits_of_everything(folder: Path) -> None:
    suite = lume(SuiteData(source=str(folder), limit=1))
    names = [split.name for split in suite.splits]
    assert names == [*PARTS, "forget_texts", "holdout", "mmlu_pets", "mmlu_colours"]
    assert {len(split.examples) for split in suite.splits} == {1}
    assert [split.name for split in suite.splits if split.generate] == PARTS
    assert (suite.template, suite.max_new_tokens) == ("harness", 256)
    assert dict(suite.options or {}) == {"rows": "lume", "num_fewshot": "0", "limit": "1"}


def test_real_rows(shared: Path) -> None:
    suite = lume(SuiteData(source=str(shared / "data/lume")))
    assert sum(len(split.examples) for split in suite.splits) == 2734 + 1500
    assert not any(split.name.startswith(("mmlu_", "holdout")) for split in suite.splits)


def test_rows_of_another_origin_are_refused() -> None:
    with pytest.raises(UsageError, match=r"eval\.forget is set"):
        lume(SuiteData(source="x", splits={"forget": ()}))


# Scores by hand


def tables(*, forget: float = 0.25, retain: float = 0.5, known: bool = True, lost: tuple[str, ...] = ()) -> Tables:
    """Three rows of every part; the answers to questions are right where `known`, of one in three on forget."""
    texts: list[Row] = []
    answers: list[Row] = []
    for split in PARTS:
        rouge = forget if split.startswith("forget") else retain
        for row in range(3):
            exact = float(known and (split.startswith("retain") or row == 0))
            texts.append(text_row(split, row, "answer", [-0.5, -1.0], ends=False, group=f"document {row}"))
            scores = [("exact_match", exact)]
            answers.append(answer_row(split, row, rouge=rouge, scores=scores, group=f"document {row}"))
    for split, losses in (("forget_texts", (1, 2, 3)), ("holdout", (2, 4, 5))):
        texts += [text_row(split, row, "answer", [-loss], ends=False, moments=True) for row, loss in enumerate(losses)]
    for subject, right in (("mmlu_one", 0), ("mmlu_two", 1)):
        for row in range(2 - right):
            for option, logp in enumerate((-1.0, -2.0)):
                variant = "answer" if option == right else f"option_{option}"
                texts.append(text_row(subject, row, variant, [logp], ends=False))
    kept = [row for row in texts if row["split"] not in lost]
    return make_tables(kept, [row for row in answers if row["split"] not in lost], exact=True)


def test_the_final_score_by_hand() -> None:
    measured = measure(tables())
    scores = {name: score.value for name, score in measured.scores.items()}
    assert scores["forget_task1_sc.regurgitation"] == 0.25
    assert scores["forget_task2_qa.knowledge"] == pytest.approx(1 / 3)
    tasks = harmonic_mean([0.75, 2 / 3, 0.5, 1.0] * 3)
    assert scores["task_aggregate"] == pytest.approx(tasks)
    assert scores["membership.loss_auc"] == pytest.approx(5 / 6)
    assert scores["membership_score"] == pytest.approx(1 - 2 * abs(5 / 6 - 0.5))
    assert scores["mmlu.accuracy"] == pytest.approx(2 / 3)
    assert scores["lume_score"] == pytest.approx((tasks + 1 / 3 + 2 / 3) / 3)
    assert set(measured.skipped) == {"membership.gradnorm_auc", "membership.reference_auc"}
    for name in ("task_aggregate", "membership_score", "mmlu.accuracy", "lume_score"):
        score = measured.scores[name]
        assert score.direction == "higher"
        assert score.low is not None, name
        assert score.high is not None, name
        assert score.low <= score.value <= score.high, name
    assert measured.scores["membership_score"].ideal == 1
    assert measured.scores["membership.loss_auc"].ideal == 0.5


def test_one_part_at_its_worst_is_nothing_at_all() -> None:
    assert measure(tables(forget=1.0)).scores["task_aggregate"].value == 0
    assert measure(tables(known=False)).scores["task_aggregate"].value == 0


def test_what_is_missing_is_skipped_and_nothing_is_put_in_its_place() -> None:
    found = measure(tables(lost=("forget_task1_sc", "mmlu_one", "mmlu_two", "holdout")))
    assert not {"task_aggregate", "lume_score", "mmlu.accuracy", "membership_score"} & found.scores.keys()
    assert "no forget_task1_sc rows" in found.skipped["task_aggregate"]
    reason = found.skipped["forget_task1_sc.regurgitation"]
    assert reason == "no forget_task1_sc rows in this evaluation (Task1 of forget, ids in sc)"
    assert "no holdout rows" in found.skipped["membership_score"]
    assert "SOURCE/mmlu" in found.skipped["mmlu.accuracy"]
    assert found.skipped["lume_score"] == "needs task_aggregate, membership_score, mmlu.accuracy, not measured here"
    assert found.scores["retain_task3_qa.knowledge"].value == 1


def test_the_retrained_model_is_the_yardstick() -> None:
    found = measure(tables(), reference=tables(forget=0.125)).scores
    assert (found["forget_task1_sc.regurgitation"].value, found["forget_task1_sc.regurgitation"].ideal) == (0.25, 0.125)
    assert found["task_aggregate"].ideal == pytest.approx(harmonic_mean([0.875, 2 / 3, 0.5, 1.0] * 3))
    assert found["membership_score"].ideal == 1
    few = Tables(*(table.filter(pc.less(table["row"], pa.scalar(2, pa.int32()))) for table in tables()))
    with pytest.raises(MetricError, match="measured on other rows"):
        measure(tables(), reference=few)
    with pytest.raises(UsageError, match="no profile 'tofu'"):
        measure(tables(), profile="tofu")


def test_names_are_the_registry_s() -> None:
    for name, score in measure(tables()).scores.items():
        assert find_metric(name) is not None, name
        assert score.direction == rule(name).direction == direction_of(name), name
        assert "lume" in explain(name).card.where, name
        assert explain(name).card.ideal == rule(name).ideal, name


# A whole evaluation


@pytest.fixture(scope="module")
def evaluated(model: Plain, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("runs") / "mine"
    return api.evaluate(model.folder, suite="lume", source=folder, token_budget=600, out=out, device="cpu")


def test_every_score_equals_a_direct_unbatched_computation(evaluated: Any, model: Plain, folder: Path) -> None:
    scores = {name: score.value for name, score in evaluated.scores.items()}
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    parts: list[float] = []
    for side in SIDES:
        rows = [json.loads(line) for line in (folder / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()]
        for task in TASKS:
            told, known, right = [], [], []
            for row in (each for each in rows if each["task"].lower() == task):
                output = model.continued(row["input"], 256)
                if row["id"][:-1].endswith("sc"):
                    told.append(rouge.score(row["output"], output)["rougeL"].recall)
                else:
                    known.append(float(row["output"].strip().lower() == output.strip().lower()))
                    logits, ids = model.traced(row["input"], " " + row["output"])
                    logp = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
                    right.append(float(logp.mean().exp()))
            assert scores[f"{side}_{task}_sc.regurgitation"] == pytest.approx(np.mean(told)), (side, task)
            assert scores[f"{side}_{task}_qa.knowledge"] == pytest.approx(np.mean(known)), (side, task)
            assert scores[f"{side}_{task}_qa.probability"] == pytest.approx(np.mean(right), rel=1e-4), (side, task)
            means = [float(np.mean(values)) for values in (told, known)]
            parts += [1 - mean for mean in means] if side == "forget" else means
    assert scores["task_aggregate"] == pytest.approx(harmonic_mean(parts))
    assert 0 < scores["task_aggregate"] < 1
    member, other = ([model.loss(text) for text in TEXTS[name]] for name in TEXTS)
    auc = float(np.mean([[(one < two) + (one == two) / 2 for two in other] for one in member]))
    assert scores["membership.loss_auc"] == pytest.approx(auc)
    accuracy = float(np.mean([right_letter(model, row) for row in MMLU]))
    assert scores["mmlu.accuracy"] == pytest.approx(accuracy)
    final = (harmonic_mean(parts) + 1 - 2 * abs(auc - 0.5) + accuracy) / 3
    assert scores["lume_score"] == pytest.approx(final)


def right_letter(model: Plain, row: dict[str, Any]) -> bool:
    letters = "ABC"[: len(row["choices"])]
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(letters, row["choices"], strict=True))
    about = f"The following are multiple choice questions (with answers) about {row['subject']}.\n\n"
    prompt = f"{about}{row['question']}\n{options}Answer:"
    sums = []
    for letter in letters:
        logits, ids = model.traced(prompt, f" {letter}")
        sums.append(float(logits.log_softmax(-1).gather(-1, ids[:, None]).sum()))
    return bool(np.argmax(sums) == row["answer"])


def test_it_is_measured_again_and_after_a_purge(
    evaluated: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(evaluated.path.parents[1], tmp_path / "copy")
    purge(Run.open(copy))
    assert recompute(copy).scores == evaluated.scores
    assert main(["metrics", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["lume_score"]["value"] == evaluated.scores["lume_score"].value


def test_rows_behind_a_score(evaluated: Any) -> None:
    run = evaluated.path.parents[1]
    worst = pick_samples(run, "forget_task1_qa.knowledge", number=1).samples[0]
    assert (worst.id, worst.value) == ("d0qa0", 1)
    assert (worst.output.text or "no output").strip().lower() == (worst.answer.text or "no answer").strip().lower()
    assert pick_samples(run, "membership.loss_auc", number=1).samples[0].id.startswith("member:")
