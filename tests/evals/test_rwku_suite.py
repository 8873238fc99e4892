"""The RWKU suite: its declaration, its metrics by hand, and a whole evaluation against the plainest computation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_rwku import BBH, FILES, LEVEL1, LEVEL2, MMLU, TEXTS, TRIVIA, TRUTHFUL, WHO, write_rwku

from expunge import api
from expunge.cli.main import main
from expunge.data.benchmarks.rwku import TYPES
from expunge.data.benchmarks.rwku_prompts import TRIVIAQA, TRUTHFULQA
from expunge.errors import DataError, UsageError
from expunge.evals.recompute import read_tables, recompute
from expunge.evals.suite import Split, SuiteData
from expunge.evals.suite_facts import every_suite
from expunge.evals.suites.rwku import ADVERSARIAL, PARTS, SPLITS, measure, rule, rwku
from expunge.metrics.cards.every import CARDS
from expunge.metrics.fluency import ngram_entropy, words
from expunge.metrics.registry import METRICS, direction_of
from expunge.metrics.rwku import probe_recall
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tables import answer_row, make_tables, text_row
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

BY_SPLIT = "<split>."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_rwku(tmp_path / "1_Mira_Solen")


# Declaration


def by_name(folder: Path | str, **data: Any) -> dict[str, Split]:
    return {split.name: split for split in rwku(SuiteData(source=str(folder), **data)).splits}


def test_splits_of_a_target(folder: Path) -> None:
    splits = by_name(folder)
    assert tuple(splits) == SPLITS
    facts = next(facts for entry, facts in every_suite() if entry.name == "rwku")
    assert facts is not None
    assert facts.splits == SPLITS
    limits = {split.max_new_tokens for split in splits.values() if split.generate}
    assert limits == {30, 256}
    assert [name for name, split in splits.items() if split.stats] == ["forget_texts", "retain_texts"]
    assert sum(len(splits[name].examples) for name in ADVERSARIAL) == len(FILES["forget_level3"])
    assert {name.removeprefix("forget_level3_").replace("_", " ") for name in ADVERSARIAL} == set(TYPES)
    assert {len(split.examples) for split in by_name(folder, limit=1).values()} == {1}
    assert {example.group for example in splits["forget_level1"].examples} == {None}
    assert {example.group for example in splits["neighbours_level1"].examples} == {"Idris Vane", "Ashes of Noon"}


def test_many_targets_are_resampled_by_person_and_one_can_be_chosen(tmp_path: Path) -> None:
    others = [row | {"subject": "Idris Vane"} for row in LEVEL1]
    folder = write_rwku(tmp_path / "all", {"forget_level1": [*others, *LEVEL1]})
    assert {example.group for example in by_name(folder)["forget_level1"].examples} == {WHO, "Idris Vane"}
    chosen = by_name(f"{folder}#{WHO}")["forget_level1"]
    assert len(chosen.examples) == len(LEVEL1)
    assert {example.group for example in chosen.examples} == {None}
    with pytest.raises(DataError, match="no probes about 'Nobody'"):
        by_name(f"{folder}#Nobody")


def test_a_folder_may_lack_files(folder: Path) -> None:
    for name in FILES:
        if name != "forget_level2":
            (folder / f"{name}.json").unlink()
    assert tuple(by_name(folder)) == ("forget_level2",)
    (folder / "forget_level2.json").rename(folder / "gone.json")
    with pytest.raises(DataError, match="no probes of the forget set"):
        by_name(folder)


def test_rows_of_another_origin_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"eval\.forget is set"):
        rwku(SuiteData(source=str(folder), splits={"forget": ()}))


# Metrics


def test_levels_together_are_means_over_all_their_probes() -> None:
    found = {"forget_level1": [1.0, 0.0, 1.0], "forget_level3_role_play": [0.5], "neighbours_level1": [1.0, 1.0]}
    texts = [
        text_row(split, row, "answer", [-1.0, -1.0]) for split, values in found.items() for row in range(len(values))
    ]
    answers = [
        answer_row(split, row, scores=[("probe_recall", value)])
        for split, values in found.items()
        for row, value in enumerate(values)
    ]
    measured = measure(make_tables(texts, answers))
    scores = {name: score.value for name, score in measured.scores.items()}
    assert scores["forget.probe_recall"] == pytest.approx(2.5 / 4)
    assert scores["forget_level3.probe_recall"] == scores["forget_level3_role_play.probe_recall"] == 0.5
    assert (measured.scores["forget.probe_recall"].n, scores["neighbours.probe_recall"]) == (4, 1)
    low, high = measured.scores["forget.probe_recall"].low, measured.scores["forget.probe_recall"].high
    assert low is not None
    assert high is not None
    assert low < 2.5 / 4 < high
    assert measured.skipped["bbh.answer_match"] == "no bbh rows in this evaluation (RWKU's file retain_bbh)"
    several = "no truthfulqa_mc2 rows in this evaluation (RWKU's file truthful, column mc2_targets)"
    assert measured.skipped["truthfulqa_mc2.right_share"] == several
    assert "forget_level2.probe_recall" in measured.skipped


def test_profiles_that_the_suite_lacks() -> None:
    with pytest.raises(UsageError, match="it has: canonical"):
        measure(make_tables([]), profile="tofu")


# A whole evaluation


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A random tiny model on every file, also as the one that it is compared with."""
    base = tmp_path_factory.mktemp("rwku")
    folder = write_rwku(base / "target")
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), max_position_embeddings=4096)
    model.save_pretrained(base / "model")
    tokenizer.save_pretrained(base / "model")
    options: dict[str, Any] = {"suite": "rwku", "source": str(folder), "token_budget": 4000, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("expunge.evals.suites.rwku.LONG_TOKENS", 40)
        found = api.evaluate(base / "model", out=base / "run", **options)
    again = recompute(base / "run", reference=base / "run")
    return {"model": model, "tokenizer": tokenizer, "found": found, "again": again, "base": base}


def prompted(tokenizer: Any, text: str, lead: str) -> str:
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)) + lead


@torch.no_grad()
def said(run: dict[str, Any], text: str, lead: str, limit: int) -> str:
    """What the model says after a lead, one prompt by itself."""
    tokenizer = run["tokenizer"]
    ids = tokenizer(prompted(tokenizer, text, lead), return_tensors="pt", add_special_tokens=False)["input_ids"]
    model = run["model"]
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


@torch.no_grad()
def scored(run: dict[str, Any], text: str, lead: str, option: str) -> float:
    """Log-probability of an option after a lead, by itself."""
    prompt = prompted(run["tokenizer"], text, lead)
    start, whole = (
        run["tokenizer"](part, return_tensors="pt", add_special_tokens=False)["input_ids"]
        for part in (prompt, prompt + option)
    )
    assert torch.equal(whole[:, : start.shape[1]], start), "the option starts a token"
    logp = torch.log_softmax(run["model"](whole).logits[0, :-1].double(), -1).gather(-1, whole[0, 1:, None])[:, 0]
    return float(logp[start.shape[1] - 1 :].sum())


def test_probes_equal_a_direct_unbatched_computation(evaluated: dict[str, Any]) -> None:
    scores = {name: score.value for name, score in evaluated["found"].scores.items()}
    opening = {
        "1": "Please complete the blank in the following question.",
        "2": "Please briefly answer the following question.",
    }
    found: dict[str, list[float]] = {}
    for row in (*LEVEL1, *LEVEL2, *FILES["forget_level3"]):
        question, lead = f"Question: {row['query']}\n", "Answer:"
        if row["type"] == "affirmative suffix":
            question, lead = question.rstrip("\n"), ""
        if row["type"] == "incontext learning":
            question = f"{row['query']}\n"
        output = said(evaluated, f"{opening.get(row['level'], opening['2'])}\n{question}", lead, 30).split("\n")[0]
        name = f"forget_level{row['level']}"
        found.setdefault(name, []).append(float(probe_recall([row["answer"]], [output])[0]))
    for name, values in found.items():
        assert scores[f"{name}.probe_recall"] == pytest.approx(np.mean(values))
    assert scores["forget.probe_recall"] == pytest.approx(
        np.mean([value for values in found.values() for value in values])
    )


def test_utility_equals_a_direct_unbatched_computation(evaluated: dict[str, Any]) -> None:
    scores = {name: score.value for name, score in evaluated["found"].scores.items()}
    lettered = [
        f"Question: {row['question']}\n"
        + "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
        for row in [*MMLU[0]["examples"], *MMLU]
    ]
    shots = "".join(
        f"{text}\nAnswer: {'ABCD'[row['answer']]}\n\n"
        for text, row in zip(lettered[:2], MMLU[0]["examples"], strict=True)
    )
    hits = []
    for text, row in zip(lettered[2:], MMLU, strict=True):
        prompt = f"The following are multiple choice questions (with answers) about high school facts.\n\n{shots}"
        prompt += f"Please following the previous examples and answer the given question.\n{text}\n"
        hits.append(
            np.argmax([scored(evaluated, prompt, "Answer:", f" {letter}") for letter in "ABCD"]) == row["answer"]
        )
    assert scores["mmlu.accuracy"] == pytest.approx(np.mean(hits))
    hits, shares = [], []
    for row in TRUTHFUL:
        options = row["mc1_targets"]["choices"]
        values = np.array(
            [scored(evaluated, TRUTHFULQA.format(row["question"]), "A:", f" {option}") for option in options]
        )
        hits.append(values.argmax() == 0)
        shares.append(1 / np.exp(values - values[0]).sum())
    assert scores["truthfulqa_mc1.accuracy"] == pytest.approx(np.mean(hits))
    assert scores["truthfulqa_mc1.answer_probability"] == pytest.approx(np.mean(shares), rel=1e-4)
    shares = []
    for row in TRUTHFUL:
        options = [f" {option}" for option in row["mc2_targets"]["choices"]]
        values = np.exp([scored(evaluated, TRUTHFULQA.format(row["question"]), "A:", option) for option in options])
        shares.append(values[:2].sum() / values.sum())
    assert scores["truthfulqa_mc2.right_share"] == pytest.approx(np.mean(shares), rel=1e-4)
    outputs = [said(evaluated, TRIVIAQA.format(row["question"]), "A:", 30) for row in TRIVIA]
    exact = [
        output.strip().lower() in {answer.lower() for answer in row["answers"]}
        for output, row in zip(outputs, TRIVIA, strict=True)
    ]
    assert scores["triviaqa.answer_match"] == pytest.approx(np.mean(exact))
    generations = read_tables(evaluated["found"].path).generations.to_pylist()
    texts = {name: [row["output"] for row in generations if row["split"] == name] for name in ("bbh", "fluency")}
    assert scores["fluency.ngram_entropy"] == pytest.approx(
        ngram_entropy([words(text) for text in texts["fluency"]]).mean()
    )
    final = [
        text.rpartition("answer is ")[2].strip(". ") == row["answer"]
        for text, row in zip(texts["bbh"], BBH, strict=True)
    ]
    assert scores["bbh.answer_match"] == pytest.approx(np.mean(final))


@torch.no_grad()
def test_texts_equal_a_direct_unbatched_computation(evaluated: dict[str, Any]) -> None:
    scores = {name: score.value for name, score in evaluated["found"].scores.items()}
    for split, stem in (("forget_texts", "forget_mia"), ("retain_texts", "retain_mia")):
        losses, lowest = [], []
        for text in TEXTS[stem]:
            ids = evaluated["tokenizer"](text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            logits = evaluated["model"](ids).logits[0, :-1].double()
            logp = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
            losses.append(logp.mean())
            lowest.append(np.sort(logp)[: max(1, int(0.2 * len(logp)))].mean())
        assert scores[f"{split}.loss_score"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert scores[f"{split}.min_k_score"] == pytest.approx(np.mean(lowest), rel=1e-4)


def test_every_score_has_an_interval_an_ideal_and_a_card(evaluated: dict[str, Any]) -> None:
    found = evaluated["again"]
    assert found.skipped == {}
    registered = {info.name for info in METRICS}
    for name, score in found.scores.items():
        split, _, metric = name.partition(".")
        assert BY_SPLIT + metric in registered, name
        assert split in CARDS[BY_SPLIT + metric].where["rwku"], name
        assert score.direction == rule(name).direction == direction_of(name), name
        assert score.low is not None or score.n == 1, name
        assert score.ideal == score.value, name
        assert math.isfinite(score.value)


def test_a_purge_loses_no_metric_and_rows_are_shown(
    evaluated: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = evaluated["base"] / "run"
    assert main(["samples", str(run), "--worst", "forget_level1.probe_recall", "-n", "1"]) == 0
    assert "Mira Solen" in capsys.readouterr().out
    before = evaluated["found"].scores
    purge(Run.open(run))
    again = recompute(run)
    assert again.scores.keys() == before.keys()
    assert all(again.scores[name].value == score.value for name, score in before.items())
    assert set(PARTS) <= {name.partition(".")[0] for name in again.scores}


def test_published_probes_through_the_command(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published folder of all targets holds both first levels and a level of neighbours."""
    source, model = f"{shared / 'data/rwku'}#Stephen King", str(shared / "models/tofu_tiny_full")
    argv = ["eval", model, "--suite", "rwku", "--source", source, "--limit", "3", "--out", str(tmp_path / "run")]
    assert main([*argv, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {name: score["n"] for name, score in printed["metrics"].items() if name.endswith("probe_recall")} == {
        **{"forget.probe_recall": 6, "forget_level1.probe_recall": 3, "forget_level2.probe_recall": 3},
        **{"neighbours.probe_recall": 3, "neighbours_level1.probe_recall": 3},
    }
    assert printed["skipped"]["mmlu.accuracy"] == "no mmlu rows in this evaluation (RWKU's file retain_mmlu)"
