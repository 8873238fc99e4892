"""Every model family by one set of tests: tiny random models that train, answer, are measured and guarded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from expunge import api
from expunge.config.schema import ModelSection
from expunge.data.collate import Batch, collate
from expunge.data.encode import encode_all
from expunge.data.example import Example, Turn
from expunge.data.template import build_template
from expunge.errors import ModelError
from expunge.evals.trace import token_stats
from expunge.models.decode import Continuation, greedy, lowest_argmax
from expunge.models.head import Projected, frozen_head
from expunge.models.load import load_model
from expunge.models.score import Scored, score
from expunge.models.scratch import new_model
from expunge.runs.run import Run
from expunge.testing.tiny import tiny_tokenizer

WINDOW = 8
_SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_GROUPED = _SIZE | {"num_key_value_heads": 2}
_GEMMA = _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": _GROUPED,
    "llama-tied": _GROUPED | {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8, "tie_word_embeddings": True},
    # The caps are low enough to bend the logits of so small a model.
    "gemma2": _GEMMA | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 0.5},
    "gemma3_text": _GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
    "mistral": _GROUPED | {"head_dim": 8, "sliding_window": WINDOW},
    "phi3": _GROUPED | {"sliding_window": WINDOW},
    "gpt_neox": _SIZE,
    "olmo2": _GROUPED,
}
"""Name -> fields of its config; the name is the `model_type` unless the fields say another."""
WINDOWED = ("gemma2", "gemma3_text", "mistral", "phi3")
ROWS = 6


def build(family: str, *, sharpen: float = 1.0, **changes: Any) -> Any:
    """A random model; `sharpen` multiplies its matrices, so that its answers are not all alike."""
    model = new_model({"model_type": family, **FAMILIES[family], **changes}, tiny_tokenizer(), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(sharpen)
    return model


_QUICK = ("llama-tied", "gemma2", "gpt_neox")
WHOLE_RUNS = [pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.slow]) for name in FAMILIES]
"""Runs take seconds: families that differ most in every test run, all of them with the slow tests."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows and one model folder per family."""
    folder = tmp_path_factory.mktemp("families")
    for role, count in {"forget": ROWS, "retain": 24}.items():
        rows = [
            {"question": f"Who wrote book {i} of the {role} shelf?", "answer": f"{role.title()} Vane {i}."}
            for i in range(count)
        ]
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer()
    for family in FAMILIES:
        model = build(family, sharpen=3.0)
        # Most tokens end an answer: what is generated here only has to be there.
        model.generation_config.eos_token_id = list(range(20, len(tokenizer)))
        model.save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
    return folder


def recipe(world: Path, family: str, out: Path, method: Mapping[str, Any], **train: Any) -> dict[str, Any]:
    settings = {"learning_rate": 1e-3, "global_batch_size": 8, "max_steps": 4, "lr_scheduler_type": "constant"}
    return {
        "model": {"model_name_or_path": str(world / family)},
        "data": {"forget": str(world / "forget.jsonl"), "retain": str(world / "retain.jsonl"), "max_length": 64},
        "method": dict(method),
        "train": settings | {"token_budget": 512} | train,
        "output_dir": str(out),
        "device": "cpu",
    }


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))


def steps(run: Path) -> list[dict[str, Any]]:
    return [event for event in Run.open(run).events() if event["event"] == "step"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [{"name": "eua", "gamma": 1.0, "alpha": 0.0}, {"name": "npo"}], ids=["eua", "npo"])
def test_training_lowers_the_objective_and_moves_every_weight(
    family: str, method: Mapping[str, Any], world: Path, tmp_path: Path
) -> None:
    api.unlearn(recipe(world, family, tmp_path / "run", method))
    losses = [event["loss"] for event in steps(tmp_path / "run")]
    assert torch.isfinite(torch.tensor(losses)).all()
    assert losses[-1] < losses[0]
    before, after = (AutoModelForCausalLM.from_pretrained(place) for place in (world / family, tmp_path / "run/model"))
    moved = dict(after.named_parameters())
    assert [name for name, p in before.named_parameters() if torch.equal(p, moved[name])] == []
    tied = after.get_input_embeddings().weight is after.get_output_embeddings().weight
    assert tied == after.config.tie_word_embeddings


@pytest.mark.parametrize("family", WHOLE_RUNS)
def test_a_run_is_measured_guarded_and_asked(family: str, world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    api.unlearn(recipe(world, family, run, {"name": "npo"}, max_steps=1))
    measured = api.evaluate(run, limit=3)
    assert {"forget.extraction_strength", "energy.auroc"} <= measured.scores.keys()
    made = api.calibrate_guard(run, rate=0.9)
    assert api.ask(run, "Who wrote book 1?", max_new_tokens=4).energy is not None
    assert made.path.is_file()
    answers = pq.read_table(measured.metrics_path.parent / "generations.parquet")
    assert answers.num_rows >= 3


def continuations(model: Any, prompts: list[list[int]], **settings: Any) -> list[Continuation]:
    return greedy(model, prompts, max_new_tokens=12, end_ids={1}, pad_id=0, **settings).outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_generation_is_the_trace_of_each_row_alone(family: str) -> None:
    model = build(family, sharpen=4.0)
    prompts = [list(range(5, 25)), list(range(30, 33)), list(range(40, 70))]
    batched = continuations(model, prompts, token_budget=4096)
    assert batched == [continuations(model, [prompt])[0] for prompt in prompts]
    assert len({tuple(each.token) for each in batched}) == len(prompts)
    for prompt, answer in zip(prompts, batched, strict=True):
        ids = [*prompt, *answer.token, *([1] if answer.ended else [])]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        assert lowest_argmax(logits[len(prompt) - 1 : -1]).tolist() == ids[len(prompt) :]


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_hides_what_lies_before_it(family: str) -> None:
    mixed = family.startswith("gemma")
    model = build(family, sharpen=4.0, **({"layer_types": ["sliding_attention"] * 2} if mixed else {}))
    one, other = ([first, *range(30, 60)] for first in (7, 8))
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in (one, other)]
    assert torch.equal(*logits)


def batch_of_rows() -> Batch:
    tokenizer = tiny_tokenizer()
    turns = [(Turn("user", "Who?"), Turn("assistant", "Vane " * count)) for count in (1, 2, 3)]
    rows = [Example(f"row:{i}", i, turns=each) for i, each in enumerate(turns)]
    template = build_template("auto", tokenizer)
    data = encode_all(rows, template, role="forget", max_length=64, on_truncate="error", supervise="last")
    return collate(data, [0, 1, 2], pad_id=0)


def scored(model: Any) -> Scored:
    with torch.no_grad():
        return score(model, batch_of_rows())


def test_energies_and_likelihoods_are_those_of_capped_logits() -> None:
    model = build("gemma2", sharpen=4.0)
    capped = scored(model)
    cap = model.config.final_logit_softcapping
    model.config.final_logit_softcapping = None
    plain = scored(model)
    assert (plain.logits.abs() > 2 * cap).any(), "the cap must matter here"
    expected: Tensor = cap * torch.tanh(plain.logits / cap)
    assert torch.allclose(capped.logits, expected, atol=1e-6)
    assert torch.allclose(capped.lse, expected.logsumexp(-1), atol=1e-5)
    assert torch.allclose(capped.logps, expected.log_softmax(-1).gather(-1, capped.targets[:, None])[:, 0], atol=1e-5)
    stats = token_stats(capped.logits, capped.targets, moments=False)
    assert torch.allclose(stats.lse, capped.lse, atol=1e-5)


# Of the others with adapters, below.
@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "gpt_neox"])
def test_a_kl_retain_term_starts_at_zero(family: str, world: Path, tmp_path: Path) -> None:
    given = recipe(world, family, tmp_path / "run", {"name": "grad_diff", "retain": "kl"}, max_steps=2)
    api.unlearn(given)
    first, second = steps(tmp_path / "run")
    assert first["retain"] == pytest.approx(0, abs=1e-6)
    assert second["retain"] > 1e-6


def test_a_kl_term_reads_capped_logits_of_the_starting_model() -> None:
    model = build("gemma2", sharpen=4.0)
    batch = batch_of_rows()
    seen: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        own = score(model, batch).logits
    handle.remove()
    assert own.abs().max() > 0.9 * model.config.final_logit_softcapping
    assert torch.allclose(frozen_head(model)(seen[0]).reshape(own.shape), own, atol=1e-6)
    kept = score(model, batch, logits_chunk=4)
    assert isinstance(kept.distribution, Projected)
    assert torch.allclose(kept.logps, own.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0], atol=1e-5)


@pytest.mark.parametrize("family", WHOLE_RUNS)
def test_adapters_are_trained_and_asked(family: str, world: Path, tmp_path: Path) -> None:
    given = recipe(world, family, tmp_path / "run", {"name": "npo", "retain": "kl"}, max_steps=3)
    given["model"] |= {"use_peft": True, "lora_r": 4}
    api.unlearn(given)
    first, *_, last = steps(tmp_path / "run")
    assert first["retain"] == pytest.approx(0, abs=1e-6)
    assert last["loss"] < first["loss"]
    assert (tmp_path / "run/model/adapter_config.json").is_file()
    loaded = load_model(ModelSection(model_name_or_path=str(tmp_path / "run/model")), device=torch.device("cpu")).model
    assert loaded.config.model_type == family.removesuffix("-tied")
    prompts = [[5, 6, 7], [8, 9]]
    assert continuations(loaded, prompts) == [continuations(loaded, [prompt])[0] for prompt in prompts]


def test_a_tokenizer_that_pads_with_its_end_token(world: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    results = []
    for name, chosen in {"own": tiny_tokenizer(), "eos": tokenizer}.items():
        place = tmp_path / name
        build("llama").save_pretrained(place / "model")
        chosen.save_pretrained(place / "model")
        given = recipe(world, "llama", place / "run", {"name": "npo"}, max_steps=2)
        api.unlearn(given | {"model": {"model_name_or_path": str(place / "model")}})
        results.append([(event["loss"], event["tokens"]) for event in steps(place / "run")])
        assert Run.open(place / "run").manifest.status == "finished"
    assert results[0] == results[1]


def test_attention_is_chosen_by_the_architecture_and_refused_where_it_cannot_be(world: Path, tmp_path: Path) -> None:
    given = recipe(world, "gemma2", tmp_path / "run", {"name": "npo"}, max_steps=1)
    given["model"]["attn_implementation"] = "sdpa"
    with pytest.raises(ModelError, match=r"scaled_dot_product_attention[\s\S]*leave model.attn_implementation out"):
        api.unlearn(given)
    for family, kernel in {"gemma2": "eager", "llama": "sdpa"}.items():
        notes: list[str] = []
        given = recipe(world, family, tmp_path / family, {"name": "npo"}, max_steps=1)
        api.unlearn(given, progress=lambda event, notes=notes: notes.append(str(event.get("text"))))
        assert f"weights float32, computation float32 on cpu, attention {kernel}" in notes
        model = Run.open(tmp_path / family).manifest.model
        assert model is not None
        assert model.attention == kernel
