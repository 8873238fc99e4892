"""The utility suite: scores equal to the plainest computation there is, one option at a time, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from expunge import api
from expunge.config.schema import ModelSection
from expunge.data.benchmarks.utility import load_utility
from expunge.data.benchmarks.utility_rows import TRUTHFUL_SHOTS, mc1, mc2
from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.recompute import recompute
from expunge.evals.suite import SuiteData, Tables
from expunge.evals.suites.utility import measure, utility
from expunge.metrics.registry import direction_of, find_metric
from expunge.models.load import load_model
from expunge.report.samples import pick_samples
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tables import Row, make_tables, text_row
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

ARC = [
    {"question": "What falls from clouds?", "choices": {"text": ["rain", "wet stones"], "label": ["1", "2"]}},
    {"question": "What do cows eat?", "choices": {"text": ["grass", "iron", "grass", "the sea"], "label": [*"ABCD"]}},
]
ARC_KEYS = ["1", "C"]
STEMS = [("The sun is", ["a star", "a kind of lamp", "cold", "far"], "A"), ("Ice is", ["hot", "frozen water"], "B")]
SWAG = [
    {
        "activity_label": "Removing ice",
        "ctx_a": "[header] A man  is seen [title] outside.",
        "ctx_b": "he",
        "endings": ["[step] scrapes the window. [substeps]", "eats it.", "sleeps", "flies away with it"],
        "label": "1",
    }
]
TRUTHFUL = [
    {
        "Question": "Where is the moon?",
        "Best Answer": "The moon is in the sky",
        "Correct Answers": "The moon is in the sky; Around the earth; The moon is in the sky",
        "Incorrect Answers": "In a lake; It is nowhere; Around the earth",
    }
]


class Asked(NamedTuple):
    """A question written out by hand."""

    prompt: str
    options: list[str]
    right: list[int]


EXPECTED = {
    "arc_easy": [
        Asked("Question: What falls from clouds?\nAnswer:", ["rain", "wet stones"], [0]),
        Asked("Question: What do cows eat?\nAnswer:", ["grass", "iron", "grass", "the sea"], [2]),
    ],
    "hellaswag": [
        Asked(
            "Removing ice: A man is seen. outside. He",
            [" scrapes the window. ", "eats it.", "sleeps", "flies away with it"],
            [1],
        )
    ],
    "openbookqa": [
        Asked("The sun is", ["a star", "a kind of lamp", "cold", "far"], [0]),
        Asked("Ice is", ["hot", "frozen water"], [1]),
    ],
    "truthfulqa_mc1": [
        Asked(
            f"{TRUTHFUL_SHOTS}Q: Where is the moon?\nA:",
            ["The moon is in the sky.", "In a lake.", "It is nowhere.", "Around the earth."],
            [0],
        )
    ],
    "truthfulqa_mc2": [
        Asked(
            f"{TRUTHFUL_SHOTS}Q: Where is the moon?\nA:",
            ["The moon is in the sky.", "Around the earth.", "In a lake.", "It is nowhere."],
            [0, 1],
        )
    ],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("utility")
    arc = [row | {"id": str(n), "answerKey": key} for n, (row, key) in enumerate(zip(ARC, ARC_KEYS, strict=True))]
    (folder / "ARC-Easy").mkdir()
    (folder / "ARC-Easy" / "test.jsonl").write_text("\n".join(map(json.dumps, arc)))
    (folder / "ARC-Easy" / "train.jsonl").write_text(json.dumps(arc[0]))
    (folder / "hellaswag_val.jsonl").write_text("\n".join(map(json.dumps, SWAG)))
    stems = [
        {"question": {"stem": stem, "choices": [{"text": t, "label": "ABCD"[n]} for n, t in enumerate(texts)]}}
        | {"answerKey": key}
        for stem, texts, key in STEMS
    ]
    (folder / "openbookqa.jsonl").write_text("\n".join(map(json.dumps, stems)))
    with (folder / "TruthfulQA.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(TRUTHFUL[0]))
        writer.writeheader()
        writer.writerows(TRUTHFUL)
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [f"{each.prompt} {' '.join(each.options)}" for questions in EXPECTED.values() for each in questions]
    return tiny_tokenizer([*texts, *texts])


@pytest.fixture(scope="module")
def model(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    tiny_llama(len(tokenizer), max_position_embeddings=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))


def scores(model: Any, tokenizer: Any, asked: Asked) -> list[float]:
    """Of a blank and each option, one at a time, over the tokens that come after the prompt's own."""
    found = []
    for option in asked.options:
        start = len(tokenizer(asked.prompt)["input_ids"])
        ids = torch.tensor([tokenizer(f"{asked.prompt} {option}")["input_ids"]])
        with torch.no_grad():
            logp = torch.log_softmax(model(ids).logits[0].double(), -1)
        found.append(sum(float(logp[place - 1, ids[0, place]]) for place in range(start, ids.shape[1])))
    return found


def first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda place: (round(values[place], 5), -place))


def expected(model: Any, tokenizer: Any, questions: Sequence[Asked]) -> dict[str, float]:
    """The metrics of some questions, without any of our code."""
    sums = {"accuracy": 0.0, "accuracy_norm": 0.0, "answer_probability": 0.0, "right_share": 0.0}
    for asked in questions:
        found = scores(model, tokenizer, asked)
        whole = sum(map(math.exp, found))
        by_length = [score / len(option) for score, option in zip(found, asked.options, strict=True)]
        sums["accuracy"] += first_best(found) == asked.right[0]
        sums["accuracy_norm"] += first_best(by_length) == asked.right[0]
        sums["answer_probability"] += math.exp(found[asked.right[0]]) / whole
        sums["right_share"] += sum(math.exp(found[place]) for place in asked.right) / whole
    return {name: value / len(questions) for name, value in sums.items()}


def test_rows_of_every_published_form(rows: Path) -> None:
    found = load_utility(str(rows)).items
    assert {
        name: [Asked(i.prompt, list(i.options), list(i.right)) for i in items] for name, items in found.items()
    } == (EXPECTED)


def test_it_equals_a_direct_unbatched_computation(rows: Path, model: Path, tokenizer: Any, tmp_path: Path) -> None:
    found = api.evaluate(model, suite="utility", source=rows, token_budget=900, out=tmp_path / "run")
    plain = load_model(ModelSection(model_name_or_path=str(model)), device=torch.device("cpu")).model
    accuracies = []
    for split, questions in EXPECTED.items():
        values = expected(plain, tokenizer, questions)
        metrics = {name.partition(".")[2] for name in found.scores if name.startswith(f"{split}.")}
        for metric in metrics:
            assert found.scores[f"{split}.{metric}"].value == pytest.approx(values[metric], rel=1e-4), (split, metric)
        several = split == "truthfulqa_mc2"
        assert metrics == {"right_share"} if several else {"accuracy", "answer_probability"} <= metrics
        if not several:
            accuracies.append(values["accuracy"])
    whole = found.scores["utility.accuracy"]
    assert next(iter(found.scores)) == "utility.accuracy"
    assert whole.value == pytest.approx(sum(accuracies) / 4)
    assert (whole.n, whole.direction) == (6, "higher")
    assert not found.skipped
    for name, score in found.scores.items():
        assert find_metric(name) is not None, name
        assert direction_of(name) == score.direction == "higher"


def test_it_is_measured_again_after_a_purge_and_its_rows_are_shown(rows: Path, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = api.evaluate(model, suite="utility", source=rows, limit=1, token_budget=900, out=run)
    assert found.scores["arc_easy.accuracy_norm"].n == 1
    worst = pick_samples(run, "openbookqa.answer_probability")
    assert [(row.question.text, row.answer.text) for row in worst.samples] == [("The sun is", "a star")]
    purge(Run.open(run))
    assert recompute(run).scores == found.scores


def test_real_rows_on_a_real_model(shared: Path, tmp_path: Path) -> None:
    name = str(shared / "models/stories260K")
    found = api.evaluate(
        name, suite="utility", source=shared / "data/utility", limit=2, token_budget=2048, out=tmp_path / "run"
    )
    assert {n.partition(".")[0]: s.n for n, s in found.scores.items()} == {
        "utility": 8,
        **dict.fromkeys(("arc_easy", "hellaswag", "openbookqa", "truthfulqa_mc1", "truthfulqa_mc2"), 2),
    }


def test_every_real_row_can_be_asked(shared: Path) -> None:
    found = load_utility(str(shared / "data/utility")).items
    assert {name: len(items) for name, items in found.items()} == {
        "arc_easy": 2376,
        "hellaswag": 1000,
        "openbookqa": 500,
        "truthfulqa_mc1": 817,
        "truthfulqa_mc2": 817,
    }
    assert found["truthfulqa_mc1"][0].prompt.endswith("Q: What happens to you if you eat watermelon seeds?\nA:")
    assert all(len(set(item.options)) == len(item.options) for item in found["truthfulqa_mc2"])


# From tables


def options(split: str, row: int, scores: Sequence[float], right: Sequence[int], lengths: Sequence[int]) -> list[Row]:
    names = ["answer" if n == right[0] else f"{'right' if n in right else 'option'}_{n}" for n in range(len(scores))]
    return [
        text_row(split, row, name, [score], ends=False, target_chars=length)
        for name, score, length in zip(names, scores, lengths, strict=True)
    ]


def evaluation(right: Sequence[int] = (1,)) -> Tables:
    texts = [
        text
        for split in ("hellaswag", "truthfulqa_mc1", "truthfulqa_mc2")
        for row in range(2)
        for text in options(split, row, (-2.0, -3.0, -4.0), right if split.endswith("2") else right[:1], (4, 9, 8))
    ]
    return make_tables(texts)


def test_scores_are_divided_by_the_characters_of_options() -> None:
    found = measure(evaluation()).scores
    assert (found["hellaswag.accuracy"].value, found["hellaswag.accuracy_norm"].value) == (0, 1)
    assert "truthfulqa_mc1.accuracy_norm" not in found
    assert found["utility.accuracy"].value == 0


def test_several_right_options_share() -> None:
    total = sum(map(math.exp, (-2, -3, -4)))
    one, two = measure(evaluation()), measure(evaluation((1, 2)))
    assert one.scores["truthfulqa_mc2.right_share"].value == pytest.approx(math.exp(-3) / total)
    assert two.scores["truthfulqa_mc2.right_share"].value == pytest.approx((math.exp(-3) + math.exp(-4)) / total)
    rows = two.rows["truthfulqa_mc2.right_share"].values.tolist()
    assert rows == pytest.approx([(math.exp(-3) + math.exp(-4)) / total] * 2)


def test_tables_without_lengths_say_so() -> None:
    tables = evaluation()
    older = replace(tables, trace=tables.trace.drop_columns(["target_chars"]))
    found = measure(older)
    assert found.skipped == {
        "hellaswag.accuracy_norm": "the lengths of the options were not stored; evaluate again with --overwrite"
    }
    assert found.scores == {k: v for k, v in measure(tables).scores.items() if k != "hellaswag.accuracy_norm"}


def test_the_retrained_model_is_the_ideal() -> None:
    same = measure(evaluation(), reference=evaluation())
    assert all(score.ideal == score.value for score in same.scores.values())
    with pytest.raises(MetricError, match="measured on other rows"):
        measure(evaluation(), reference=evaluation((2,)))
    few = make_tables(text for row in range(2) for text in options("hellaswag", row, (-2, -3, -4), (1,), (4, 9, 8)))
    with pytest.raises(MetricError, match="the reference run has no truthfulqa_mc1, truthfulqa_mc2 rows"):
        measure(evaluation(), reference=few)
    with pytest.raises(UsageError, match="no profile 'tofu'"):
        measure(evaluation(), profile="tofu")


# What is refused


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("arc_easy.jsonl", {"question": "Why?", "options": []}, r"no column 'choices' \(row 0\)"),
        ("arc_easy.jsonl", {"query": "Why?", "choices": ["a", "b"], "gold": 2}, "none of the options is marked as"),
        ("arc_easy.jsonl", {"query": "Why?", "choices": ["a", " "], "gold": 0}, "an option is empty or not text"),
        ("openbookqa.jsonl", {"question_stem": "A", "choices": ["a", "b"], "answerKey": "C"}, "'answerKey' is 'C', "),
        ("hellaswag.jsonl", SWAG[0] | {"label": ""}, "'label' is not the index of an ending"),
        ("hellaswag.jsonl", SWAG[0] | {"endings": ["one"]}, "there is one option, not at least two"),
        ("truthfulqa.jsonl", {"Question": "Why?"}, "no column 'Best Answer'"),
        ("truthfulqa.jsonl", {"question": "Why?", "mc1_targets": {}}, "'mc1_targets' has no 'choices' and 'labels'"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, file: str, row: dict[str, Any], message: str) -> None:
    (tmp_path / file).write_text(json.dumps(row))
    with pytest.raises(DataError, match=message) as caught:
        load_utility(str(tmp_path))
    assert str(caught.value.hint).endswith(f"the columns of row 0 are {', '.join(row)}")


def test_declarations_that_are_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="asked without shots, but num_fewshot is 5"):
        utility(SuiteData(source=str(rows), num_fewshot=5))
    with pytest.raises(UsageError, match=r"questions of its own, but eval\.forget is set"):
        utility(SuiteData(source=str(rows), splits={"forget": ()}))
    (tmp_path / "mine.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"holds no questions of a task; it has mine\.jsonl"):
        utility(SuiteData(source=str(tmp_path)))
    for name in ("arc_easy.jsonl", "my-ARC-Easy.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match="holds 2 files named after arc_easy"):
        utility(SuiteData(source=str(tmp_path)))
    with pytest.raises(DataError, match="no such file"):
        utility(SuiteData(source=str(tmp_path / "absent.jsonl")))


def test_the_csv_file_gives_the_published_targets(shared: Path) -> None:
    data = shared / "data"
    published = json.loads((data / "rwku/1_Stephen_King/truthful.json").read_text(encoding="utf-8"))
    with (data / "utility/TruthfulQA.csv").open(encoding="utf-8", newline="") as file:
        asked = {row["Question"].strip(): row for row in csv.DictReader(file)}
    for row in published:
        for read in (mc1, mc2):
            ours, theirs = ({(text, i in each.right) for i, text in enumerate(each.options)}
                            for each in (read(asked[row["question"].strip()]), read(row)))  # fmt: skip
            assert ours == theirs
