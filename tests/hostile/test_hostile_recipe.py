"""Recipes and overrides that say what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hostile_result import USAGE, Invoke, assert_refused
from hostile_world import World


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1,\n b: }", r"line 2: not valid YAML"),
        (b"a:\n\tb: 1\n", r"line 2: not valid YAML"),
        (b"seed: 1\nseed: 2\n", "key 'seed' is written twice"),
        (b"", "no method given"),
        (b"- a\n- b\n", "expected a mapping of sections, found list"),
        (b"hello", "expected a mapping of sections, found str"),
        (b"train:\n", "train: expected a mapping, found None"),
        (b"\xff\xfe\x00\x01", "cannot be read as a recipe"),
    ],
)
def test_files_that_are_no_recipe(world: World, invoke: Invoke, content: bytes, message: str) -> None:
    (world / "r.yaml").write_bytes(content)
    assert_refused(invoke("unlearn", world / "r.yaml"), USAGE, message)


def test_a_recipe_that_is_not_there(world: World, invoke: Invoke) -> None:
    assert_refused(invoke("unlearn", world / "nope.yaml"), USAGE, r"no recipe file .*nope\.yaml", "expunge ls recipes")
    (world / "folder.yaml").mkdir()
    assert_refused(invoke("unlearn", world / "folder.yaml"), USAGE, "no recipe file")


def test_windows_wrote_the_recipe(world: World, invoke: Invoke) -> None:
    recipe = world.recipe("vergiß.yaml", output_dir=None)
    recipe.write_bytes(b"\xef\xbb\xbf" + recipe.read_bytes().replace(b"\n", b"\r\n"))
    result = invoke("unlearn", recipe, "train.max_steps=1")
    assert (result.code, result.out) == (0, "runs/vergiß-npo\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__max_lenght": 3}, r"unknown key data\.max_lenght.*did you mean data\.max_length\?"),
        ({"dta": {}}, r"unknown key dta.*did you mean data\?"),
        ({"method": {"name": "npoo"}}, "unknown method 'npoo'.*did you mean 'npo'"),
        ({"method": {"name": "npo", "bet": 1}}, r"unknown key method\.bet for npo.*did you mean 'beta'"),
        ({"method": {"name": "npo", "beta": "high"}}, r"method\.beta: .*found 'high'"),
        ({"method": {"name": "npo", "beta": -1}}, r"method\.beta: .*found -1"),
        ({"method": {"name": "npo", "beta": float("inf")}}, r"method\.beta: .*finite"),
        ({"method": None}, r"no method given.*method\.name="),
        ({"model__from_scratch": {"model_type": "llamma"}}, "unknown model_type 'llamma'.*did you mean llama"),
        ({"model__from_scratch": {"model_type": "llama", "hidden_sze": 8}}, "no .hidden_sze.*mean hidden_size"),
        (
            {"model__from_scratch": {"model_type": "llama", "hidden_size": 33, "num_attention_heads": 4}},
            "33.*not a multiple",
        ),
    ],
)
def test_unknown_names_and_wrong_values(world: World, invoke: Invoke, change: dict[str, Any], message: str) -> None:
    recipe = world.recipe(model__tokenizer_name_or_path=str(world / "model"), **change)
    assert_refused(invoke("unlearn", recipe), USAGE, message)
    assert not world.run.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.learning_rate=1", "unknown key trian.*did you mean train"),
        ("train.learnin_rate=1", r"did you mean train\.learning_rate"),
        ("learning_rate=1", r"did you mean train\.learning_rate"),
        ("train.learning_rate", "is not an override.*key=value"),
        ("train.learning_rate=fast", "expected a number, found 'fast'"),
        ("train.learning_rate=.inf", "found inf"),
        ("train.learning_rate=.nan", "found nan"),
        ("train.learning_rate=-1", "expected a number > 0"),
        ("train.num_train_epochs=.inf", "found inf"),
        ("train.global_batch_size=2.5", "expected a whole number"),
        ("train.max_grad_norm=-1", "expected a number > 0"),
        ("train.adam_beta1=1", "expected a number < 1"),
        ("train.adam_epsilon=-1", "expected a number >= 0"),
        ("train.lr_scheduler_type=reduce_lr_on_plateau", "expected linear"),
        ("seed=-1", "expected a number >= 0"),
        ("seed=99999999999999999999", "expected a number <"),
        ("seed.x=1", "expected a whole number"),
        ("data.max_length=1", "max_length is 1"),
        ("data.template=tofu/lama2", "unknown template.*did you mean 'tofu/llama2'"),
        ("model.attn_implementation=foo", "foo.*model.attn_implementation=sdpa"),
        ("device=gpu", "no device 'gpu' here.*cpu"),
        ("device=meta", "no device 'meta' here"),
        ("device=cuda:99", "no device 'cuda:99' here"),
    ],
)
def test_overrides(world: World, invoke: Invoke, override: str, message: str) -> None:
    assert_refused(invoke("unlearn", world.recipe(), override), USAGE, message)
    assert not world.run.exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"name": "rmu", "layer": 1, "gamma": 0, "alpha": 0},
            r"method\.gamma and method\.alpha are 0: rmu would train",
        ),
        ({"name": "undial", "gamma": 0}, r"method\.gamma and method\.alpha are 0: undial would train nothing"),
        ({"name": "pdu", "alpha": 0}, r"method\.alpha: .*greater than 0"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_weights_that_are_all_zero(world: World, invoke: Invoke, method: dict[str, Any], message: str) -> None:
    recipe = world.recipe(method=method)
    assert_refused(invoke("unlearn", recipe), USAGE, message)
    assert_refused(invoke("validate", recipe), USAGE, message)
    assert not world.run.exists()


def test_the_wrong_command(world: World, invoke: Invoke) -> None:
    assert_refused(invoke("train", world.recipe()), USAGE, "kind: unlearn", "expunge unlearn")
