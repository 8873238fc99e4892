"""Which rows an evaluation is about, when nobody names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge import api
from expunge.config.schema import Recipe
from expunge.errors import UsageError
from expunge.evals.recompute import recompute
from expunge.evals.run import EvalOptions, build_suite
from expunge.testing.tiny import tiny_llama, tiny_tokenizer


def rows(path: Path, names: tuple[str, ...]) -> str:
    lines = [json.dumps({"question": f"Who is {name}?", "answer": f"{name} writes novels."}) for name in names]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    return {
        "forget": rows(tmp_path / "forget.jsonl", ("Mira", "Idris")),
        "retain": rows(tmp_path / "retain.jsonl", ("Tove", "Anan", "Lena")),
    }


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def counts(recipe: Recipe) -> dict[str, int]:
    return {split.name: len(split.examples) for split in build_suite("tofu", recipe, EvalOptions()).splits}


def test_a_recipe_of_own_files_is_measured_on_them(own: dict[str, str]) -> None:
    assert counts(Recipe.model_validate({"data": own})) == {"forget": 2, "retain": 3}


def test_the_eval_section_wins(own: dict[str, str]) -> None:
    both = {"forget": own["retain"], "retain": own["forget"]}
    assert counts(Recipe.model_validate({"data": own, "eval": both})) == {"forget": 3, "retain": 2}


def test_forget_rows_alone_are_refused_with_the_key_to_set(own: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="none for retain"):
        counts(Recipe.model_validate({"data": {"forget": own["forget"]}}))


def test_a_starting_model_is_measured_by_a_recipe(own: dict[str, str], model: Path, tmp_path: Path) -> None:
    recipe = {"data": own, "eval": {"token_budget": 256, "limit": 2}}
    before = api.evaluate(model, recipe=recipe, out=tmp_path / "before")
    assert before.scores["forget.probability"].n == 2
    assert before.scores["retain.probability"].n == 2
    assert (tmp_path / "before/manifest.json").exists()


@pytest.mark.slow
def test_an_interrupted_evaluation_keeps_its_trace(own: dict[str, str], model: Path, tmp_path: Path) -> None:
    recipe = {"data": own, "eval": {"token_budget": 256}}

    def interrupt(event: dict[str, object]) -> None:
        if event.get("name") == "generate":
            raise KeyboardInterrupt

    whole = api.evaluate(model, recipe=recipe, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        api.evaluate(model, recipe=recipe, out=tmp_path / "cut", progress=interrupt)
    phases: list[object] = []
    again = api.evaluate(
        model, recipe=recipe, out=tmp_path / "cut", progress=lambda event: phases.append(event.get("name"))
    )
    assert "trace" not in phases
    assert "generate" in phases
    assert again.scores == whole.scores
    assert sorted(path.name for path in again.path.iterdir() if not path.name.startswith(".")) == sorted(
        path.name for path in whole.path.iterdir() if not path.name.startswith(".")
    )


def test_a_quick_look_replaces_no_evaluation(own: dict[str, str], model: Path, tmp_path: Path) -> None:
    options = {"recipe": {"data": own, "eval": {"token_budget": 256}}, "out": tmp_path / "run"}
    whole = api.evaluate(model, **options)
    before = (whole.path / "metrics.json").read_bytes()
    look = api.evaluate(model, **options, limit=1)
    assert look.path.name == f"{whole.path.name}-first-1"
    assert look.scores["retain.probability"].n == 1
    assert (whole.path / "metrics.json").read_bytes() == before
    assert recompute(tmp_path / "run").scores == whole.scores
    assert api.evaluate(model, recipe={"data": own, "eval": {"limit": 2}}, out=tmp_path / "two", limit=2).path.name == (
        whole.path.name
    )
