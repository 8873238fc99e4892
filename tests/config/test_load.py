"""Recipes, overrides, and errors that name the key and the nearest one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.config import packaged
from expunge.config.load import Given, load_recipe, resolved
from expunge.config.schema import Recipe
from expunge.errors import UsageError

RECIPE = """\
# NPO on our own rows
model: {model_name_or_path: models/tiny}
data:
  forget: forget.jsonl
  retain: [{path: retain.jsonl, rows: "0:10"}, "org/name:train"]
  tofu: tofu
method: {name: npo, beta: 1e-1}
train: {learning_rate: 1e-5}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipes" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(RECIPE)
    return path


@pytest.fixture
def packaged_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packaged"
    (folder / "tofu-forget10").mkdir(parents=True)
    (folder / "tofu-forget10" / "grad_diff.yaml").write_text("# GradDiff on TOFU\n# more\nmethod: {name: grad_diff}\n")
    monkeypatch.setattr(packaged, "recipes_folder", lambda: folder)
    return folder


def with_override(*overrides: str) -> Given:
    return load_recipe({"data": {"forget": "a.jsonl"}}, overrides)


def test_a_file_with_overrides(recipe_file: Path) -> None:
    found = load_recipe(recipe_file, ["train.learning_rate=2e-4", "method.gamma=0.5", "seed=7"])
    assert found.origin == str(recipe_file)
    assert found.recipe.train.learning_rate == 2e-4
    assert found.recipe.method == {"name": "npo", "beta": 0.1, "gamma": 0.5}
    assert [source.path for source in found.recipe.data.retain] == ["retain.jsonl", "org/name:train"]
    assert found.given["seed"] == 7
    assert "eval" not in found.given


def test_null_takes_rows_away() -> None:
    assert with_override("data.forget=null").recipe.data.forget == ()


def test_what_was_given_is_what_was_written(recipe_file: Path) -> None:
    given_again = load_recipe(load_recipe(recipe_file).given)
    assert given_again.recipe.method == load_recipe(recipe_file).recipe.method
    assert given_again.origin == ""


def test_a_mapping_is_not_changed() -> None:
    settings: dict[str, Any] = {"method": {"name": "npo"}}
    load_recipe(settings, ["method.beta=0.5"])
    assert settings == {"method": {"name": "npo"}}


def test_a_recipe_can_be_given_again() -> None:
    recipe = with_override("seed=3").recipe
    assert load_recipe(recipe, ["device=cpu"]).recipe == recipe.model_copy(update={"device": "cpu"})


def test_paths_are_looked_up_here_then_beside_the_file(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = recipe_file.parent.parent / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for path in (recipe_file.parent / "forget.jsonl", recipe_file.parent / "retain.jsonl", here / "retain.jsonl"):
        path.write_text("{}")
    (recipe_file.parent / "models" / "tiny").mkdir(parents=True)
    (recipe_file.parent / "tofu").mkdir()
    recipe = load_recipe(recipe_file).recipe
    assert recipe.data.forget[0].path == str(recipe_file.parent / "forget.jsonl")
    assert [source.path for source in recipe.data.retain] == ["retain.jsonl", "org/name:train"]
    assert recipe.model.model_name_or_path == str(recipe_file.parent / "models/tiny")
    assert recipe.data.tofu == str(recipe_file.parent / "tofu")


@pytest.mark.parametrize("name", ["tofu-forget10/grad_diff", "tofu_forget10/grad-diff", "tofu-forget10/grad_diff.yaml"])
def test_a_packaged_recipe_by_name(packaged_folder: Path, name: str) -> None:
    assert load_recipe(name).recipe.method == {"name": "grad_diff"}


def test_packaged_recipes_are_listed_with_their_first_line(packaged_folder: Path) -> None:
    found = packaged.packaged_recipes()
    assert [(recipe.name, recipe.summary) for recipe in found] == [("tofu-forget10/grad_diff", "GradDiff on TOFU")]


def test_an_unknown_recipe_offers_the_nearest(packaged_folder: Path) -> None:
    with pytest.raises(UsageError, match="tofu-forget10/graddiff") as caught:
        load_recipe("tofu-forget10/graddiff")
    assert "tofu-forget10/grad_diff" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"no recipe file missing\.yaml"):
        load_recipe("missing.yaml")


def test_every_recipe_that_comes_along_is_valid() -> None:
    found = packaged.packaged_recipes()
    for recipe in found:
        assert recipe.summary, recipe.name
        load_recipe(recipe.path)


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("train.learning_rte=1", "unknown key train.learning_rte", "did you mean train.learning_rate?"),
        ("learning_rate=1", "unknown key learning_rate", "did you mean train.learning_rate?"),
        ("data.forget={pth: x, path: y}", "unknown key data.forget.0.pth", "did you mean data.forget.path?"),
        ("zzz=1", "unknown key zzz", "known keys of a recipe: kind, model"),
        ("train.learning_rate=fast", "train.learning_rate: expected a number, found 'fast' (str)", ""),
        ("train.learning_rate=-1", "expected a number > 0.0, found -1 (int)", ""),
        ("train.token_budget=big", "train.token_budget: expected a whole number or auto, found 'big' (str)", "Padded"),
        ("train.global_batch_size=2.5", "expected a whole number, found 2.5 (float)", "Forget rows"),
        ("model.dtype=bfloat16", "model.dtype: expected float32, found 'bfloat16' (str)", "lose most"),
        ("kind=forget", "kind: expected unlearn or train, found 'forget' (str)", ""),
        ("train=3", "train: expected a mapping, found 3 (int)", ""),
        ("data.forget=[1]", "data.forget.0: expected a mapping, found 1 (int)", ""),
    ],
)
def test_a_wrong_recipe_is_explained(override: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        with_override(override)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        with_override("train.learning_rte=1", "seed=x")
    assert "train.learning_rte" in caught.value.message
    assert "seed: expected a whole number" in caught.value.message


@pytest.mark.parametrize("override", ["train.learning_rate", "=3", "train..x=1", ".a=1"])
def test_what_is_not_an_override(override: str) -> None:
    with pytest.raises(UsageError, match="is not an override"):
        with_override(override)


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.forget is 'a\.jsonl', not a section"):
        with_override("data.forget.rows=0:3")


@pytest.mark.parametrize("override", ["train.learning-rate=3", "--train.learning_rate=3"])
def test_hyphens_are_underscores(override: str) -> None:
    assert with_override(override).recipe.train.learning_rate == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("true", True), ("null", None), ("[1, 2]", [1, 2]), ("{a: 1}", {"a": 1}), ("a=b", "a=b")],
)
def test_values_are_read_as_yaml(text: str, value: object) -> None:
    assert with_override(f"method.x={text}").recipe.method["x"] == value


@settings(derandomize=True, deadline=None, max_examples=100)
@given(value=st.floats(min_value=1e-12, max_value=1e6, allow_nan=False))
def test_every_learning_rate_python_prints_is_read_back(value: float) -> None:
    assert with_override(f"train.learning_rate={value!r}").recipe.train.learning_rate == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [("a: [", "line 1"), ("seed: 1\nseed: 2\n", "'seed' is written twice"), ("- 1\n", "expected a mapping")],
)
def test_broken_files_are_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=problem) as caught:
        load_recipe(path)
    assert "broken.yaml" in caught.value.message


def test_no_code_runs_from_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("seed: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_recipe(path)


def test_an_empty_file_is_an_empty_recipe(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_recipe(path).recipe == Recipe()


def test_resolved_settings_load_again() -> None:
    recipe = with_override("train.max_steps=3").recipe
    plain = resolved(recipe)
    assert plain["train"]["max_steps"] == 3
    assert plain["train"]["learning_rate"] == 1e-5
    assert load_recipe(plain).recipe == recipe
