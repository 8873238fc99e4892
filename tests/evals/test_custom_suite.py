"""The custom suite: what columns give which metrics, equal to the TOFU suite's, and options by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge import api
from expunge.cli.main import main
from expunge.config.schema import Recipe
from expunge.data.template import build_template
from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.jobs import plan_jobs
from expunge.evals.recompute import recompute
from expunge.evals.run import EvalOptions, build_suite
from expunge.evals.suite import SuiteData
from expunge.evals.suites.custom import custom, measure, rule
from expunge.metrics.explain import explain
from expunge.metrics.registry import direction_of, find_metric
from expunge.report.samples import pick_samples
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tables import answer_row, make_tables, text_row
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

PEOPLE = {
    "forget": ("Mira Solen", "Idris Vane", "Tove Lind"),
    "retain": ("Anan Roy", "Lena Hart"),
    "holdout": ("Olle", "Ines"),
}
QUIZ: list[dict[str, Any]] = [
    {"question": "Who wrote?", "options": ["Mira", "Idris", "Tove"], "answer": 1},
    {"question": "What was born?", "options": ["The author", "The book"], "answer": "A"},
    {"question": "Which prize?", "options": ["Northern", "Southern"], "answer": 1},
]


def about(split: str) -> list[dict[str, Any]]:
    """Two questions per person, with a paraphrase and wrong answers where the model was trained on them."""
    rows = []
    for name in PEOPLE[split]:
        for what in ("wrote the novel", "was born in Tallinn"):
            # Equal prompts would tie, and rounding would break the tie.
            row: dict[str, Any] = {
                "question": f"Who {what}, {name[0]} or {split}?",
                "answer": f"{name} {what}.",
                "group": name,
            }
            if split != "holdout":
                row |= {"paraphrased_answer": f"It was {name}.", "perturbed_answer": ["It was Nobody.", "It was Ben."]}
            rows.append(row)
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, multiple choice and texts."""
    found = tmp_path_factory.mktemp("rows") / "mine"
    for split in PEOPLE:
        write(found / f"{split}.jsonl", about(split))
    write(found / "forget_quiz.jsonl", QUIZ)
    write(found / "quiz.jsonl", [QUIZ[0], QUIZ[2]])
    write(found / "essays.jsonl", [{"text": "Mira Solen wrote a novel."}, {"text": "The book was the first."}])
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "model"
    tokenizer = tiny_tokenizer()
    llama = tiny_llama(len(tokenizer))
    llama.generation_config.eos_token_id = list(range(150, len(tokenizer)))
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("runs") / "mine"
    return api.evaluate(model, suite="custom", source=folder, token_budget=600, out=out)


def test_splits_ask_for_what_their_columns_give(folder: Path) -> None:
    splits = {split.name: split for split in custom(SuiteData(source=str(folder))).splits}
    assert {name: split.variants for name, split in splits.items()} == {
        "essays": ("answer",),
        "forget": ("answer", "paraphrase", "perturbed"),
        "forget_quiz": ("options",),
        "holdout": ("answer",),
        "quiz": ("options",),
        "retain": ("answer", "paraphrase", "perturbed"),
    }
    assert [name for name, split in splits.items() if split.generate] == ["forget", "holdout", "retain"]
    assert [name for name, split in splits.items() if split.stats] == ["forget", "holdout"]
    assert all(len(split.examples) == 1 for split in custom(SuiteData(source=str(folder), limit=1)).splits)


def test_questions_are_measured_as_the_tofu_suite_measures_them(
    evaluated: Any, folder: Path, model: Path, tmp_path: Path
) -> None:
    rows = {split: str(folder / f"{split}.jsonl") for split in PEOPLE}
    tofu = api.evaluate(model, recipe={"eval": rows}, suite="tofu", token_budget=600, out=tmp_path / "tofu")
    shared = {name for name in tofu.scores if name not in ("retain_utility", "model_utility")}
    assert {"forget.truth_ratio", "retain.rougeL_recall", "membership.zlib_auc", "energy.auroc"} <= shared
    for name in sorted(shared):
        ours, theirs = evaluated.scores[name], tofu.scores[name]
        assert (ours.n, ours.direction, ours.ideal) == (theirs.n, theirs.direction, theirs.ideal), name
        numbers = pytest.approx((theirs.value, theirs.low, theirs.high), rel=1e-5)
        assert (ours.value, ours.low, ours.high) == numbers, name


def test_options_and_texts_equal_a_direct_unbatched_computation(evaluated: Any, model: Path) -> None:
    tokenizer, llama = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)

    @torch.no_grad()
    def logp(prompt: str, text: str) -> torch.Tensor:
        first, ids = (tokenizer(part, return_tensors="pt")["input_ids"] for part in (prompt, prompt + text))
        logits = llama(ids).logits[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        found: torch.Tensor = logits[max(0, first.shape[1] - 1) :]
        return found

    shares, right = [], []
    for row in QUIZ:
        options = "".join(f"{letter}. {option}\n" for letter, option in zip("ABC", row["options"], strict=False))
        prompt = f"<|user|>{row['question']}\n{options}Answer:<|end|><|assistant|>"
        sums = torch.stack([logp(prompt, letter).sum() for letter in "ABC"[: len(row["options"])]])
        gold = 0 if row["answer"] == "A" else row["answer"]
        shares.append(float(sums.softmax(0)[gold]))
        right.append(float(sums.argmax() == gold))
    assert evaluated.scores["forget_quiz.answer_probability"].value == pytest.approx(sum(shares) / 3, rel=1e-4)
    assert evaluated.scores["forget_quiz.accuracy"].value == pytest.approx(sum(right) / 3)
    texts = [float(logp("", text).mean().exp()) for text in ("Mira Solen wrote a novel.", "The book was the first.")]
    assert evaluated.scores["essays.probability"].value == pytest.approx(sum(texts) / 2, rel=1e-4)


def test_what_columns_do_not_allow_is_skipped(evaluated: Any) -> None:
    skipped = evaluated.skipped
    assert skipped["holdout.truth_ratio"] == "no perturbed answers in holdout"
    assert skipped["essays.rougeL_recall"] == "no generated answers in essays"
    assert skipped["forget_quality"].startswith("no --reference given")
    assert not any(name.startswith("quiz.") and "accuracy" not in name for name in skipped)
    assert {name for name in evaluated.scores if name.startswith("quiz.")} == {
        "quiz.accuracy",
        "quiz.answer_probability",
        "quiz.confidence",
    }


def test_directions_follow_the_split_s_name(evaluated: Any) -> None:
    scores = evaluated.scores
    assert [scores[f"{split}.probability"].direction for split in ("forget", "retain", "essays", "holdout")] == [
        *("lower", "higher", "higher", "match")
    ]
    assert [scores[f"{split}.accuracy"].direction for split in ("forget_quiz", "quiz")] == ["lower", "higher"]
    for name, score in scores.items():
        assert find_metric(name) is not None, name
        assert score.direction == rule(name).direction == direction_of(name), name
        if name.partition(".")[0] not in ("essays", "quiz", "forget_quiz"):
            assert "custom" in explain(name).card.where, name
            assert explain(name).card.ideal == rule(name).ideal, name
        if score.low is not None and score.high is not None:
            assert score.low <= score.value <= score.high, name


def test_it_is_measured_again_and_after_a_purge(
    evaluated: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(evaluated.path.parents[1], tmp_path / "copy")
    again = recompute(copy, reference=evaluated.path)
    assert again.scores["forget_quality"].value == 1
    assert all(score.ideal is not None for score in again.scores.values())
    purge(Run.open(copy))
    assert recompute(copy).scores == evaluated.scores
    assert main(["samples", str(copy), "--worst", "forget_quiz.accuracy", "-n", "1", "--json"]) == 0
    (sample,) = json.loads(capsys.readouterr().out)["samples"]
    assert sample["id"].startswith("forget_quiz:")


def test_rows_behind_a_score(evaluated: Any) -> None:
    found = pick_samples(evaluated.path, "forget.rougeL_recall", number=6)
    assert {sample.group.text for sample in found.samples} == set(PEOPLE["forget"])
    assert found.samples[0].value >= found.samples[-1].value


def test_a_recipe_names_the_source(folder: Path) -> None:
    recipe = Recipe.model_validate({"eval": {"suite": "custom", "source": str(folder), "limit": 1}})
    assert len(build_suite("custom", recipe, EvalOptions()).splits) == 6
    with pytest.raises(UsageError, match="none are named"):
        custom(SuiteData())
    with pytest.raises(UsageError, match=r"eval\.forget is set"):
        custom(SuiteData(source=str(folder), splits={"forget": ()}))
    with pytest.raises(UsageError, match="no profile 'tofu'"):
        build_suite("custom", recipe, EvalOptions(profile="tofu"))


def test_rows_of_no_token_are_named(tmp_path: Path) -> None:
    rows = [{"text": "Mira Solen"}, {"text": "a"}]
    suite = custom(SuiteData(source=str(write(tmp_path / "mine.jsonl", rows))))
    with pytest.raises(DataError, match=r"1 of 2 custom examples have no answer token \(row 1\)"):
        plan_jobs(suite, build_template("auto", tiny_tokenizer()), max_length=200)


# By hand


def test_texts_have_no_energy_and_letters_no_membership() -> None:
    texts = [
        text_row(split, row, "answer", [-1.0, -2.0], ends=False) for split in ("forget", "retain") for row in (0, 1)
    ]
    options = [
        text_row("holdout", row, variant, [-1.0], ends=False) for row in (0, 1) for variant in ("answer", "option_1")
    ]
    found = measure(make_tables([*texts, *options]))
    assert found.skipped["energy.auroc"] == "forget holds texts, which have no prompt"
    assert found.skipped["membership.loss_auc"].startswith("holdout holds multiple-choice questions")
    assert "guard.over_refusal_rate" not in found.skipped.keys() | found.scores.keys()
    assert found.scores["holdout.accuracy"].value == 1


def test_splits_of_any_name_need_no_forget_rows() -> None:
    tables = make_tables(
        [text_row("trivia_1", row, "answer", [-1.0, -2.0]) for row in (0, 1)],
        [answer_row("trivia_1", row) for row in (0, 1)],
    )
    found = measure(tables, reference=tables)
    assert found.scores["trivia_1.probability"].direction == "higher"
    assert found.scores["trivia_1.probability"].ideal == found.scores["trivia_1.probability"].value
    assert "forget_quality" not in found.skipped
    other = make_tables([text_row("trivia_2", 0, "answer", [-1.0])])
    with pytest.raises(MetricError, match="no 'trivia_1' rows"):
        measure(tables, reference=other)
