"""Fluency of greedy answers, and what other models make of them, against the plainest computation there is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from foreign_logs import metric, open_log, write
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from expunge import api
from expunge.errors import DataError, MetricError, ModelError, UsageError
from expunge.evals.recompute import recompute, remeasure
from expunge.evals.suites import custom, world
from expunge.evals.suites.tofu import measure
from expunge.metrics.explain import explain
from expunge.metrics.fluency import ngram_entropy, repetition, words
from expunge.report.samples import pick_samples
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tables import answer_row, make_tables, random_tables, text_row
from expunge.testing.tiny import tiny_classifier, tiny_llama, tiny_tokenizer

LABELS = ["noise", "Clean", "word salad"]


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """Rows, and beside them the model that is measured, whose answers have many lengths."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    model = tiny_llama(len(tokenizer), seed=1)
    model.generation_config.eos_token_id = list(range(350, len(tokenizer)))
    model.save_pretrained(tmp_path / "model")
    made = {}
    for role in ("forget", "retain", "holdout"):
        made[role] = str(tmp_path / f"{role}.jsonl")
        lines = [{"question": f"{role} {'of it ' * row}{row}?", "answer": f"Vane {role} {row}"} for row in range(5)]
        Path(made[role]).write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return {"eval": {**made, "token_budget": 400}}


def judge_of_language(path: Path, seed: int = 5, *, begins: bool = False) -> str:
    """Another language model, of another vocabulary; `begins`: with a BOS in front of every text."""
    tokenizer = tiny_tokenizer(vocab_size=300, **({"bos_token": "<|bos|>"} if begins else {}))
    if begins:
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.save_pretrained(path)
    tiny_llama(len(tokenizer), seed=seed).save_pretrained(path)
    return str(path)


def evaluate(tmp_path: Path, recipe: dict[str, Any], **keys: Any) -> Any:
    return api.evaluate(tmp_path / "model", recipe=recipe, out=tmp_path / "run", device="cpu", **keys)


def answers(folder: Path, split: str) -> list[str]:
    """Those of a split, in the order of its rows."""
    rows = [row for row in pq.read_table(folder / "generations.parquet").to_pylist() if row["split"] == split]
    return [row["output"] for row in sorted(rows, key=lambda row: row["row"])]


def rewritten(folder: Path, texts: dict[str, list[str]]) -> None:
    """Stored answers in place of those that the model gave."""
    path = folder / "generations.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        row["output"] = texts[row["split"]][row["row"]]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)


def test_words_of_the_answers_are_measured_without_another_model(tmp_path: Path, recipe: dict[str, Any]) -> None:
    found = evaluate(tmp_path, recipe)
    for split in ("forget", "retain"):
        rows = [words(text) for text in answers(found.path, split)]
        long_enough = [row for row in rows if len(row) >= 4]
        entropy, repeated = found.scores[f"{split}.ngram_entropy"], found.scores[f"{split}.repetition"]
        assert entropy.value == pytest.approx(ngram_entropy(rows).mean())
        assert (entropy.direction, entropy.n) == ("higher", 5)
        assert repeated.value == pytest.approx(repetition(long_enough).mean())
        assert (repeated.direction, repeated.n, repeated.n_total) == ("lower", len(long_enough), 5)
        assert repeated.low is not None
    assert "holdout.ngram_entropy" not in found.scores
    assert "--gibberish" in found.skipped["forget.gibberish"]
    assert "--perplexity-model" in found.skipped["forget.perplexity"]
    worst = pick_samples(tmp_path / "run", "forget.ngram_entropy", number=5).samples
    assert [sample.value for sample in worst] == sorted(sample.value for sample in worst)
    purge(Run.open(tmp_path / "run"))
    assert recompute(tmp_path / "run").scores == found.scores


def test_a_classifier_tells_answers_from_gibberish(tmp_path: Path, recipe: dict[str, Any]) -> None:
    bare = evaluate(tmp_path, recipe)
    before = {path.name: path.read_bytes() for path in bare.path.iterdir()}
    name = tiny_classifier(tmp_path / "judge", LABELS)
    found = evaluate(tmp_path, recipe, gibberish=name)
    after = {path.name: path.read_bytes() for path in found.path.iterdir()}
    assert after.keys() - before.keys() == {"gibberish.parquet"}
    assert all(after[file] == before[file] for file in ("trace.parquet", "generations.parquet"))
    model = AutoModelForSequenceClassification.from_pretrained(name).eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    values: dict[str, list[float]] = {}
    for split in ("forget", "retain"):
        values[split] = []
        for text in answers(found.path, split):
            ids = tokenizer(text)["input_ids"][:32]
            if ids:
                with torch.no_grad():
                    values[split].append(float(model(torch.tensor([ids])).logits.double().softmax(-1)[0, 1]))
        score = found.scores[f"{split}.gibberish"]
        assert score.value == pytest.approx(np.mean(values[split]), abs=1e-5)
        assert (score.direction, score.n, score.n_total) == ("higher", len(values[split]), 5)
    worst = pick_samples(tmp_path / "run", "forget.gibberish", number=1).samples[0]
    assert worst.value == pytest.approx(min(values["forget"]), abs=1e-5)
    log = recompute(tmp_path / "run", profile="openunlearning").scores["forget_Q_A_gibberish"]
    assert (log.value, log.direction) == (found.scores["forget.gibberish"].value, "higher")
    spec = json.loads(after["spec.json"])["gibberish"]
    assert (spec["splits"], spec["model"]["name"]) == (["forget", "retain"], name)
    stamp = (found.path / "gibberish.parquet").stat().st_mtime_ns
    assert evaluate(tmp_path, recipe, gibberish=name).scores == found.scores
    assert evaluate(tmp_path, recipe).scores == found.scores
    assert (found.path / "gibberish.parquet").stat().st_mtime_ns == stamp
    # The same folder with other weights is another classifier.
    tiny_classifier(tmp_path / "judge", LABELS, seed=1)
    again = evaluate(tmp_path, recipe, gibberish=name)
    assert again.scores["forget.gibberish"] != found.scores["forget.gibberish"]
    purge(Run.open(tmp_path / "run"))
    assert recompute(tmp_path / "run").scores == again.scores
    with pytest.raises(DataError, match=r"the text of 10 of 10 answers in .* was purged"):
        evaluate(tmp_path, recipe, gibberish=tiny_classifier(tmp_path / "third", LABELS, seed=2))


@pytest.mark.parametrize("begins", [False, True])
def test_another_model_reads_the_answers_by_themselves(tmp_path: Path, recipe: dict[str, Any], begins: bool) -> None:
    path = evaluate(tmp_path, recipe).path
    texts = {
        "forget": ["Mira Solen wrote it.", "", "no no no no no no", "x", "Vane"],
        "retain": answers(path, "retain"),
    }
    rewritten(path, texts)
    name = judge_of_language(tmp_path / "judge", begins=begins)
    recipe["eval"]["perplexity_model"] = name
    found = evaluate(tmp_path, recipe)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    for split in ("forget", "retain"):
        total, tokens, measured = 0.0, 0, []
        for text in texts[split]:
            ids = tokenizer(text)["input_ids"]
            if len(ids) > 1:
                with torch.no_grad():
                    logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
                one = sum(float(logps[t - 1, ids[t]]) for t in range(1, len(ids)))
                total, tokens = total + one, tokens + len(ids) - 1
                measured.append(math.exp(-one / (len(ids) - 1)))
        if split == "forget":
            assert len(measured) == (4 if begins else 3)
        score = found.scores[f"{split}.perplexity"]
        assert score.value == pytest.approx(math.exp(-total / tokens), rel=1e-4)
        assert (score.direction, score.n, score.n_total) == ("match", len(measured), 5)
        assert score.low is not None
        assert score.low <= score.value <= (score.high or 0)
        rows = remeasure(tmp_path / "run").measured.rows[f"{split}.perplexity"]
        assert rows.values[rows.valid].tolist() == pytest.approx(measured, rel=1e-4)
    spec = json.loads((path / "spec.json").read_text())["perplexity"]
    assert (spec["model"]["name"], spec["cost"]["tokens"] > 0) == (name, True)


def test_a_reference_that_another_model_judged_is_refused_before_the_passes(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    judges = [tiny_classifier(tmp_path / f"judge {seed}", LABELS, seed=seed) for seed in (0, 1)]
    language = [judge_of_language(tmp_path / f"language {seed}", seed=seed) for seed in (5, 6)]
    evaluate(tmp_path, recipe, gibberish=judges[0], perplexity_model=language[0])
    (tmp_path / "run").rename(tmp_path / "retrained")
    keys = {"reference": tmp_path / "retrained"}
    with pytest.raises(MetricError, match=r"judged by another model \(.*judge 0; ours by .*judge 1\)"):
        evaluate(tmp_path, recipe, gibberish=judges[1], **keys)
    with pytest.raises(MetricError, match=r"judged by another model \(.*language 5; ours by .*language 6\)"):
        evaluate(tmp_path, recipe, perplexity_model=language[1], **keys)
    assert not list((tmp_path / "run").rglob("*.parquet"))
    found = evaluate(tmp_path, recipe, gibberish=judges[0], perplexity_model=language[0], **keys).scores
    for name in ("ngram_entropy", "repetition", "gibberish", "perplexity"):
        assert found[f"forget.{name}"].ideal == found[f"forget.{name}"].value


def test_what_cannot_judge_is_refused_before_anything_runs(tmp_path: Path, recipe: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"has no label 'clean' \(it has: noise, mild\)"):
        evaluate(tmp_path, recipe, gibberish=tiny_classifier(tmp_path / "other", ["noise", "mild"]))
    with pytest.raises(ModelError, match="there is no such folder"):
        evaluate(tmp_path, recipe, perplexity_model=tmp_path / "none")
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text(json.dumps({"question": "Who?", "options": ["Mira", "Idris"], "answer": 0}), encoding="utf-8")
    name = tiny_classifier(tmp_path / "judge", LABELS)
    with pytest.raises(UsageError, match=r"eval\.gibberish judges how fluent answers are, which the suite 'custom'"):
        evaluate(tmp_path, {}, suite="custom", source=quiz, template="harness", gibberish=name)
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_short_answers_are_counted_and_old_tables_say_what_is_missing() -> None:
    def tables(*scores: Any) -> Any:
        texts = [text_row("forget", row, "answer", [-1.0, -1.0]) for row in range(3)]
        made = [answer_row("forget", row, scores=each) for row, each in enumerate(scores)]
        return make_tables(texts, made)

    entropy, none = ("ngram_entropy", 0.0), ("repetition", None)
    found = measure(tables([entropy, none], [entropy, ("repetition", 0.5)], [entropy, none]))
    assert (found.scores["forget.repetition"].value, found.scores["forget.repetition"].n) == (0.5, 1)
    assert found.rows["forget.repetition"].valid.tolist() == [False, True, False]
    silent = measure(tables(*[[entropy, none]] * 3))
    assert "no answer has the four words" in silent.skipped["forget.repetition"]
    assert silent.scores["forget.ngram_entropy"].value == 0
    old = measure(tables(None, None, None))
    assert "--overwrite" in old.skipped["forget.ngram_entropy"]
    # A retrained model whose tables are older gives no ideal, and is no error.
    both = measure(random_tables(), reference=random_tables(seed=1))
    assert both.scores["forget.ngram_entropy"].ideal is not None


def test_a_log_of_other_software_keeps_its_judgement(tmp_path: Path) -> None:
    log = open_log() | {"forget_Q_A_gibberish": metric("score", [0.25, 0.5, 1.0, 0.0, 0.5, 0.75])}
    done = api.import_log(write(tmp_path / "log.json", log), origin="openunlearning", out=tmp_path / "log")
    assert "forget_Q_A_gibberish" in done.equal
    assert done.unread == ()
    assert recompute(tmp_path / "log").scores["forget_Q_A_gibberish"].value == pytest.approx(0.5)


def test_splits_of_any_name_and_worlds_are_measured_alike() -> None:
    splits = ("forget", "retain", "holdout", "mine")
    texts = [text_row(split, row, "answer", [-1.0, -2.0], moments=True) for split in splits for row in range(2)]
    tables = make_tables(texts, [answer_row(split, row, rouge=row / 4) for split in splits for row in range(2)])
    found = custom.measure(tables)
    for split in splits:
        assert found.scores[f"{split}.ngram_entropy"].value == 0.5
        assert found.scores[f"{split}.repetition"].value == 0.875
        for ending in ("ngram_entropy", "repetition", "gibberish", "perplexity"):
            assert custom.rule(f"{split}.{ending}").direction == explain(f"<split>.{ending}").direction
    assert {name for name in found.skipped if name.endswith(("gibberish", "perplexity"))} == {
        "forget.gibberish",
        "forget.perplexity",
    }
    for ending in ("ngram_entropy", "repetition", "gibberish", "perplexity"):
        assert world.rule(f"forget.{ending}") == custom.rule(f"forget.{ending}")
