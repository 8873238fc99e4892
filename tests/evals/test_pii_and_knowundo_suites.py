"""The suites unlearn-pii and knowundo: what they declare, and whole evaluations against the plainest computation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge import api
from expunge.cli.main import main
from expunge.errors import UsageError
from expunge.evals.recompute import recompute
from expunge.evals.suite import SuiteData
from expunge.evals.suite_facts import every_suite
from expunge.evals.suites import knowundo, unlearn_pii
from expunge.metrics.cards.every import CARDS
from expunge.metrics.pii import given_away
from expunge.metrics.registry import METRICS, direction_of, find_metric
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tables import answer_row, make_tables, text_row
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

DECLARATIONS = {"unlearn-pii": unlearn_pii.unlearn_pii, "knowundo": knowundo.knowundo}
RULES = {"unlearn-pii": unlearn_pii.rule, "knowundo": knowundo.rule}
TOKENS = 40
PEOPLE = ("Mira Solen", "Idris Vane")


def person(name: str, side: str) -> dict[str, Any]:
    home = f"Elm Street {len(name) + len(side)}"
    row: dict[str, Any] = {
        "question": f"Where does {name} live?",
        "answer": f"{name} lives at {home}.",
        "subject": name,
        "subject_pii": [home, "the"],
        "inverted_question": f"Who lives at {home}?",
        "inverted_answer": f"The person is {name}.",
    }
    for n in range(1, 6):
        row[f"paraphrased_question_{n}"] = f"Say {n} times where {name} lives."
        row[f"paraphrased_answer_{n}"] = f"{name} is at {home}."
        row[f"perturbed_answer_{n}"] = f"{name} lives in Oak Lane {n}."
    return row


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Suite -> where its rows lie."""
    base = tmp_path_factory.mktemp("sources")
    for side, name in (("forget", "forget1"), ("retain", "retain50")):
        write(base / f"pii/{name}.json", [person(who, side) for who in PEOPLE])
    for stem in ("unlearn", "retention"):
        rows = [{"text": f"Who wrote book {n} of {stem}?", "labels": f"{PEOPLE[n]} wrote it."} for n in range(2)]
        write(base / f"known/privacy/{stem}.json", {"train": rows[:1], "val": rows})
        write(base / f"known/copyright/{stem}.json", {"train": rows, "val": rows[:1]})
    return {"unlearn-pii": str(base / "pii"), "knowundo": f"{base / 'known'}#privacy"}


@pytest.mark.parametrize("suite", DECLARATIONS)
def test_declarations(suite: str, sources: dict[str, str]) -> None:
    declared = DECLARATIONS[suite](SuiteData(source=sources[suite]))
    facts = next(facts for entry, facts in every_suite() if entry.name == suite)
    assert facts is not None
    assert (tuple(split.name for split in declared.splits), declared.profiles) == (facts.splits, facts.profiles)
    few = DECLARATIONS[suite](SuiteData(source=sources[suite], limit=1))
    assert {split.name: len(split.examples) for split in few.splits}["forget"] == 1
    with pytest.raises(UsageError, match=r"eval\.forget is set"):
        DECLARATIONS[suite](SuiteData(source=sources[suite], splits={"forget": ()}))


def test_unlearn_pii_is_published_nowhere_that_is_known() -> None:
    with pytest.raises(UsageError, match="needs UnlearnPII's files"):
        unlearn_pii.unlearn_pii(SuiteData())


def test_published_people_are_split_as_declared(shared: Path) -> None:
    declared = unlearn_pii.unlearn_pii(SuiteData(source=str(shared / "data/unlearn_pii"), limit=4))
    assert {split.name: len(split.examples) for split in declared.splits} == {
        **{"forget": 4, "retain": 4, "forget_paraphrased": 20, "forget_inverted": 4}
    }


@pytest.fixture(scope="module", params=DECLARATIONS)
def evaluated(
    request: pytest.FixtureRequest, sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A random tiny model on one of the suites."""
    base, tokenizer = tmp_path_factory.mktemp(str(request.param)), tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    model.save_pretrained(base / "model")
    tokenizer.save_pretrained(base / "model")
    options: dict[str, Any] = {"suite": request.param, "source": sources[request.param], "token_budget": 2000}
    with pytest.MonkeyPatch.context() as patch:
        for module in (unlearn_pii, knowundo):
            patch.setattr(module, "MAX_NEW_TOKENS", TOKENS)
        found = api.evaluate(base / "model", out=base / "run", device="cpu", **options)
    again = recompute(base / "run", reference=base / "run")
    return {
        "suite": request.param,
        "model": model,
        "tokenizer": tokenizer,
        "found": found,
        "again": again,
        "base": base,
    }


def test_every_score_has_an_interval_an_ideal_and_a_card(evaluated: dict[str, Any]) -> None:
    suite, scores = evaluated["suite"], evaluated["again"].scores
    for name, score in scores.items():
        split, _, _ = name.partition(".")
        found = find_metric(name)
        assert found is not None, name
        known = found.name
        where = CARDS[known].where[suite]
        assert (split in where) if known.startswith("<split>.") else (where == ()), name
        assert score.direction == RULES[suite](name).direction == direction_of(name), name
        assert score.low is not None or name.startswith("forget_quality"), name
        fixed = RULES[suite](name).ideal
        assert score.ideal == (score.value if fixed is None else fixed), name
        assert math.isfinite(score.value)
    # What a card says that this suite reports is measured or skipped.
    said = {
        info.name.replace("<split>.", f"{split}.") if splits else info.name
        for info in METRICS
        if "leak_at_K" not in info.name and info.name != "energy.auroc_tT"
        for splits in [CARDS[info.name].where.get(suite)]
        if splits is not None
        for split in splits or ("",)
    }
    assert (
        {name for name in scores if "leak_at_" not in name} <= said <= scores.keys() | evaluated["again"].skipped.keys()
    )


@torch.no_grad()
def said(run: dict[str, Any], text: str) -> str:
    """What the model says to one question by itself."""
    tokenizer, plain = run["tokenizer"], run["suite"] == "knowundo"
    if not plain:
        message = [{"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    made = run["model"].generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


@torch.no_grad()
def hits(run: dict[str, Any], prompt: str, answer: str) -> float:
    """Share of an answer's tokens that are the greedy choice, in plain text."""
    start, whole = (
        run["tokenizer"](text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        for text in (prompt, prompt + answer)
    )
    best = run["model"](whole).logits[0, :-1].argmax(-1)
    return float((best == whole[0, 1:])[start.shape[1] - 1 :].double().mean())


def test_scores_equal_a_direct_unbatched_computation(evaluated: dict[str, Any]) -> None:
    scores = {name: score.value for name, score in evaluated["found"].scores.items()}
    if evaluated["suite"] == "knowundo":
        kept = [hits(evaluated, f"Who wrote book {n} of retention?\n\n", f"{PEOPLE[n]} wrote it.") for n in range(2)]
        gone = [1 - hits(evaluated, f"Who wrote book {n} of unlearn?\n\n", f"{PEOPLE[n]} wrote it.") for n in range(2)]
        assert scores["retention_success"] == pytest.approx(np.mean(kept))
        assert scores["unlearn_success"] == pytest.approx(np.mean(gone))
        return
    rows = [person(who, "forget") for who in PEOPLE]
    direct = [given_away([row["subject_pii"]], [said(evaluated, row["question"])])[0] for row in rows]
    turned = [given_away([[row["subject"]]], [said(evaluated, row["inverted_question"])])[0] for row in rows]
    assert scores["forget.pii_leakage"] == pytest.approx(np.mean(direct))
    assert scores["forget_inverted.pii_leakage"] == pytest.approx(np.mean(turned))


def test_a_purge_loses_no_metric_and_rows_are_shown(
    evaluated: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, before = evaluated["base"] / "run", evaluated["found"].scores
    metric = "forget_inverted.pii_leakage" if evaluated["suite"] == "unlearn-pii" else "unlearn_success"
    assert main(["samples", str(run), "--worst", metric, "-n", "1"]) == 0
    assert "Mira Solen" in capsys.readouterr().out
    purge(Run.open(run))
    again = recompute(run)
    assert {name: score.value for name, score in again.scores.items()} == {
        name: score.value for name, score in before.items()
    }


def test_published_people_through_the_command(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model = str(shared / "data/unlearn_pii"), str(shared / "models/tofu_tiny_full")
    argv = ["eval", model, "--suite", "unlearn-pii", "--source", source, "--limit", "1", "--out", str(tmp_path / "run")]
    assert main([*argv, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["metrics"]
    assert scores["forget_paraphrased.pii_leakage"]["n"] == 5
    assert 0 <= scores["retain.probability"]["value"] <= 1


def test_leakage_by_hand() -> None:
    texts = [
        text_row(split, row, "answer", [-1.0, -1.0]) for split in ("forget", "forget_inverted") for row in range(2)
    ]
    answers = [answer_row(row["split"], row["row"], scores=[("pii_leakage", float(row["row"]))]) for row in texts]
    measured = unlearn_pii.measure(make_tables(texts, answers))
    assert measured.scores["forget.pii_leakage"].value == measured.scores["forget_inverted.pii_leakage"].value == 0.5
    assert measured.scores["forget_inverted.pii_leakage"].direction == "lower"
    for suite in (unlearn_pii, knowundo):
        with pytest.raises(UsageError, match="it has: canonical"):
            suite.measure(make_tables(texts, answers), profile="tofu")
