"""The MUSE suite: its declaration, its metrics by hand, and a whole evaluation against the plainest computation."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_muse import QUESTIONS, SHOTS, STORIES, TEXTS, pairs, write, write_muse
from rouge_score.rouge_scorer import RougeScorer

from expunge import api
from expunge.cli.main import main
from expunge.config.schema import ModelSection, Recipe
from expunge.data.template import build_template
from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.generate import cut_reference
from expunge.evals.recompute import read_tables, recompute
from expunge.evals.run import EvalOptions, build_suite, suite_template
from expunge.evals.suite import Profile, Scoring, Split, SuiteData, Tables
from expunge.evals.suites.muse import SCORING, measure, muse, rule
from expunge.metrics.leak_names import listed_name
from expunge.metrics.muse import before_stop
from expunge.metrics.registry import METRICS, direction_of
from expunge.models.load import load_model, load_tokenizer
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tables import Row, answer_row, make_tables, text_row
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.points import points_of

PROFILES: tuple[Profile, ...] = ("canonical", "openunlearning")
SPLITS = ("forget", "retain", "forget_verbatim", "forget_texts", "holdout")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_muse(tmp_path / "muse")


# Declaration


def by_name(folder: Path, **data: Any) -> dict[str, Split]:
    return {split.name: split for split in muse(SuiteData(source=str(folder), **data)).splits}


def test_splits_of_the_benchmark(folder: Path) -> None:
    splits = by_name(folder)
    assert tuple(splits) == SPLITS
    assert {len(split.examples) for split in splits.values()} == {3}
    limits = {name: split.max_new_tokens for name, split in splits.items() if split.generate}
    assert limits == {"forget": 32, "retain": 32, "forget_verbatim": 128}
    assert [name for name, split in splits.items() if split.stats] == ["forget_texts", "holdout"]
    assert {len(split.examples) for split in by_name(folder, limit=2).values()} == {2}
    shots = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in SHOTS)
    assert splits["retain"].examples[1].prompt[-1].content == f"{shots}Question: Who ran?\nAnswer: "


def test_each_profile_scores_its_own_way(folder: Path) -> None:
    canonical, other = (by_name(folder, profile=profile) for profile in PROFILES)
    assert [canonical[name].scoring.stem for name in SPLITS[:3]] == [False] * 3
    assert canonical["forget_verbatim"].scoring.reference_tokens == 128
    assert [other[name].scoring.stem for name in SPLITS[:3]] == [True] * 3
    assert other["forget_verbatim"].scoring.reference_tokens is None
    assert canonical["forget"].scoring.stop == other["retain"].scoring.stop != ()


def test_a_folder_may_lack_subsets(folder: Path) -> None:
    (folder / "verbmem").rename(folder / "gone")
    assert tuple(by_name(folder)) == ("forget", "retain", "forget_texts", "holdout")
    (folder / "privleak/holdout.json").unlink()
    with pytest.raises(DataError, match=r"privleak has no holdout\.json"):
        by_name(folder)


def test_what_cannot_be_declared(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"eval\.forget is set"):
        muse(SuiteData(source=str(folder), splits={"forget": ()}))
    with pytest.raises(UsageError, match="no profile 'tofu'"):
        muse(SuiteData(source=str(folder), profile="tofu"))


def test_the_recipe_says_where_it_lies_and_the_option_wins(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"eval": {"suite": "muse", "source": str(folder), "limit": 1}})
    suite = build_suite("muse", recipe, EvalOptions())
    assert [len(split.examples) for split in suite.splits] == [1] * 5
    with pytest.raises(DataError, match="no such file"):
        build_suite("muse", recipe, EvalOptions(source=str(tmp_path / "none")))
    tokenizer = tiny_tokenizer()
    chat = Recipe.model_validate({"data": {"system_prompt": "Be brief."}})
    assert suite_template(suite, chat, tokenizer).name == "plain"
    question = suite.splits[0].examples[0].prompt
    assert tokenizer.decode(suite_template(suite, chat, tokenizer).prompt_ids(question)) == question[-1].content
    assert suite_template(suite, chat, tokenizer, name="auto").name == "auto"


def test_evaluations_while_training_ask_in_its_form(folder: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    settings = {"train": {"eval_every": 1}, "eval": {"suite": "muse", "source": str(folder), "limit": 1}}
    points = points_of(
        Recipe.model_validate(settings),
        tmp_path,
        model=tiny_llama(len(tokenizer), max_position_embeddings=2048),
        tokenizer=tokenizer,
        template=build_template("auto", tokenizer),
        progress=lambda event: None,
    )
    assert points is not None
    assert points.template.name == "plain"


# How answers are scored


def test_answers_end_where_the_next_question_begins() -> None:
    stop = SCORING["canonical"]["knowmem"].stop
    assert before_stop("Paris\n\nQuestion: x", stop) == "Paris"
    assert before_stop("Paris\nQuestion: x", stop) == "Paris"
    assert before_stop("Paris Question: x\n\n", stop) == "Paris "
    assert before_stop("Paris\nis it", stop) == "Paris\nis it"
    assert before_stop("Paris", ()) == "Paris"


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_a_cut_answer_is_a_beginning_without_a_stop(text: str, stop: list[str]) -> None:
    found = before_stop(text, stop)
    assert text.startswith(found)
    assert not any(end in found for end in stop)
    assert before_stop(found, stop) == found
    assert found == text or any(text[len(found) :].startswith(end) for end in stop)


def test_references_are_cut_in_tokens() -> None:
    tokenizer, text = tiny_tokenizer(), "Mira Solen wrote The Silent Harbour"
    cut = cut_reference(f" {text}", Scoring(reference_tokens=3), tokenizer)
    assert text.startswith(cut)
    assert len(tokenizer(cut)["input_ids"]) == 3
    assert cut_reference(text, Scoring(reference_tokens=999), tokenizer) == text
    assert cut_reference(f" {text}", Scoring(), tokenizer) == f" {text}"


# Metrics


def tables(*, members: list[float], holdout: list[float], rouge: float = 0.5) -> Tables:
    """Questions, continuations of three tokens and an end token, and texts of one token with these losses."""
    hit = [True, True, False, True]
    texts: list[Row] = []
    answers: list[Row] = []
    for split in SPLITS[:3]:
        for row in range(3):
            texts.append(text_row(split, row, "answer", [-0.5] * len(hit), hit=hit))
            answers.append(answer_row(split, row, rouge=rouge))
    for split, losses in (("forget_texts", members), ("holdout", holdout)):
        texts += [
            text_row(split, row, "answer", [-loss] * 2, ends=False, moments=True) for row, loss in enumerate(losses)
        ]
    return make_tables(texts, answers, exact=True)


def known(profile: Profile = "canonical") -> dict[str, Any]:
    """Losses of members 1, 2, 3 against 2, 4, 5; of a model that cannot tell them apart."""
    ours = tables(members=[1, 2, 3], holdout=[2, 4, 5])
    theirs = tables(members=[1, 2, 3], holdout=[1, 2, 3], rouge=0.25)
    return measure(ours, reference=theirs, profile=profile).scores


def test_privleak_by_hand() -> None:
    scores = known()
    assert scores["membership.min_k_auc"].value == pytest.approx(5 / 6)
    assert scores["privleak"].value == pytest.approx(-200 / 3)
    assert (scores["privleak"].ideal, scores["privleak"].direction, scores["privleak"].n) == (0, "match", 6)
    assert scores["privleak"].low <= scores["privleak"].value <= scores["privleak"].high
    assert known("openunlearning")["privleak"].value == pytest.approx(-200 / 3)
    same = tables(members=[1, 2, 3], holdout=[2, 4, 5])
    assert measure(same, reference=same).scores["privleak"].value == 0


def test_the_retrained_model_is_the_yardstick() -> None:
    scores = known()
    assert (scores["forget.knowmem"].value, scores["forget.knowmem"].ideal) == (0.5, 0.25)
    assert scores["membership.min_k_auc"].ideal == 0.5
    names = ("forget.knowmem", "retain.knowmem", "forget_verbatim.verbmem")
    assert [scores[name].direction for name in names] == ["lower", "higher", "lower"]


def test_without_a_retrained_model_the_command_is_named() -> None:
    for profile in PROFILES:
        measured = measure(tables(members=[1, 2], holdout=[3, 4]), profile=profile)
        assert "privleak" not in measured.scores
        assert "expunge eval RETRAINED --suite muse" in measured.skipped["privleak"]


def test_a_perfect_attack_on_the_retrained_model_is_an_error() -> None:
    ours = tables(members=[1, 2], holdout=[3, 4])
    with pytest.raises(MetricError, match="AUC 1"):
        measure(ours, reference=ours)


def test_the_last_token_of_a_continuation() -> None:
    found = {profile: measure(tables(members=[1], holdout=[2]), profile=profile).scores for profile in PROFILES}
    canonical, other = found["canonical"], found["openunlearning"]
    assert canonical["forget_verbatim.exact_memorization"].value == pytest.approx(2 / 3)
    assert canonical["forget_verbatim.extraction_strength"].value == 0
    assert (other["exact_memorization"].value, other["extraction_strength"].value) == (1, 1)


def test_what_was_not_evaluated_is_skipped_with_its_subset() -> None:
    texts = [text_row(split, 0, "answer", [-1.0, -1.0]) for split in ("forget", "retain")]
    few = make_tables(texts, [answer_row(split, 0) for split in ("forget", "retain")])
    canonical = measure(few)
    assert {"forget.knowmem", "retain.knowmem", "retain.probability"} <= canonical.scores.keys()
    reason = "no forget_verbatim rows in this evaluation (MUSE's verbmem subset)"
    assert canonical.skipped["forget_verbatim.verbmem"] == reason
    assert "privleak subset" in canonical.skipped["privleak"]
    other = measure(few, profile="openunlearning")
    assert other.skipped["extraction_strength"] == other.skipped["forget_verbmem_ROUGE"] == reason
    assert "privleak subset" in other.skipped["mia_min_k"]
    whole = tables(members=[1, 2], holdout=[3, 4])
    with_reference = measure(whole, reference=questions_alone(whole))
    assert with_reference.skipped["privleak"].startswith("the reference run: no forget_texts rows")


def questions_alone(whole: Tables) -> Tables:
    def kept(table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table["split"], pa.array(["forget", "retain"])))

    return Tables(*map(kept, whole))


def test_names_are_the_registry_s() -> None:
    registered = {info.name.removeprefix("<split>."): info for info in METRICS}
    for name, score in known().items():
        split, _, metric = listed_name(name).partition(".")
        assert (name if split in ("privleak", "membership") else metric) in registered, name
        assert score.direction == rule(name).direction == direction_of(name), name
        assert math.isfinite(score.value)


def test_profiles_that_the_suite_lacks() -> None:
    with pytest.raises(UsageError, match="it has: canonical, openunlearning"):
        measure(tables(members=[1], holdout=[2]), profile="tofu")


# A whole evaluation


def loaded(name: str) -> Any:
    return load_model(ModelSection(model_name_or_path=name), device=torch.device("cpu")).model


@pytest.fixture(scope="module")
def evaluated(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small pretrained model, and the same with noise in its weights as the retrained one, on every subset."""
    base = tmp_path_factory.mktemp("muse")
    folder, name = write_muse(base / "muse"), str(shared / "models/stories260K")
    model, tokenizer = loaded(name), load_tokenizer(name)
    noise = torch.Generator().manual_seed(0)
    other = base / "retrained-model"
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * weight.abs().mean() * torch.randn(weight.shape, generator=noise)
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    options: dict[str, Any] = {"suite": "muse", "source": str(folder), "token_budget": 600, "device": "cpu"}
    reference = api.evaluate(other, out=base / "retrained", **options)
    found = api.evaluate(name, out=base / "mine", reference=base / "retrained", **options)
    return {"name": name, "other": str(other), "found": found, "reference": reference, "base": base, "options": options}


@torch.no_grad()
def continued(model: Any, tokenizer: Any, prompt: str, limit: int) -> str:
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=True)["input_ids"]
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=0
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def f1(reference: str, output: str) -> float:
    return float(RougeScorer(["rougeL"], use_stemmer=False).score(reference, output)["rougeL"].fmeasure)


@torch.no_grad()
def min_k(model: Any, tokenizer: Any, text: str) -> float:
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=True)["input_ids"]
    logp = torch.log_softmax(model(ids).logits[0, :-1].double(), -1).gather(-1, ids[0, 1:, None])[:, 0]
    return float(np.sort(logp.numpy())[: int(0.4 * len(logp))].mean())


def auc(model: Any, tokenizer: Any) -> float:
    members, others = ([min_k(model, tokenizer, text) for text in TEXTS[split]] for split in ("forget", "holdout"))
    return float(np.mean([[(one > two) + (one == two) / 2 for two in others] for one in members]))


@pytest.mark.slow
def test_every_score_equals_a_direct_unbatched_computation(evaluated: dict[str, Any]) -> None:
    scores = {name: score.value for name, score in evaluated["found"].scores.items()}
    tokenizer = load_tokenizer(evaluated["name"])
    model, other = loaded(evaluated["name"]), loaded(evaluated["other"])
    shots = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in SHOTS)
    for side, rows in QUESTIONS.items():
        expected: list[float] = []
        for question, answer in rows:
            output = continued(model, tokenizer, f"{shots}Question: {question}\nAnswer: ", 32)
            for end in ("\n\n", "\nQuestion", "Question:"):
                output = output.split(end)[0]
            expected.append(f1(answer, output))
        assert scores[f"{side}.knowmem"] == pytest.approx(np.mean(expected))
    expected = []
    for prompt, gt in STORIES:
        reference = tokenizer.decode(tokenizer(gt)["input_ids"][:128], skip_special_tokens=True)
        expected.append(f1(reference, continued(model, tokenizer, prompt, 128)))
    assert scores["forget_verbatim.verbmem"] == pytest.approx(np.mean(expected))
    assert 0 < np.mean(expected) < 1
    assert len(tokenizer(STORIES[0][1])["input_ids"]) > 128, "one reference is cut"
    ours, theirs = auc(model, tokenizer), auc(other, tokenizer)
    assert scores["membership.min_k_auc"] == pytest.approx(ours)
    assert scores["privleak"] == pytest.approx(100 * ((1 - ours) - (1 - theirs)) / (1 - theirs))


def test_tables_say_what_was_scored(evaluated: dict[str, Any]) -> None:
    stored = read_tables(evaluated["found"].path)
    rows = stored.generations.to_pylist()
    assert [row["prompt"] for row in rows[:3]] == [question for question, _ in QUESTIONS["forget"]]
    assert not any("Question:" in row["output"] or "\n\n" in row["output"] for row in rows if row["split"] != SPLITS[2])
    spec = json.loads((evaluated["found"].path / "spec.json").read_text())
    assert spec["template"]["name"] == "plain"
    assert spec["splits"]["forget_verbatim"]["max_new_tokens"] == 128
    assert "scoring" not in spec["splits"]["holdout"]


def test_metrics_again_without_the_model(evaluated: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    base, found = evaluated["base"], evaluated["found"]
    assert main(["metrics", str(base / "mine"), "--reference", str(base / "retrained"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["metrics"]
    assert told == {name: score.to_json() for name, score in found.scores.items()}
    with pytest.raises(MetricError, match="scored for the profile 'canonical'"):
        recompute(base / "mine", profile="openunlearning")


def test_the_other_profile_generates_for_itself(evaluated: dict[str, Any], tmp_path: Path) -> None:
    found = api.evaluate(evaluated["name"], out=tmp_path / "run", profile="openunlearning", **evaluated["options"])
    assert {"forget_knowmem_ROUGE", "forget_verbmem_ROUGE", "retain_knowmem_ROUGE", "mia_min_k"} <= found.scores.keys()
    assert found.scores["retain_knowmem_ROUGE"].direction == "higher"
    with pytest.raises(MetricError, match="scored for the profile 'canonical'"):
        recompute(tmp_path / "run", reference=evaluated["base"] / "retrained")


def test_a_second_evaluation_reuses_the_tables(evaluated: dict[str, Any]) -> None:
    notes: list[str] = []
    again = api.evaluate(
        evaluated["other"],
        out=evaluated["base"] / "retrained",
        progress=lambda event: notes.append(str(event.get("text"))),
        **evaluated["options"],
    )
    assert again.scores == evaluated["reference"].scores
    assert any("reusing" in note for note in notes)


def test_a_purged_run_keeps_every_number(evaluated: dict[str, Any], tmp_path: Path) -> None:
    copy = shutil.copytree(evaluated["base"] / "retrained", tmp_path / "copy")
    purge(Run.open(copy))
    assert recompute(copy).scores == evaluated["reference"].scores


def test_a_text_that_does_not_fit_is_named(evaluated: dict[str, Any], tmp_path: Path) -> None:
    folder = write_muse(tmp_path / "muse")
    write(folder / "knowmem/forget_qa_icl.json", pairs(SHOTS * 6))
    with pytest.raises(DataError, match=r"muse rows do not fit into the .* \(forget rows 0, 1, 2"):
        api.evaluate(evaluated["name"], out=tmp_path / "run", **{**evaluated["options"], "source": str(folder)})
