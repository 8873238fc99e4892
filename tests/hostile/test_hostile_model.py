"""Folders that are no model, or not one that can be trained honestly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_result import DATA, STOPPED, USAGE, Invoke, Result, assert_refused, manifest
from hostile_world import World

Unlearn = Callable[..., Result]


@pytest.fixture
def unlearn(world: World, invoke: Invoke) -> Unlearn:
    """One step from another model."""

    def run(model: Path | str, *overrides: str) -> Result:
        return invoke("unlearn", world.recipe(), "train.max_steps=1", f"model.model_name_or_path={model}", *overrides)

    return run


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["missing", "./missing", "empty", "forget.jsonl"])
def test_no_model(world: World, unlearn: Unlearn, name: str) -> None:
    (world / "empty").mkdir()
    model = str(world / name) if name in ("empty", "forget.jsonl") else name
    assert_refused(unlearn(model), USAGE, f"cannot load model '{model}'")
    assert not world.run.exists()


def save_bert(folder: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(**sizes, vocab_size=384)).save_pretrained(folder)


def test_an_encoder_is_no_causal_model(world: World, unlearn: Unlearn) -> None:
    tokenizer_of(world / "model").save_pretrained(world / "bert")
    save_bert(world / "bert")
    result = unlearn(world / "bert")
    assert_refused(result, USAGE, "not a causal language model: BertLMHeadModel lets a token see those after it")


def test_an_encoder_decoder_is_none_either(world: World, unlearn: Unlearn) -> None:
    from transformers import BartConfig, T5Config

    for config in (T5Config(), BartConfig()):
        config.save_pretrained(world / config.model_type)
        assert_refused(unlearn(world / config.model_type), USAGE, f"not a causal .*'{config.model_type}'")


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config is no JSON": (lambda model: (model / "config.json").write_text("{"), "not a valid JSON"),
    "type of the future": (lambda model: edit_config(model, model_type="nosuch"), "nosuch"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), r"no file named model\.safetensors"),
    "half of the weights": (lambda model: cut(model / "model.safetensors", 1000), "cannot load model"),
    "a layer too many": (lambda model: edit_config(model, num_hidden_layers=3), r"lacks 9 weights \(model\.layers\.2"),
    "another width": (lambda model: edit_config(model, hidden_size=64), r"weights of other shapes .*is \(\d+,"),
    "no tokenizer": (
        lambda model: [path.unlink() for path in model.glob("*token*")],
        "cannot load tokenizer",
    ),
    "a broken tokenizer": (lambda model: (model / "tokenizer.json").write_text("{}"), "cannot load tokenizer"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders(world: World, unlearn: Unlearn, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(world / "model")
    assert_refused(unlearn(world / "model"), USAGE, message)
    assert not world.run.exists()


def test_without_a_chat_template_one_is_named(world: World, unlearn: Unlearn) -> None:
    (world / "model" / "chat_template.jinja").unlink()
    assert_refused(unlearn(world / "model"), USAGE, "no chat template", r"data\.template, .*to one of plain")
    assert unlearn(world / "model", "data.template=plain").code == 0


def test_a_base_model_as_it_is_published(shared: Path, world: World, unlearn: Unlearn) -> None:
    model = shared / "models" / "stories260K"
    assert_refused(unlearn(model), USAGE, "no chat template", "plain")
    assert unlearn(model, "data.template=plain", "data.max_length=512").code == 0


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0 }}", "the chat template refuses a conversation"),
        ("{{ raise_exception('no') }}", "the chat template refuses a conversation"),
        ("hello", "leaves out turn 1"),
    ],
)
def test_templates_that_cannot_be_used(world: World, unlearn: Unlearn, template: str, message: str) -> None:
    (world / "model" / "chat_template.jinja").write_text(template)
    assert_refused(unlearn(world / "model"), DATA, message, r"data\.template")


def test_no_padding_token_is_needed(world: World, unlearn: Unlearn) -> None:
    tokenizer = tokenizer_of(world / "model")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(world / "model")
    assert tokenizer_of(world / "model").pad_token_id is None
    assert unlearn(world / "model").code == 0


def test_a_padding_token_beyond_the_embedding_is_not_looked_up(world: World, unlearn: Unlearn) -> None:
    tokenizer = tokenizer_of(world / "model")
    tokenizer.add_special_tokens({"pad_token": "<|new pad|>"})
    tokenizer.save_pretrained(world / "model")
    assert unlearn(world / "model").code == 0


@pytest.mark.parametrize("command", ["unlearn", "validate", "plan"])
def test_a_tokenizer_larger_than_the_model(world: World, invoke: Invoke, command: str) -> None:
    tokenizer = tokenizer_of(world / "model")
    tokenizer.add_tokens(["Mira Solen"])
    tokenizer.save_pretrained(world / "model")
    token = r"beyond the model's 384 embeddings: token 384 \('Mira Solen'\) in row 0"
    assert_refused(invoke(command, world.recipe()), USAGE, f"6 of 12 forget examples .*{token}", "385 tokens")


def test_nan_in_the_weights(world: World, unlearn: Unlearn) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(world / "model", world / "nan")
    model = AutoModelForCausalLM.from_pretrained(world / "nan")
    model.lm_head.weight.data[5, 0] = float("nan")
    model.save_pretrained(world / "nan")
    result = unlearn(world / "nan")
    assert_refused(result, STOPPED, r"step 1: loss is nan.*\(rows: forget \d+", "the starting model's weights")
    assert manifest(world.run)["status"] == "stopped"


def test_a_learning_rate_that_breaks_the_model(world: World, invoke: Invoke) -> None:
    recipe = world.recipe(train__save_steps=1, train__max_grad_norm=None)
    result = invoke("unlearn", recipe, "train.learning_rate=1e30", "train.warmup_steps=7")
    assert_refused(result, STOPPED, r"step \d+.*(nan|inf|not finite)", "earlier checkpoints are kept")
    found = manifest(world.run)
    assert found["status"] == "stopped"
    assert found["stop_reason"].startswith("StoppedError: step")
    assert not (world.run / "model").exists()


def test_weights_that_are_not_finite_are_never_saved(world: World, invoke: Invoke) -> None:
    # The only step: its loss is fine, the weights it leaves are not.
    steps = ("train.max_steps=1", "train.optim=adamw", "train.learning_rate=1e38", "train.weight_decay=1e10")
    result = invoke("unlearn", world.recipe(), *steps)
    assert_refused(result, STOPPED, r"step 1 left weights that are not finite", "lower train.learning_rate")
    assert not (world.run / "model").exists()
    assert not list(world.run.glob("checkpoints/*"))
