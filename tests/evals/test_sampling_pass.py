"""Sampled answers against the plainest computation there is, and an evaluation that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from expunge import api
from expunge.config.schema import Recipe, SamplingSection
from expunge.data.example import Example, Turn
from expunge.data.template import build_template
from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.further import sampling_of
from expunge.evals.generate import generation_table
from expunge.evals.recompute import recompute, remeasure
from expunge.evals.sample import require_sampled, sample_table
from expunge.evals.suite import Measured, Split, Suite
from expunge.methods.generate import derived_seed
from expunge.metrics.containment import contains_answer
from expunge.metrics.leak import exact_leak_at_k, leak_at_k
from expunge.metrics.leak_names import HEADLINE, Cell
from expunge.metrics.ragged import Ragged
from expunge.metrics.rouge import rouge
from expunge.metrics.view import view_split
from expunge.models.classify import Entailment, text_classifier
from expunge.models.decode import end_ids
from expunge.report.samples import pick_samples
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tiny import tiny_classifier, tiny_llama, tiny_tokenizer

GRID = SamplingSection(samples=3, temperatures=(1.0, 0.7), top_ps=(1.0, 0.6), max_new_tokens=7)


def nothing(*args: Any, **kwargs: Any) -> Measured:
    return Measured({}, {})


def rows(count: int = 4) -> tuple[Example, ...]:
    return tuple(
        Example(
            f"row:{row}",
            row,
            turns=(
                Turn("user", f"Who wrote book {row}{' of them' * (row % 2)}?"),
                Turn("assistant", "Mira Solen did."),
            ),
            extra={"paraphrased_question": f"Book {row} is by whom?"} if row % 2 else {},
        )
        for row in range(count)
    )


class Passes:
    """A tiny model that is asked a few questions."""

    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer()
        self.model = tiny_llama(len(self.tokenizer), seed=3)
        # Sharper than at random, so that top-p and temperature matter, and some answers end by themselves.
        self.model.get_output_embeddings().weight.data.mul_(20)
        self.template = build_template("auto", self.tokenizer)
        self.ends = frozenset({*end_ids(self.model, self.template), *range(40, 80)})

    def suite(self, count: int = 4) -> Suite:
        return Suite("tofu", (Split("forget", rows(count), generate=True),), nothing, max_new_tokens=7)

    def sampled(self, sampling: SamplingSection, *, count: int = 4, **keys: Any) -> list[dict[str, Any]]:
        made = sample_table(
            self.model,
            self.suite(count),
            sampling,
            self.template,
            self.tokenizer,
            end_ids=self.ends,
            pad_id=0,
            **keys,
        )
        found: list[dict[str, Any]] = made.table.to_pylist()
        return found

    def by_hand(self, example: Example, row: int, cell: Cell, number: int) -> tuple[list[int], float]:
        """One answer, the whole text through the model at each step."""
        ids = self.template.prompt_ids(example.prompt)
        seed = derived_seed(0, "sample", "forget", row, f"{cell.temperature:g}", f"{cell.top_p:g}", number)
        uniforms = np.random.default_rng(seed).integers(1 << 52, size=7) / (1 << 52)
        token: list[int] = []
        logp = 0.0
        for uniform in uniforms:
            with torch.no_grad():
                logits = self.model(torch.tensor([ids + token])).logits[0, -1].double()
            probs = (logits / cell.temperature).softmax(-1).numpy()
            order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
            kept = order[: 1 + int(np.searchsorted(np.cumsum(probs[order]), cell.top_p))]
            cut = np.zeros_like(probs)
            cut[kept] = probs[kept]
            chosen = int(np.searchsorted(np.cumsum(cut), uniform * cut.sum(), side="right"))
            logp += float(logits.log_softmax(-1)[chosen])
            if chosen in self.ends:
                break
            token.append(chosen)
        return token, logp


@pytest.fixture(scope="module")
def passes() -> Passes:
    return Passes()


def test_every_answer_equals_a_direct_computation(passes: Passes) -> None:
    found = passes.sampled(GRID)
    assert len(found) == 4 * 2 * 2 * 3
    for each in found:
        example = rows()[each["row"]]
        token, logp = passes.by_hand(example, each["row"], Cell(each["temperature"], each["top_p"]), each["sample"])
        assert each["token"] == token
        assert each["logp"] == pytest.approx(logp, abs=1e-3)
        assert each["ended"] == (len(token) < 7)
        assert each["output"] == passes.tokenizer.decode(token, skip_special_tokens=True)
        assert each["rougeL_recall"] == rouge(example.answer, each["output"]).rougeL_recall
        assert (each["num_tokens"], each["prompt"], each["entailed"]) == (len(token), example.prompt[0].content, None)
    assert {each["ended"] for each in found} == {True, False}
    assert len({tuple(each["token"]) for each in found}) > 10


def test_neither_batch_nor_limit_nor_other_settings_change_a_draw(passes: Passes) -> None:
    def tokens(found: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[int]]:
        return {tuple(each[key] for key in ("row", "temperature", "top_p", "sample")): each["token"] for each in found}

    whole = tokens(passes.sampled(GRID))
    assert tokens(passes.sampled(GRID, token_budget=20)) == whole
    fewer = tokens(passes.sampled(GRID.model_copy(update={"samples": 2, "temperatures": (0.7,)}), count=3))
    assert len(fewer) == 3 * 2 * 2
    assert {key: whole[key] for key in fewer} == fewer
    assert tokens(passes.sampled(GRID.model_copy(update={"seed": 1}))) != whole


def test_nothing_is_left_to_chance_at_temperature_or_top_p_zero(passes: Passes) -> None:
    settings = {"temperatures": (0.0, 1.0), "top_ps": (0.0, 1.0), "samples": 3, "max_new_tokens": 7}
    found = passes.sampled(SamplingSection.model_validate(settings))
    greedy = generation_table(
        passes.model, passes.suite(), passes.template, passes.tokenizer, end_ids=passes.ends, pad_id=0
    ).table.to_pylist()
    assert len(found) == 4 * 4 * 3
    for each in found:
        if 0 in (each["temperature"], each["top_p"]):
            assert each["token"] == greedy[each["row"]]["token"]


def test_the_paraphrase_is_asked_where_there_is_one(passes: Passes) -> None:
    asked = SamplingSection(samples=1, prompt="paraphrased_question", max_new_tokens=2)
    prompts = {each["row"]: each["prompt"] for each in passes.sampled(asked)}
    assert prompts == {
        0: "Who wrote book 0?",
        1: "Book 1 is by whom?",
        2: "Who wrote book 2?",
        3: "Book 3 is by whom?",
    }


def test_an_answer_comes_as_often_as_the_trace_says(passes: Passes) -> None:
    """The bound that needs no sampling is the expectation of drawing the answer itself."""
    sampling = SamplingSection(samples=600, max_new_tokens=3)
    found = passes.sampled(sampling, count=2, token_budget=20_000)
    compared = 0
    for row in range(2):
        drawn = [(tuple(each["token"]), each["ended"], each["logp"]) for each in found if each["row"] == row]
        for answer in {each for each in drawn if each[1]}:
            p = np.exp(answer[2])
            share = np.mean([each[:2] == answer[:2] for each in drawn])
            # An end token of several may follow, so the answer's own probability is at most that of its words.
            assert share >= p - 4.5 * np.sqrt(p * (1 - p) / 600) - 1e-3
            bound = exact_leak_at_k(Ragged.from_rows([[answer[2]]]), k=1)
            assert bound[0] == pytest.approx(p)
            compared += 1
    assert compared > 10


def test_what_cannot_be_sampled_is_refused(passes: Passes) -> None:
    with pytest.raises(UsageError, match="asks nothing of a split 'forgt'") as caught:
        require_sampled(passes.suite(), SamplingSection(splits=("forgt",)))
    assert caught.value.hint == "eval.sampling.splits can name: forget"
    raw = Suite("tofu", (Split("forget", (Example("text:7", 7, text="A novel."),), generate=True),), nothing)
    with pytest.raises(DataError, match=r"1 rows of forget are raw text without a prompt \(text:7\)"):
        require_sampled(raw, SamplingSection())
    with pytest.raises(UsageError, match="how answers are sampled, but not how many"):
        sampling_of(None, temperatures=(0.5,))
    with pytest.raises(UsageError, match=r"eval\.sampling\.temperatures\.1: .* found -1"):
        sampling_of(None, samples=3, temperatures=(0.5, -1.0))
    with pytest.raises(UsageError, match=r"eval\.sampling\.top_ps\.0: .* found 1\.5"):
        sampling_of(GRID, top_ps=(1.5,))


def test_the_command_changes_what_it_names_and_keeps_the_rest() -> None:
    assert sampling_of(None) is None
    assert sampling_of(GRID) == GRID
    changed = sampling_of(GRID, samples=9)
    assert changed == GRID.model_copy(update={"samples": 9})
    assert sampling_of(None, samples=2, top_ps=(0.5, 1.0)) == SamplingSection(samples=2, top_ps=(0.5, 1.0))


@pytest.mark.parametrize(
    ("answer", "text", "held"),
    [
        ("Mira Solen.", "It was mira  SOLEN, I think", True),
        ("Ann", "Annual report by Hann", False),
        ("in 1987", "1987, in", False),
        ("ﬁne", "a fine day", True),
        ("東京", "それは 東京 です", True),
        ("...", "wait ... what", True),
        ("!", "no", False),
        ("yes", "", False),
    ],
)
def test_an_answer_is_held_word_for_word(answer: str, text: str, held: bool) -> None:
    assert contains_answer(answer, text) is held


# An evaluation


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    model = tiny_llama(len(tokenizer), seed=1)
    model.generation_config.eos_token_id = list(range(60, len(tokenizer)))
    model.save_pretrained(tmp_path / "model")
    made = {}
    for role in ("forget", "retain", "holdout"):
        made[role] = str(tmp_path / f"{role}.jsonl")
        lines = [{"question": f"{role} {row}?", "answer": f"Vane {role} {row}"} for row in range(3)]
        Path(made[role]).write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return {"eval": {**made, "token_budget": 400}}


def evaluate(tmp_path: Path, recipe: dict[str, Any], **keys: Any) -> Any:
    return api.evaluate(tmp_path / "model", recipe=recipe, out=tmp_path / "run", device="cpu", **keys)


def test_samples_stand_beside_the_evaluation_and_are_made_once(tmp_path: Path, recipe: dict[str, Any]) -> None:
    bare = evaluate(tmp_path, recipe)
    assert bare.skipped["forget.leak_at_K"] == "no answers were sampled: `expunge eval RUN --samples N` samples them"
    before = {path.name: path.read_bytes() for path in bare.path.iterdir()}
    assert set(before) == {"spec.json", "trace.parquet", "generations.parquet", "metrics.json"}
    found = evaluate(tmp_path, recipe, samples=4, top_ps=(1.0, 0.5))
    after = {path.name: path.read_bytes() for path in bare.path.iterdir()}
    assert after.keys() - before.keys() == {"samples.parquet"}
    assert all(after[name] == before[name] for name in ("trace.parquet", "generations.parquet"))
    spec = json.loads(after["spec.json"])
    assert {key: value for key, value in spec.items() if key != "sampling"} == json.loads(before["spec.json"])
    assert (spec["sampling"]["samples"], spec["sampling"]["top_ps"]) == (4, [1.0, 0.5])
    names = {
        f"forget.leak_at_{k}{score}{cell}"
        for k in (1, 2, 4)
        for score in ("", "_contains")
        for cell in ("", "_t1_p0.5")
    }
    assert found.scores.keys() - bare.scores.keys() == names | {f"forget.leak_at_{k}_exact" for k in (1, 2, 4)}
    assert "forget.leak_at_K" not in found.skipped
    stamp = (bare.path / "samples.parquet").stat().st_mtime_ns
    # Nothing more is asked for, or the same again: what is there is kept and reported.
    assert evaluate(tmp_path, recipe).scores == found.scores
    assert evaluate(tmp_path, recipe, samples=4, top_ps=(1.0, 0.5)).scores == found.scores
    assert (bare.path / "samples.parquet").stat().st_mtime_ns == stamp
    fewer = evaluate(tmp_path, recipe, samples=2)
    assert {name for name in fewer.scores if "leak" in name} == {
        f"forget.leak_at_{k}{score}" for k in (1, 2) for score in ("", "_contains", "_exact")
    } | {"forget.leak_at_128_exact"}
    assert not (evaluate(tmp_path, recipe, overwrite=True).path / "samples.parquet").exists()


def test_an_interrupted_pass_leaves_the_rest(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **keys: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("expunge.evals.further.sample_table", broken)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path, recipe, samples=2)
    folder = next((tmp_path / "run/evals").iterdir())
    stamp = (folder / "trace.parquet").stat().st_mtime_ns
    assert "forget.leak_at_2" in evaluate(tmp_path, recipe, samples=2).scores
    assert (folder / "trace.parquet").stat().st_mtime_ns == stamp


def test_values_rows_and_answers_behind_a_leak_also_after_a_purge(tmp_path: Path, recipe: dict[str, Any]) -> None:
    recipe["eval"]["sampling"] = {"samples": 4, "temperatures": [1.0, 0.5], "splits": ["forget", "retain"]}
    found = evaluate(tmp_path, recipe)
    tables = remeasure(tmp_path / "run").tables
    view = view_split(tables.trace, tables.generations, "retain", samples=tables.samples)
    assert view.cells == [Cell(0.5, 1.0), HEADLINE]
    for k in (1, 2, 4):
        for name, cell in (("", HEADLINE), ("_t0.5_p1", Cell(0.5, 1.0))):
            values = leak_at_k(view.sampled("rougeL_recall", cell), k=k)
            assert found.scores[f"retain.leak_at_{k}{name}"].value == pytest.approx(values.mean())
            assert found.scores[f"retain.leak_at_{k}{name}"].direction == "higher"
    drawn = pq.read_table(found.path / "samples.parquet").to_pylist()
    for sample in pick_samples(tmp_path / "run", "forget.leak_at_2_t0.5_p1").samples:
        mine = [each for each in drawn if each["row"] == sample.row and each["split"] == "forget"]
        best = max((each for each in mine if each["temperature"] == 0.5), key=lambda each: each["rougeL_recall"])
        assert sample.output.text == best["output"]
    purge(Run.open(tmp_path / "run"))
    left = pq.read_table(found.path / "samples.parquet")
    assert all(left[name].null_count == left.num_rows for name in ("prompt", "output", "token"))
    assert recompute(tmp_path / "run").scores == found.scores


def test_a_reference_that_was_asked_otherwise_is_refused_before_the_passes(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    evaluate(tmp_path, recipe, samples=2)
    (tmp_path / "run").rename(tmp_path / "retrained")
    recipe["eval"]["sampling"] = {"samples": 3, "max_new_tokens": 9}
    with pytest.raises(MetricError, match=r"another eval\.sampling\.max_new_tokens \(None; ours is 9\)"):
        evaluate(tmp_path, recipe, reference=tmp_path / "retrained")
    assert not list((tmp_path / "run").rglob("*.parquet"))
    recipe["eval"]["sampling"] = {"samples": 3, "seed": 5}
    found = evaluate(tmp_path, recipe, reference=tmp_path / "retrained").scores
    assert found["forget.leak_at_2"].ideal is not None


def test_a_classifier_judges_what_the_answers_say(tmp_path: Path, recipe: dict[str, Any]) -> None:
    name = tiny_classifier(tmp_path / "nli", ["neutral", "entailment"])
    recipe["eval"]["sampling"] = {"samples": 8, "entailment": name, "max_new_tokens": 12}
    found = evaluate(tmp_path, recipe)
    drawn = pq.read_table(found.path / "samples.parquet").to_pylist()
    judge = Entailment.of(text_classifier(name, device=torch.device("cpu")))
    truths = [f"Vane forget {each['row']}" for each in drawn]
    expected = judge.judge([each["output"] for each in drawn], truths, [each["rougeL_recall"] for each in drawn])
    assert [each["entailed"] for each in drawn] == expected
    assert found.scores["forget.leak_at_1_entailed"].value == pytest.approx(np.mean(expected))
    kept = json.loads((found.path / "spec.json").read_text())["sampling"]["entailment"]
    assert kept == judge.classifier.identity
    stamp = (found.path / "samples.parquet").stat().st_mtime_ns
    assert evaluate(tmp_path, recipe).scores == found.scores
    assert (found.path / "samples.parquet").stat().st_mtime_ns == stamp
    # The same folder with other weights is another classifier.
    tiny_classifier(tmp_path / "nli", ["neutral", "entailment"], seed=1)
    evaluate(tmp_path, recipe)
    assert (found.path / "samples.parquet").stat().st_mtime_ns != stamp


def test_settings_are_part_of_a_recipe() -> None:
    recipe = Recipe.model_validate({"eval": {"sampling": {"samples": 8, "splits": "retain"}, "gradnorm": True}})
    assert recipe.eval.sampling is not None
    assert recipe.eval.sampling.splits == ("retain",)
    assert Recipe().eval.sampling is None
    assert SamplingSection.model_validate({"temperatures": 0.5, "top_ps": 1}).temperatures == (0.5,)
