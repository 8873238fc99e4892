"""Adapters: where they go, what they leave alone, how they are named, switched off, stored, joined and refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from expunge import api
from expunge.config.schema import ModelSection
from expunge.data.collate import Batch
from expunge.errors import ModelError, UsageError
from expunge.models.adapter_folder import find_adapter, read_adapter
from expunge.models.adapters import (
    attach,
    describe_adapters,
    first_matrices,
    is_adapted,
    is_identity,
    numbers,
    require_adapters,
    scale_change,
    trainable,
    weight_name,
    weight_names,
    without_adapters,
)
from expunge.models.blocks import blocks
from expunge.models.fingerprint import model_digest
from expunge.models.load import load_config, load_model, load_tokenizer
from expunge.models.save import save_model
from expunge.models.score import score
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.start import freeze

VOCAB = 300
IDS = torch.arange(24).reshape(2, 12)
CPU = torch.device("cpu")


def section(**keys: Any) -> ModelSection:
    return ModelSection(**({"use_peft": True, "lora_r": 4, "lora_alpha": 8} | keys))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def shake(model: Any, seed: int = 0) -> Any:
    """What training leaves: an adapter that does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def model() -> Any:
    return tiny_llama(VOCAB, seed=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tokenizer = tiny_tokenizer()
    save_model(tiny_llama(len(tokenizer), seed=1), tokenizer, folder)
    return folder


@pytest.fixture
def stored(base: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train (or rather shake) adapters on a folder and store them; the adapted model."""

    def make(folder: str, on: Path = base, seed: int = 0, **keys: Any) -> Any:
        model = load_model(section(model_name_or_path=str(on)), device=CPU).model
        attach(model, section(**keys), seed=seed, base=str(on))
        save_model(shake(model, seed), load_tokenizer(str(on)), tmp_path / folder)
        return model

    return make


def test_an_adapted_model_begins_as_its_base(model: Any) -> None:
    before, digest = logits(model), model_digest(model)

    attach(model, section(), seed=0)

    assert torch.equal(logits(model), before)
    assert is_adapted(model)
    assert is_identity(model)
    assert model_digest(model) == digest
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(trainable(model))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "lm_head" not in describe_adapters(model)


def test_all_linear_layers_but_the_head() -> None:
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=64, **fields)).eval()

    attach(model, section(), seed=0)

    names = {name.rpartition(".")[0].rpartition(".")[2] for name in weight_names(model).values()}
    assert names == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def test_first_matrices_are_drawn_from_the_seed_alone(model: Any) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    attach(model, section(), seed=7)

    assert torch.equal(torch.rand(3), expected)
    same, other = tiny_llama(VOCAB, seed=1), tiny_llama(VOCAB, seed=1)
    attach(same, section(), seed=7)
    attach(other, section(), seed=8)
    for name, tensor in trainable(model).items():
        assert torch.equal(trainable(same)[name], tensor)
        assert torch.equal(trainable(other)[name], tensor) == (name not in first_matrices(model))


def test_a_target_that_matches_nothing_names_the_layers(model: Any) -> None:
    with pytest.raises(UsageError, match="'v_projj'") as caught:
        attach(model, section(lora_target_modules=("q_proj", "v_projj")), seed=0)
    assert caught.value.hint == (
        "its linear layers are named q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head"
    )
    assert not is_adapted(model)


def test_a_head_that_is_the_embedding_gets_no_adapter() -> None:
    model = tiny_llama(VOCAB, tie_word_embeddings=True)
    with pytest.raises(UsageError, match="lm_head is also the embedding"):
        attach(model, section(lora_target_modules=("lm_head",)), seed=0)


def test_matrices_stand_for_the_weight_they_adapt(model: Any) -> None:
    plain = {name for name, _ in model.named_parameters()}
    attach(model, section(lora_target_modules=("down_proj",)), seed=0)

    assert {weight_name(name) for name, _ in model.named_parameters()} == plain
    freeze(model, (), (r"\.1\.mlp\.down_proj\.weight$",))

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"model.layers.1.mlp.down_proj.lora_{matrix}.default.weight" for matrix in "AB"}


def test_a_pattern_of_weights_without_adapter_says_so(model: Any) -> None:
    attach(model, section(lora_target_modules=("q_proj",)), seed=0)
    with pytest.raises(UsageError, match="no adapted weight's name matches") as caught:
        freeze(model, (), (r"mlp",))
    assert "model.lora_target_modules" in str(caught.value.hint)


def test_adapters_off_is_the_base_and_back_is_as_before(model: Any) -> None:
    before = logits(model)
    attach(model, section(), seed=0)
    shake(model)
    freeze(model, (), (r"down_proj",))
    adapted = logits(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}

    with without_adapters(model) as start:
        assert torch.equal(logits(start), before)

    assert torch.equal(logits(model), adapted)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_scaling_a_change_scales_the_product(model: Any) -> None:
    attach(model, section(lora_target_modules=("lm_head",)), seed=0)
    with without_adapters(model) as start:
        before = logits(start)
    shake(model)
    change = logits(model) - before

    scale_change(model, {}, -2.0)

    assert torch.allclose(logits(model) - before, -2 * change, atol=1e-5)


def test_a_digest_is_of_base_adapter_and_scale(model: Any) -> None:
    other, scaled = tiny_llama(VOCAB, seed=2), tiny_llama(VOCAB, seed=1)
    for each, keys in ((model, {}), (other, {}), (scaled, {"lora_alpha": 16})):
        attach(each, section(**keys), seed=0)
        shake(each)
    digests = {model_digest(each) for each in (model, other, scaled, tiny_llama(VOCAB, seed=1))}
    assert len(digests) == 4


def test_a_stored_adapter_loads_here_and_in_transformers(
    base: Path, stored: Callable[..., Any], tmp_path: Path
) -> None:
    adapted = stored("adapter")
    folder = tmp_path / "adapter"

    written = {path.name for path in folder.iterdir()}
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"} <= written
    assert not written & {"config.json", "model.safetensors"}
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == sorted(config["target_modules"])

    loaded = load_model(ModelSection(model_name_or_path=str(folder)), device=CPU).model
    assert not is_adapted(loaded)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert type(loaded) is type(adapted)
    assert torch.allclose(logits(loaded), logits(adapted), atol=1e-5)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(adapted), atol=1e-5)
    assert load_config(str(folder)).to_dict() == load_config(str(base)).to_dict()
    assert load_tokenizer(str(folder)).chat_template == tiny_tokenizer().chat_template


def test_an_adapter_without_tokenizer_takes_its_bases(stored: Callable[..., Any], tmp_path: Path) -> None:
    stored("adapter")
    for path in (tmp_path / "adapter").glob("*token*"):
        path.unlink()
    assert len(load_tokenizer(str(tmp_path / "adapter"))) == len(tiny_tokenizer())


def test_merged_is_adapted(stored: Callable[..., Any], tmp_path: Path) -> None:
    adapted = stored("adapter")
    adapter, folder = str(tmp_path / "adapter"), tmp_path / "merged"

    assert api.merge(adapter, out=folder) == folder

    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert (folder / "config.json").exists()
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-5)
    in_memory = load_model(ModelSection(model_name_or_path=adapter), device=CPU).model
    assert model_digest(merged) == model_digest(in_memory)
    with pytest.raises(UsageError, match="exists"):
        api.merge(adapter, out=folder)
    with pytest.raises(UsageError, match="holds no adapter"):
        api.merge(folder, out=tmp_path / "again")
    with pytest.raises(UsageError, match="no folder of its own"):
        api.merge(adapter)


def test_an_adapter_of_an_adapter_is_written_as_one(base: Path, stored: Callable[..., Any], tmp_path: Path) -> None:
    stored("first", seed=1, lora_target_modules=("q_proj", "down_proj"))
    both = stored("second", on=tmp_path / "first", seed=2, lora_r=2, lora_target_modules=("q_proj", "up_proj"))
    three = stored("third", on=tmp_path / "second", seed=3)
    shutil.rmtree(tmp_path / "first")

    config = read_adapter(find_adapter(str(tmp_path / "second"))).config  # type: ignore[arg-type]
    assert (config.r, config.base_model_name_or_path) == (6, str(base))
    for folder, adapted in (("second", both), ("third", three)):
        assert torch.allclose(
            logits(AutoModelForCausalLM.from_pretrained(tmp_path / folder)), logits(adapted), atol=1e-5
        )
    loaded = load_model(ModelSection(model_name_or_path=str(tmp_path / "third")), device=CPU).model
    assert torch.allclose(logits(loaded), logits(three), atol=1e-5)


def edit(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


def test_adapters_that_cannot_be_used_say_why(base: Path, stored: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    stored("adapter")

    def refused(match: str) -> None:
        with pytest.raises(ModelError, match=match):
            load_model(ModelSection(model_name_or_path=str(folder)), device=CPU)

    edit(folder, base_model_name_or_path="models/of/yesterday")
    refused("adapts 'models/of/yesterday', and there is no such folder")
    edit(folder, base_model_name_or_path=None)
    refused("does not say which model it adapts")
    tiny_llama(len(tiny_tokenizer()), num_hidden_layers=1).save_pretrained(tmp_path / "shallow")
    edit(folder, base_model_name_or_path=str(tmp_path / "shallow"))
    refused("does not fit its base|cannot load adapter")
    tiny_llama(len(tiny_tokenizer()), num_hidden_layers=3).save_pretrained(tmp_path / "deep")
    edit(folder, base_model_name_or_path=str(tmp_path / "deep"), target_modules=["q_proj"])
    refused("does not fit its base")
    edit(folder, base_model_name_or_path=str(folder))
    refused("adapts another adapter")
    (folder / "config.json").write_text((base / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    refused("holds a model and an adapter")


def test_only_plain_adapters_are_joined(stored: Callable[..., Any], tmp_path: Path) -> None:
    stored("adapter")
    edit(tmp_path / "adapter", use_dora=True)
    with pytest.raises(ModelError, match="no plain LoRA adapter") as caught:
        read_adapter(find_adapter(str(tmp_path / "adapter")))  # type: ignore[arg-type]
    assert "expunge merge" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"load_in_4bit": True}, "load_in_4bit stores weights that cannot be trained"),
        ({"use_peft": True, "load_in_4bit": True, "load_in_8bit": True}, "both set"),
        ({"lora_r": 8}, "lora_r is set and nothing gets an adapter"),
        ({"use_peft": True, "from_scratch": {"model_type": "llama"}}, "without the random weights"),
    ],
)
def test_settings_that_do_not_go_together(keys: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        require_adapters(ModelSection(**keys))


def test_adapters_can_be_switched_off_where_they_are_described() -> None:
    require_adapters(ModelSection(use_peft=False, lora_r=8))


def test_without_peft(model: Any, stored: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored("adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    for use in (
        lambda: attach(model, section(), seed=0),
        lambda: load_model(ModelSection(model_name_or_path=str(tmp_path / "adapter")), device=CPU),
    ):
        with pytest.raises(UsageError, match="adapters need the package peft") as caught:
            use()
        assert caught.value.hint == 'pip install "expunge[lora]"'


def test_quantised_weights_need_cuda(base: Path) -> None:
    with pytest.raises(UsageError, match="load_in_4bit needs a GPU with CUDA, and this is to run on cpu"):
        load_model(section(model_name_or_path=str(base), load_in_4bit=True), device=CPU)
    with pytest.raises(UsageError, match=r"with train\.fsdp"):
        require_adapters(section(load_in_8bit=True), fsdp=True)
    with pytest.raises(UsageError, match=r"with data\.requests"):
        require_adapters(section(load_in_4bit=True), requests=True)
    assert numbers(section(load_in_4bit=True)) == "float32 adapters on a frozen nf4 base"
    assert numbers(ModelSection()) == "float32"


def test_blocks_and_hidden_states_inside_pefts_own_wrapper(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    mask = torch.zeros_like(IDS, dtype=torch.bool)
    mask[:, 3:5] = True
    batch = Batch(
        rows=torch.arange(2),
        input_ids=IDS,
        attention_mask=torch.ones_like(IDS),
        predict_mask=mask,
        targets=torch.zeros(4, dtype=torch.long),
        row=torch.tensor([0, 0, 1, 1]),
        is_end=torch.zeros(4, dtype=torch.bool),
        answer=torch.ones(4, dtype=torch.bool),
    )

    scored = score(wrapped, batch, hidden=1)

    assert len(blocks(wrapped)) == 2
    assert scored.hidden is not None
    assert scored.hidden.shape == (4, 32)
