"""Gradient norms against plain backward passes, recorded values and a published log; the attacks that read them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from expunge import api
from expunge.config.schema import EvalSection, ModelSection, SourceSpec
from expunge.data.example import Example, Turn
from expunge.data.source import load_examples
from expunge.data.template import build_template
from expunge.errors import ModelError, UsageError
from expunge.evals.further import further_passes
from expunge.evals.gradients import gradient_norms, gradient_table, require_differentiable
from expunge.evals.jobs import plan_jobs
from expunge.evals.passes import Subject
from expunge.evals.recompute import recompute
from expunge.evals.suite import Measured, Split, Suite, SuiteData, Tables
from expunge.evals.suites.tofu import items, measure, tofu
from expunge.evals.trace import trace
from expunge.metrics.auc import auc
from expunge.models.adapters import attach
from expunge.models.load import load_model, load_tokenizer
from expunge.runs.tables import GENERATIONS, GRADIENTS
from expunge.testing.tables import make_tables, random_tables, text_row
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

COLUMNS = ("norm", "tensor_norm_1", "tensor_norm_2", "tensor_norm_inf")


def nothing(*args: Any, **kwargs: Any) -> Measured:
    return Measured({}, {})


def suite() -> Suite:
    def rows(split: str) -> tuple[Example, ...]:
        return tuple(
            Example(f"{split}:{row}", row, turns=(Turn("user", f"Who is {row}?"), Turn("assistant", f"{split} {row}")))
            for row in range(3)
        )

    splits = tuple(Split(name, rows(name)) for name in ("forget", "retain", "holdout"))
    return Suite("tofu", splits, nothing)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def norms(model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    template = build_template("auto", tokenizer)
    found: list[dict[str, Any]] = gradient_table(model, suite(), template, pad_id=0, max_length=512).table.to_pylist()
    return found


def test_every_norm_equals_a_plain_backward_pass(tokenizer: Any) -> None:
    model = tiny_llama(len(tokenizer), seed=2)
    found = norms(model, tokenizer)
    assert [(each["split"], each["row"]) for each in found] == [
        (split, row) for split in ("forget", "holdout") for row in range(3)
    ]
    template = build_template("auto", tokenizer)
    for each in found:
        turns = (Turn("user", f"Who is {each['row']}?"), Turn("assistant", f"{each['split']} {each['row']}"))
        prompt = len(template.prompt_ids(turns[:1]))
        encoded = template.encode(Example("x", 0, turns=turns))
        ids = torch.from_numpy(encoded.input_ids).long()[None]
        plain = copy.deepcopy(model)
        logps = plain(ids).logits[0, prompt - 1 : -1].log_softmax(-1).gather(-1, ids[0, prompt:, None])
        (-logps[:-1].mean()).backward()
        gradients = [weight.grad for weight in plain.parameters()]
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        assert each["norm"] == pytest.approx(float(whole.norm()), rel=1e-4)
        for name, order in (("1", 1), ("2", 2), ("inf", float("inf"))):
            mean = np.mean([float(gradient.flatten().norm(order)) for gradient in gradients])
            assert each[f"tensor_norm_{name}"] == pytest.approx(mean, rel=1e-4)


def test_a_model_is_left_as_it_was(tokenizer: Any) -> None:
    model = tiny_llama(len(tokenizer), seed=2)
    expected = norms(model, tokenizer)
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    kept = list(model.parameters())[1]
    kept.grad = torch.ones_like(kept)
    before = [weight.detach().clone() for weight in model.parameters()]
    assert norms(model, tokenizer) == expected, "frozen weights count like others"
    assert [weight.requires_grad for weight in model.parameters()] == [False] + [True] * (len(before) - 1)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert bool((kept.grad == 1).all())
    assert all(weight.grad is None for weight in model.parameters() if weight is not kept)


def test_an_adapted_model_has_the_norms_of_the_merged_one(tokenizer: Any) -> None:
    pytest.importorskip("peft")
    model = tiny_llama(len(tokenizer), seed=2)
    attach(model, ModelSection(use_peft=True, lora_r=2, lora_alpha=4), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.linspace(-0.1, 0.1, weight.numel()).reshape(weight.shape))
    adapted = norms(model, tokenizer)
    for module in model.modules():
        if hasattr(module, "merge"):
            module.merge()
    merged = tiny_llama(len(tokenizer), seed=2)
    state = {name.replace(".base_layer", ""): weight for name, weight in model.state_dict().items()}
    merged.load_state_dict({name: weight for name, weight in state.items() if "lora_" not in name})
    for one, two in zip(adapted, norms(merged, tokenizer), strict=True):
        assert [one[name] for name in COLUMNS] == pytest.approx([two[name] for name in COLUMNS], rel=1e-4)
    assert adapted != norms(tiny_llama(len(tokenizer), seed=2), tokenizer)


def test_an_answer_whose_tokens_are_left_out_has_no_norm(tokenizer: Any) -> None:
    # A raw text of two tokens: the first is never predicted, so without the last nothing is left.
    texts = ("ab", "ab ab")
    split = Split("forget", tuple(Example(f"text:{i}", i, text=text) for i, text in enumerate(texts)))
    short = Suite("tofu", (split,), nothing)
    template = build_template("plain", tokenizer)
    assert len(tokenizer("ab")["input_ids"]) == 2
    found = gradient_table(tiny_llama(len(tokenizer)), short, template, pad_id=0, max_length=512).table.to_pylist()
    assert np.isfinite(found[0]["norm"]), "no end token stands behind a raw text"
    assert all(np.isnan(found[0][name]) for name in COLUMNS[1:])
    assert all(np.isfinite(found[1][name]) for name in COLUMNS)


def test_weights_without_gradients_and_divided_models_are_refused(tokenizer: Any) -> None:
    model = tiny_llama(len(tokenizer))
    model.packed = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match=r"1 weights are stored as whole numbers and have no gradient \(packed\)"):
        require_differentiable(model)
    subject = Subject(suite(), build_template("auto", tokenizer), model, tokenizer, lockstep=True)
    with pytest.raises(UsageError, match="divided among processes"):
        further_passes(EvalSection(gradnorm=True), subject)


def test_recorded_norms(conformance_dir: Path) -> None:
    recorded = json.loads((conformance_dir / "metrics.json").read_text())
    batch, entry = recorded["batch"], recorded["metrics"]["mia_gradnorm"]
    weights = [
        torch.tensor(entry["params"][name], dtype=torch.float64, requires_grad=True) for name in ("emb", "w", "b")
    ]
    emb, w, b = weights
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        logps = (emb[torch.tensor(ids)] @ w + b).log_softmax(-1)
        said = [logps[place - 1, label] for place, label in enumerate(labels) if label != -100]
        if len(said) < 2:
            continue
        found = gradient_norms(torch.autograd.grad(-torch.stack(said[:-1]).mean(), weights))
        expected = [entry["scores"][order][row] for order in ("1", "2", "inf")]
        assert found[1:] == pytest.approx(expected, rel=2e-6)


def test_the_first_rows_of_a_published_log(shared: Path) -> None:
    log = json.loads((shared / "conformance/end_to_end/TOFU_EVAL_full.json").read_text())["mia_gradnorm"]
    folder, name = str(shared / "data/tofu"), str(shared / "models/tofu_tiny_full")

    def rows(file: str, count: int) -> list[Example]:
        return load_examples(SourceSpec(path=f"tofu:{file}"), tofu=folder, role=file).examples[:count]

    def paraphrased(example: Example) -> Example:
        turns = (
            Turn("user", example.extra["paraphrased_question"]),
            Turn("assistant", example.extra["paraphrased_answer"]),
        )
        return Example(example.id, example.row, turns=turns)

    splits = {
        "forget": rows("forget10_perturbed", 4),
        "retain": rows("retain_perturbed", 1),
        "holdout": [paraphrased(example) for example in rows("retain_perturbed", 4)],
    }
    declared = tofu(SuiteData(splits=splits))
    model = load_model(ModelSection(model_name_or_path=name), device=torch.device("cpu")).model
    template = build_template("auto", load_tokenizer(name))
    answers = [Split(each.name, each.examples, stats=each.stats) for each in declared.splits]
    traced = trace(
        model, plan_jobs(Suite("tofu", tuple(answers), nothing), template, max_length=512), pad_id=0, token_budget=512
    )
    gradients = gradient_table(model, declared, template, pad_id=0, max_length=512).table
    found = items(Tables(traced.table, GENERATIONS.empty_table(), gradients=gradients))
    for split in ("forget", "holdout"):
        for row, values in found[f"mia_gradnorm.{split}"].items():
            expected = log[split]["value_by_index"][str(row)]["score"]
            assert values["score"] == pytest.approx(expected, rel=2e-3), (split, row)


# Attacks


def with_gradients(tables: Tables, numbers: dict[str, list[float]]) -> Tables:
    rows = [
        {"split": split, "row": row, "id": f"{split}:{row}", **dict.fromkeys(COLUMNS, value)}
        for split, values in numbers.items()
        for row, value in enumerate(values)
    ]
    return Tables(tables.trace, tables.generations, gradients=pa.Table.from_pylist(rows, schema=GRADIENTS))


def small() -> Tables:
    texts = [
        text_row(split, row, "answer", [-0.1 * (row + 1), -0.2], moments=True)
        for split in ("forget", "retain", "holdout")
        for row in range(4)
    ]
    return make_tables(texts)


def test_a_small_gradient_means_that_a_row_was_seen() -> None:
    forget, holdout = [0.1, 0.2, 3.0, 0.4], [1.0, 0.3, 2.0, 4.0]
    tables = with_gradients(small(), {"forget": forget, "holdout": holdout})
    expected = auc(-np.array(forget), -np.array(holdout))
    found = measure(tables)
    assert found.scores["membership.gradnorm_auc"].value == pytest.approx(expected)
    assert (found.scores["membership.gradnorm_auc"].ideal, found.scores["membership.gradnorm_auc"].n) == (0.5, 8)
    assert found.rows["membership.gradnorm_auc"].split == "forget"
    assert measure(tables, profile="openunlearning").scores["mia_gradnorm"].value == pytest.approx(expected)
    assert "--gradnorm" in measure(small()).skipped["membership.gradnorm_auc"]
    assert "--gradnorm" in measure(small(), profile="openunlearning").skipped["mia_gradnorm"]


def test_an_answer_without_tokens_is_left_out_here_and_scores_zero_there() -> None:
    values = {"forget": [float("nan"), 0.2, 3.0, 0.4], "holdout": [1.0, 0.3, 2.0, 4.0]}
    tables = with_gradients(small(), values)
    found = measure(tables, allow_missing=True).scores["membership.gradnorm_auc"]
    assert (found.n, found.n_total) == (7, 8)
    zero = auc(-np.array([0.0, 0.2, 3.0, 0.4]), -np.array(values["holdout"]))
    assert measure(tables, profile="openunlearning").scores["mia_gradnorm"].value == pytest.approx(zero)


def test_the_reference_attack_compares_losses_row_by_row() -> None:
    tables, retrained = random_tables(rows=12), random_tables(seed=1, rows=12)

    def losses(tables: Tables, split: str) -> np.ndarray:
        mine = [row for row in tables.trace.to_pylist() if row["split"] == split and row["variant"] == "answer"]
        return np.array([-np.mean(row["logp"]) for row in mine])

    scores = {split: losses(retrained, split) - losses(tables, split) for split in ("forget", "holdout")}
    found = measure(tables, reference=retrained)
    score = found.scores["membership.reference_auc"]
    assert score.value == pytest.approx(auc(scores["forget"], scores["holdout"]))
    assert (score.ideal, score.direction, score.n) == (0.5, "match", 24)
    assert measure(retrained, reference=retrained).scores["membership.reference_auc"].value == 0.5
    assert "--reference" in measure(tables).skipped["membership.reference_auc"]


def test_a_reference_without_holdout_rows_is_no_reference_for_the_attack() -> None:
    tables = small()
    kept = [split != "holdout" for split in tables.trace["split"].to_pylist()]
    other = Tables(tables.trace.filter(kept), tables.generations)
    reason = measure(tables, reference=other).skipped["membership.reference_auc"]
    assert reason == "the reference run has no holdout rows"
    assert measure(other, reference=tables).skipped["membership.reference_auc"] == "no holdout rows in this evaluation"


def test_the_command_measures_gradients_where_there_is_something_to_compare(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path / "model")
    model = tiny_llama(len(tokenizer), seed=1)
    model.generation_config.eos_token_id = list(range(60, len(tokenizer)))
    model.save_pretrained(tmp_path / "model")
    rows = {}
    for role in ("forget", "retain", "holdout"):
        rows[role] = str(tmp_path / f"{role}.jsonl")
        lines = [json.dumps({"question": f"{role} {row}?", "answer": f"Vane {role} {row}"}) for row in range(3)]
        Path(rows[role]).write_text("\n".join(lines), encoding="utf-8")
    without = api.evaluate(
        tmp_path / "model",
        recipe={"eval": {"forget": rows["forget"], "retain": rows["retain"], "token_budget": 400}},
        out=tmp_path / "without",
        gradnorm=True,
        device="cpu",
    )
    assert without.skipped["membership.gradnorm_auc"] == "no holdout rows in this evaluation"
    assert not (without.path / "gradients.parquet").exists()
    recipe = {"eval": {**rows, "token_budget": 400, "gradnorm": True}}
    found = api.evaluate(tmp_path / "model", recipe=recipe, out=tmp_path / "with", device="cpu")
    assert (found.path / "gradients.parquet").exists()
    assert json.loads((found.path / "spec.json").read_text())["gradnorm"]["splits"] == ["forget", "holdout"]
    log = recompute(tmp_path / "with", profile="openunlearning").scores
    assert 0 <= log["mia_gradnorm"].value <= 1
    assert found.scores["membership.gradnorm_auc"].n == 6
