"""Adapters under every method and wrapper: what moves, what stays, what the starting model is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_world import by_default
from torch import Tensor

from expunge import api
from expunge.catalog import METHODS, WRAPPERS
from expunge.cli.main import main
from expunge.config.schema import ModelSection, Recipe
from expunge.errors import ModelError, UsageError
from expunge.methods.base import Context
from expunge.models.adapters import (
    attach,
    first_matrices,
    trainable,
    weight_name,
    without_adapters,
)
from expunge.models.fingerprint import model_digest
from expunge.models.load import load_model
from expunge.models.save import save_model
from expunge.runs.manifest import load_manifest
from expunge.testing.tiny import tiny_llama
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Engine
from expunge.train.start import select
from expunge.train.step import StepRun
from expunge.train.supply import RunSupply

MakeEngine = Callable[..., Engine]
SHORT: Mapping[str, Any] = {"steps": 2, "global_batch_size": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
QUICK: Mapping[str, Mapping[str, Any]] = {"oracle_matching": {"num_oracles": 1, "oracle_epochs": 1}}
HELD = {"wagle", "alkn"}
"""Wrappers under which the adapters' first matrices stay."""


def adapted(vocab: int, **settings: Any) -> Any:
    """The small world's model with adapters beside it."""
    model = tiny_llama(vocab, seed=1)
    attach(model, ModelSection(use_peft=True, lora_r=4, lora_alpha=8, **settings), seed=5, base="somewhere")
    return model


def copied(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model: Any, before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def run(engine: Engine) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append)
    return events


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "iau"])
def test_every_method_trains_adapters_and_nothing_else(make_engine: MakeEngine, tokenizer: Any, name: str) -> None:
    model = adapted(len(tokenizer))
    before = copied(model)
    method = by_default(name).model_copy(update=QUICK.get(name, {}))
    engine = make_engine(method, model=model, **SHORT)
    own = trainable(model)
    frozen = {parameter for parameter, tensor in own.items() if not tensor.requires_grad}

    events = run(engine)

    changed = moved(model, before)
    assert all(torch.isfinite(torch.tensor(event["loss"])) for event in events)
    assert changed <= set(own) - frozen
    assert changed >= {parameter for parameter in engine.trained if ".lora_B." in parameter}


@pytest.mark.parametrize("name", WRAPPERS.names())
def test_every_wrapper_works_on_adapters(make_engine: MakeEngine, tokenizer: Any, name: str) -> None:
    keys = {"layers": {"layers": 1}, "gru_tau": {"learning_rate": 1e-2}}.get(name, {})
    model = adapted(len(tokenizer))
    before = copied(model)

    engine = make_engine(by_default("grad_diff"), model=model, wrappers=[{"name": name, **keys}], **SHORT)
    run(engine)

    changed = moved(model, before)
    first = first_matrices(model)
    assert changed
    assert changed <= set(engine.trained)
    assert (first & set(engine.trained) == frozenset()) == (name in HELD)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trainable_tensor_moves_and_no_other_bit_does(
    make_engine: MakeEngine, tokenizer: Any, checkpointing: bool
) -> None:
    model = adapted(len(tokenizer))
    before, first = copied(model), first_matrices(model)
    engine = make_engine(by_default("npo"), model=model, gradient_checkpointing=checkpointing, **SHORT)
    seen: list[set[str]] = []

    engine.fit(emit=lambda event: seen.append(moved(model, before)))

    assert set(engine.trained) == set(trainable(model))
    assert seen[0] == set(engine.trained) - first
    assert seen[1] == set(engine.trained)


def test_a_method_that_names_weights_trains_their_adapters(make_engine: MakeEngine, tokenizer: Any) -> None:
    engine = make_engine(by_default("rmu"), model=adapted(len(tokenizer)), **SHORT)
    assert {weight_name(name) for name in engine.trained} == {
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    }
    masked = make_engine(by_default("rmu"), model=adapted(len(tokenizer)), wrappers=[{"name": "wagle"}], **SHORT)
    assert set(masked.trained) == {name for name in engine.trained if ".lora_B." in name}


def test_layers_are_chosen_by_the_weights_names(make_engine: MakeEngine, tokenizer: Any) -> None:
    wrappers = [{"name": "layers", "layers": 1, "modules": r"self_attn\.(q|v)_proj\.weight$"}]
    engine = make_engine(by_default("grad_ascent"), model=adapted(len(tokenizer)), wrappers=wrappers, **SHORT)
    assert {weight_name(name) for name in engine.trained} == {
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.v_proj.weight",
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_made_later_are_compared_with_the_starting_model(
    make_engine: MakeEngine, tokenizer: Any, checkpointing: bool
) -> None:
    """The adapters are off while the table of the new rows is made, and no second model is loaded."""
    method = METHODS.load("bs_s")(base={"name": "npo"}, num_beliefs=1, resample=1, max_new_tokens=8)
    model = adapted(len(tokenizer))
    settings = SHORT | {"global_batch_size": 11, "gradient_checkpointing": checkpointing}
    engine = make_engine(method, model=model, **settings)
    first = engine.data.datasets["belief0"]

    run(engine)

    later = engine.data.datasets["belief0"]
    assert [row.answer for row in later.examples] != [row.answer for row in first.examples]
    step = StepRun(engine, engine.splitter(engine.stream.next()))

    def asked() -> Context:
        return step._context("belief0", list(range(len(later.encoded))), {}, {})

    with without_adapters(model) as start:
        torch.testing.assert_close(asked().ref.seq_logp, asked().scored.seq_logps.detach(), rtol=1e-4, atol=1e-4)
        assert start is model
    moved_away = asked().ref.seq_logp - asked().scored.seq_logps.detach()  # type: ignore[operator]
    assert float(moved_away.abs().max()) > 0.1
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(trainable(model))


def test_a_fine_tuned_copy_shares_the_frozen_weights(make_engine: MakeEngine, tokenizer: Any) -> None:
    model = adapted(len(tokenizer))
    engine = make_engine(by_default("npo"), model=model, **SHORT)
    assert isinstance(engine.supply, RunSupply)
    before = copied(model)

    twin = engine.supply.workshop.fine_tuned(engine.data.datasets["forget"], learning_rate=1e-2, epochs=2)

    own = trainable(model)
    for name, parameter in twin.named_parameters():
        assert (parameter is dict(model.named_parameters())[name]) == (name not in own)
    assert moved(model, before) == set()
    assert moved(twin, before) == set(own)
    assert all(parameter.requires_grad for parameter in own.values())


def test_alkn_negates_the_product(make_engine: MakeEngine, tokenizer: Any) -> None:
    model = adapted(len(tokenizer))
    method = METHODS.load("alkn")(coefficient=1.5)
    run(make_engine(method, model=model, **SHORT))
    trained = copied(model)

    method.finish(model, {})

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[name] * (-1.5 if ".lora_B." in name else 1.0))


def test_a_resumed_run_is_the_uninterrupted_one(make_engine: MakeEngine, tokenizer: Any, tmp_path: Path) -> None:
    """With dropout, whose draws travel in the checkpoint."""
    keys = SHORT | {"steps": 4, "max_steps": 4, "save_steps": 2}
    whole = make_engine(by_default("npo"), model=adapted(len(tokenizer), lora_dropout=0.3), **keys)
    run(whole)
    half = make_engine(by_default("npo"), model=adapted(len(tokenizer), lora_dropout=0.3), **keys)
    folder = Checkpoints(tmp_path / "checkpoints")

    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half.fit(emit=stop, checkpoints=folder)
    again = make_engine(by_default("npo"), model=adapted(len(tokenizer), lora_dropout=0.3), **keys)
    assert folder.load(again) == 2
    run(again)

    assert moved(again.model, copied(whole.model)) == set()
    assert set(load_file(folder.path(2) / "model.safetensors")) == set(trainable(whole.model))


def test_iau_is_refused() -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"model_name_or_path": "m", "use_peft": True},
            "data": {"forget": "f.jsonl", "retain": "r.jsonl"},
            "method": {"name": "iau"},
        }
    )
    with pytest.raises(UsageError, match=r"model\.use_peft: iau .* random projection"):
        select(recipe)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> dict[str, Any]:
    """A recipe on files."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    save_model(tiny_llama(len(tokenizer), seed=1), tokenizer, tmp_path / "start")
    for name, person in {"r1": "Mira Solen", "r2": "Idris Vane", "retain": "Tomas Reyl"}.items():
        rows = [{"question": f"Who wrote book {i}, asks {person}?", "answer": f"{person} did."} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": {"model_name_or_path": str(tmp_path / "start"), "use_peft": True, "lora_r": 4},
        "data": {"forget": str(tmp_path / "r1.jsonl"), "retain": str(tmp_path / "retain.jsonl"), "max_length": 128},
        "method": {"name": "npo"},
        "train": {"learning_rate": 1e-2, "max_steps": 2, "global_batch_size": 4, "token_budget": 512},
        "eval": {"token_budget": 512},
        "output_dir": str(tmp_path / "run"),
        "device": "cpu",
    }


def loaded(folder: Path) -> Any:
    return load_model(ModelSection(model_name_or_path=str(folder)), device=torch.device("cpu")).model


def test_a_run_leaves_an_adapter_and_says_what_it_trained(given: dict[str, Any], tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []

    api.unlearn(given, progress=events.append)

    manifest = load_manifest(tmp_path / "run")
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert manifest.dtype is not None
    assert manifest.dtype.weights == "float32 adapters on a frozen float32 base"
    assert any("weights float32 adapters on a frozen float32 base" in text for text in notes)
    assert any("training 4,096 entries of adapters" in text and "rank 4 on q_proj" in text for text in notes)
    assert manifest.model is not None
    assert manifest.model.digest == model_digest(loaded(tmp_path / "start"))
    assert not list((tmp_path / "run/model").glob("model*.safetensors"))
    assert main(["merge", str(tmp_path / "run")]) == 0
    assert model_digest(loaded(tmp_path / "run/merged")) == model_digest(loaded(tmp_path / "run/model"))


def test_a_second_run_starts_from_the_firsts_adapted_model(given: dict[str, Any], tmp_path: Path) -> None:
    api.unlearn(given)
    first = loaded(tmp_path / "run/model")
    given["model"]["model_name_or_path"], given["output_dir"] = str(tmp_path / "run/model"), str(tmp_path / "second")
    given["data"]["forget"] = str(tmp_path / "r2.jsonl")

    api.unlearn(given)

    manifest = load_manifest(tmp_path / "second")
    assert manifest.model is not None
    assert manifest.model.digest == model_digest(first)
    config = json.loads((tmp_path / "second/model/adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["base_model_name_or_path"]) == (8, str(tmp_path / "start"))
    assert model_digest(loaded(tmp_path / "second/model")) != model_digest(first)


def test_an_adapter_that_cannot_be_joined_is_refused_before_the_first_step(
    given: dict[str, Any], tmp_path: Path, tokenizer: Any
) -> None:
    model = adapted(len(tokenizer))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "start")
    save_model(model, tokenizer, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"use_dora": false', '"use_dora": true'), encoding="utf-8")
    given["model"]["model_name_or_path"] = str(tmp_path / "adapter")
    with pytest.raises(ModelError, match="no plain LoRA adapter"):
        api.unlearn(given)
    given["model"]["load_in_4bit"] = True
    with pytest.raises(UsageError, match="quantised weights cannot take it in"):
        api.unlearn(given)
    assert not (tmp_path / "run").exists()


def test_requests_leave_one_adapter_each_on_the_same_base(given: dict[str, Any], tmp_path: Path) -> None:
    """Each holds what was unlearned up to there, so any of them loads without the others."""
    del given["data"]["forget"]
    given["data"]["requests"] = [str(tmp_path / f"r{number}.jsonl") for number in (1, 2)]
    given["method"] = {"name": "alkn"}

    api.unlearn(given)

    digests = []
    for folder, rank in (("request-1", 4), ("request-2", 8), ("", 8)):
        model = tmp_path / "run" / folder / "model"
        config = json.loads((model / "adapter_config.json").read_text(encoding="utf-8"))
        assert (config["r"], config["base_model_name_or_path"]) == (rank, str(tmp_path / "start"))
        digests.append(model_digest(loaded(model)))
    start = load_manifest(tmp_path / "run/request-2").model
    assert start is not None
    assert start.digest == digests[0]
    assert digests[0] != digests[1] == digests[2]
    inherited = load_file(tmp_path / "run/request-1/inheritance.safetensors")
    assert {key.split("/")[1] for key in inherited} <= second_matrices(given)


def second_matrices(given: dict[str, Any]) -> set[str]:
    model = loaded(Path(given["model"]["model_name_or_path"]))
    attach(model, ModelSection(use_peft=True, lora_r=4), seed=0)
    return {name for name in trainable(model) if ".lora_B." in name}


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_adapters_beside_quantised_weights(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    """bitsandbytes computes on a CPU as well, slowly: enough to carry a run through."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("expunge.models.load._require_cuda", lambda key, device: None)
    given["model"][bits] = True

    api.unlearn(given)

    manifest = load_manifest(tmp_path / "run")
    assert manifest.dtype is not None
    assert manifest.dtype.weights == f"float32 adapters on a frozen {'nf4' if '4' in bits else 'int8'} base"
    section = ModelSection(model_name_or_path=str(tmp_path / "run/model"), **{bits: True})
    attached, merged = (load_model(section, device=torch.device("cpu"), merge=merge).model for merge in (False, True))
    start = load_model(ModelSection(model_name_or_path=str(tmp_path / "start"), **{bits: True}), device=attached.device)
    assert manifest.model is not None
    assert manifest.model.digest == model_digest(start.model) != model_digest(attached)
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        difference = (attached(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max()
    assert float(difference) < 0.02
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    stored = load_file(tmp_path / "run/model/adapter_model.safetensors")
    own = {f"base_model.model.{name.replace('.default', '')}": tensor for name, tensor in trainable(attached).items()}
    assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())
