"""The main job on real TOFU rows, shortened: train a target and a retrained model, unlearn, measure against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge import api
from expunge.errors import MetricError, UsageError
from expunge.evals.recompute import recompute
from expunge.models.fingerprint import model_digest
from expunge.runs.run import Run

STEPS = 10
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tofu-tiny recipes with few steps, in a folder of their own."""
    folder = tmp_path_factory.mktemp("tofu-tiny")
    tofu = f"data.tofu={shared / 'data/tofu'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
        small = ("model.from_scratch.hidden_size=64", "model.from_scratch.intermediate_size=128")
        for name in ("target", "retrained"):
            api.train(f"tofu-tiny/{name}", tofu, f"train.max_steps={STEPS}", "model.tokenizer_vocab_size=1024", *small)
        api.unlearn("tofu-tiny/eua", tofu, "train.max_steps=4")
        for name in ("retrained", "target"):
            api.evaluate(f"runs/tofu-tiny/{name}", limit=12)
        api.evaluate("runs/tofu-tiny/eua", reference="runs/tofu-tiny/retrained", limit=12)
    return folder / "runs/tofu-tiny"


def test_target_and_retrained_share_a_vocabulary(runs: Path) -> None:
    target, retrained = (AutoTokenizer.from_pretrained(runs / name / "model") for name in ("target", "retrained"))
    assert target.get_vocab() == retrained.get_vocab()


def test_the_result_loads_with_transformers_alone(runs: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(runs / "eua/model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tokenizer = AutoTokenizer.from_pretrained(runs / "eua/model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**prompt, max_new_tokens=3).shape[1] == prompt["input_ids"].shape[1] + 3


def test_the_manifest_tells_what_made_the_run(runs: Path) -> None:
    manifest = Run.open(runs / "eua").manifest
    target = AutoModelForCausalLM.from_pretrained(runs / "target/model")
    assert manifest.model is not None
    assert manifest.model.digest == model_digest(target)
    assert {item.role: item.rows for item in manifest.data} == {"forget": 160, "retain": 640}
    assert manifest.status == "finished"
    assert manifest.steps == 4
    assert manifest.resolved["method"]["ratio"] == 0.1
    assert manifest.dtype is not None
    assert manifest.dtype.weights == "float32"


def test_every_step_is_an_event(runs: Path) -> None:
    steps = [event for event in Run.open(runs / "eua").events() if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert {"loss", "forget", "retain", "retain_energy", "grad_norm", "lr", "tokens"} <= steps[0].keys()


def test_scores_are_measured_against_the_retrained_model(runs: Path) -> None:
    again = recompute(runs / "eua", reference=runs / "retrained")
    theirs = recompute(runs / "retrained")
    assert 0 <= again.scores["forget_quality"].value <= 1
    assert again.scores["forget.truth_ratio"].ideal == theirs.scores["forget.truth_ratio"].value
    assert again.scores["forget.extraction_strength"].n == 12
    assert "model_utility" in again.skipped
    stored = json.loads(again.metrics_path.read_text())
    assert stored["metrics"]["energy.auroc"]["value"] == again.scores["energy.auroc"].value


def test_forget_quality_needs_the_retrained_run(runs: Path) -> None:
    assert "--reference" in recompute(runs / "target").skipped["forget_quality"]
    with pytest.raises(UsageError, match=r"not a run|no evaluation|no finished"):
        recompute(runs / "target", reference=runs / "nowhere")


def test_a_reference_of_other_rows_is_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    api.evaluate(runs / "retrained/model", out=tmp_path / "other", suite="tofu", limit=6, **_rows(runs))
    with pytest.raises(MetricError):
        recompute(runs / "eua", reference=tmp_path / "other")


def _rows(runs: Path) -> dict[str, Any]:
    return {"tofu": Run.open(runs / "eua").manifest.resolved["data"]["tofu"]}


def test_a_second_evaluation_reuses_the_tables(runs: Path) -> None:
    notes: list[dict[str, Any]] = []
    api.evaluate(runs / "eua", limit=12, progress=notes.append)
    assert any("reusing" in str(event.get("text")) for event in notes)
    assert not any(event["event"] == "phase" for event in notes)
