"""The grammar of a space, goals, fronts, summaries, and what is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import RATE, begun

from expunge.config.load import load_recipe, resolved
from expunge.config.yaml import parse_yaml
from expunge.errors import ExpungeError, MetricError, UsageError
from expunge.sweep.goal import front, parse_goal, require_known, require_measured
from expunge.sweep.plan import read_sweep
from expunge.sweep.run import Options, begin, describe, look, sweep
from expunge.sweep.space import Dimension, as_override, parse_dimension, parse_space, space_size, split_arguments
from expunge.sweep.summary import Summary, TrialResult, with_front

pytest.importorskip("optuna", minversion="5")


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("uniform(0.5, 2)", "uniform", (0.5, 2)),
        ("uniform(0,1,0.25)", "uniform", (0, 1, 0.25)),
        (" loguniform( 1e-6 , 1e-3 )", "loguniform", (1e-6, 1e-3)),
        ("int(-1, 5)", "int", (-1, 5)),
        ("logint(1, 1000)", "logint", (1, 1000)),
        ("choice(npo, simnpo)", "choice", ("npo", "simnpo")),
        ("choice([], [{name: gru}], null, 1, true)", "choice", ([], [{"name": "gru"}], None, 1, True)),
    ],
)
def test_distributions(text: str, name: str, values: tuple[Any, ...]) -> None:
    found = parse_dimension("a.b", text)
    assert (found.name, found.values) == (name, values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loguniorm(1, 2)", "did you mean 'loguniform'?"),
        ("3", "write one of: uniform(LOW, HIGH)"),
        ("uniform(2, 1)", "2 is not below 1"),
        ("uniform(1, 1)", "1 is not below 1"),
        ("uniform(a, b)", "expected finite numbers"),
        ("uniform(0, .inf)", "expected finite numbers"),
        ("uniform(0)", "write uniform(LOW, HIGH)"),
        ("uniform(0, 1, 2)", "a step of 2 does not fit in"),
        ("int(0.5, 2)", "expected whole numbers"),
        ("int(false, true)", "expected whole numbers"),
        ("loguniform(0, 1)", "0 has no logarithm"),
        ("logint(1, 2, 1)", "write logint(LOW, HIGH)"),
        ("choice(a)", "fewer than two values"),
        ("choice(a, a)", "the same value twice"),
        ("choice(a, [)", "not valid YAML"),
    ],
)
def test_what_is_no_distribution(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"a\.b|distribution") as caught:
        parse_dimension("a.b", text)
    assert said in str(caught.value)


def test_arguments_are_told_apart() -> None:
    space, overrides = split_arguments(
        ["--train.learning-rate=loguniform(1e-6,1e-3)", "train.max_steps=4", "data.forget={path: a.jsonl, rows: '0:4'}"]
    )
    assert space == {"train.learning_rate": "loguniform(1e-6,1e-3)"}
    assert overrides == ["train.max_steps=4", "data.forget={path: a.jsonl, rows: '0:4'}"]


def test_a_section_may_be_nested() -> None:
    found = parse_space({"train": {"learning_rate": "uniform(1, 2)"}, "method.beta": "choice(1, 2)"})
    assert [dimension.key for dimension in found] == ["train.learning_rate", "method.beta"]
    with pytest.raises(UsageError, match="nothing to search"):
        parse_space({})


@pytest.mark.parametrize(
    "value", ["npo", "1e-5", "true", "a b", " a", "a: b", "#x", "", "é'\"", 1e-05, 3, True, None, [1, "x"], {"a": [1]}]
)
def test_overrides_read_back(value: Any) -> None:
    key, _, text = as_override("a.b", value).partition("=")
    assert (key, parse_yaml(text, origin="")) == ("a.b", value)


@pytest.mark.parametrize(
    ("texts", "size"),
    [
        ({"a": "choice(1, 2, 3)", "b": "int(2, 5)"}, 12),
        ({"a": "uniform(0, 1, 0.1)"}, 11),
        ({"a": "int(0, 10, 4)"}, 3),
        ({"a": "choice(1, 2)", "b": "uniform(0, 1)"}, float("inf")),
    ],
)
def test_the_size_of_a_space(texts: dict[str, str], size: float) -> None:
    assert space_size(parse_space(texts)) == size


START = {"retain.extraction_strength": 0.8, "forget.extraction_strength": 0.9, "x": -1.0}


@pytest.mark.parametrize(
    ("text", "value", "violation"),
    [
        ("x >= 2", 3.0, -1.0),
        ("x>=2", 1.5, 0.5),
        ("x < 2", 3.0, 1.0),
        ("x <= 2", 2.0, 0.0),
        ("x < 2", 2.0, 1e-9),
        ("x >= start", -1.0, 0.0),
        ("x <= 2 * start", -1.0, 1.0),
    ],
)
def test_conditions(text: str, value: float, violation: float) -> None:
    (found,) = parse_goal(subject_to=[text]).constraints
    assert found.violation({"x": value}, START) == pytest.approx(violation)
    assert found.met({"x": value}, START) == (violation <= 0)


@pytest.mark.parametrize("text", ["x", "x >= y", "x >= nan", "x >= 2 * stat", "x == 2", ">= 2", "x >= a * start"])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(UsageError, match="is not a condition"):
        parse_goal(subject_to=[text])


def test_the_goal_unless_said() -> None:
    goal = parse_goal()
    assert goal.in_words() == (
        "minimise forget.extraction_strength subject to retain.extraction_strength >= 0.9 * start"
    )
    assert [axis.direction for axis in goal.axes] == ["minimise", "maximise"]
    assert parse_goal(**goal.to_json()) == goal
    assert parse_goal(["a"], ["b"]).constraints == ()
    with pytest.raises(UsageError, match="twice"):
        parse_goal(["a"], ["a"])


def test_metrics_are_checked_by_name_and_by_what_was_measured() -> None:
    require_known(parse_goal(["forget_cloze.extraction_strength"], ["model_utility"]), "world")
    require_known(parse_goal(["anything"]), "someone's own suite")
    with pytest.raises(UsageError, match=r"forget\.extraction_strengh") as caught:
        require_known(parse_goal(["forget.extraction_strengh"]), "tofu")
    assert "forget.extraction_strength" in str(caught.value)
    scores = {"a": {"direction": "lower"}, "b": {"direction": "higher"}}
    assert require_measured(parse_goal(["a"], ["b"]), scores, {}) == []
    assert "better when higher" in require_measured(parse_goal(["b"], subject_to=["a<1"]), scores, {})[0]
    with pytest.raises(MetricError, match="no --reference given"):
        require_measured(parse_goal(["a"], ["c"]), scores, {"c": "no --reference given"})


def test_the_front() -> None:
    points = [(0.0, 3.0), (1.0, 1.0), (2.0, 2.0), (1.0, 1.0), (3.0, 0.0), (3.0, 0.5)]
    assert front(points) == [0, 1, 3, 4]
    assert front([]) == []


def result(number: int, forget: float | None, retain: float, state: str = "finished") -> TrialResult:
    values = {} if forget is None else {"forget.extraction_strength": forget, "retain.extraction_strength": retain}
    feasible = parse_goal().feasible(values, START) if values else None
    return TrialResult(number, state, {"train.learning_rate": 0.001}, values, feasible, 1.0, None)


def test_the_summary_of_made_up_values(here: Path) -> None:
    made = begun(here, trials=6, subject_to=None)
    trials = [
        result(0, 0.9, 0.8),
        result(1, 0.3, 0.75),
        result(2, 0.3, 0.78),
        result(3, 0.0, 0.1),
        result(4, 0.5, 0.72),
        result(5, None, 0, "failed"),
    ]
    found = Summary(made, START, tuple(with_front(made.goal, trials)))
    assert found.finished
    assert [trial.number for trial in found.pareto] == [3, 2, 0]
    best = found.best
    assert best is not None
    assert best.number == 2, "as little is left as in trial 1, and more is kept"
    found.write()
    document = json.loads((made.root / "summary.json").read_text())
    assert document["best"]["command"] == (
        f"expunge unlearn {here}/recipe.yaml train.learning_rate=0.001 output_dir=runs/sweep-2"
    )
    recipe = parse_yaml((made.root / "best.yaml").read_text(), origin="")
    assert recipe["train"]["learning_rate"] == 0.001
    assert recipe["data"]["forget"] == [{"path": "forget.jsonl"}]
    assert "output_dir" not in recipe
    assert "tofu" not in recipe["data"]
    without = found._replace(trials=tuple(trial for trial in found.trials if trial.number in (3, 5)))
    without.write()
    assert without.best is None
    assert not (made.root / "best.yaml").exists()


def test_a_front_of_several_objectives_keeps_the_conditions() -> None:
    goal = parse_goal(["forget.extraction_strength"], ["retain.extraction_strength"], ["x >= 0"])
    found = with_front(goal, [result(0, 0.5, 0.75), result(1, 0.0, 0.9)._replace(feasible=False)])
    assert [trial.pareto for trial in found] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.learning_rat=uniform(0.1, 1)"], "did you mean train.learning_rate?"),
        (["learning_rate=uniform(0.1, 1)"], "did you mean train.learning_rate?"),
        (["train.max_steps=uniform(1, 5)"], "train.max_steps: expected a whole number"),
        (["train.learning_rate=uniform(-1, 1)"], "expected a number > 0"),
        (["train.optim=choice(adamw, lion)"], "train.optim: expected adamw"),
        (["train.optim=sgd", "train.optim=choice(adamw, sgd)"], "train.optim is set and searched"),
        (["data.max_length=int(10, 20)"], "data.max_length cannot be searched"),
        (["kind=train", RATE], "kind: train"),
        (["push_to_hub=true", RATE], "would push every trial"),
        (["model.model_name_or_path=null", RATE], "no model given"),
        ([], "nothing to search"),
    ],
)
def test_refused_before_anything_is_written(here: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        sweep("recipe.yaml", arguments, out="sweep")
    assert said in str(caught.value)
    assert not (here / "sweep").exists()


def test_a_wrong_metric_is_refused_before_anything_is_written(here: Path) -> None:
    with pytest.raises(UsageError, match="unknown metric"):
        sweep("recipe.yaml", [RATE], minimise=["forget.strength_of_extraction"], out="sweep")
    assert not (here / "sweep").exists()


def test_the_recipe_may_hold_the_space(here: Path) -> None:
    text = (here / "recipe.yaml").read_text()
    (here / "own.yaml").write_text(f"{text}sweep:\n  {RATE.replace('=', ': ')}\n  train: {{max_steps: 'int(2, 9)'}}\n")
    assert "sweep" not in resolved(load_recipe("own.yaml").recipe)
    options = Options(parse_goal(), 4, 0, prune=False, reference=None)
    found = describe("own.yaml", {"train.learning_rate": "uniform(0.1, 1)"}, ["train.max_steps=4"], options, "sweep")
    assert [(one.key, one.name) for one in found.space] == [("train.learning_rate", "uniform")]
    assert found.settings["train"]["max_steps"] == 4
    assert "sweep" not in found.settings


def test_a_sweep_is_taken_up_or_refused(here: Path) -> None:
    first = begun(here, RATE, trials=2)
    assert read_sweep(first.root) == first
    assert begun(here, RATE, trials=5).trials == 5
    assert begun(here, RATE, trials=3).trials == 5
    with pytest.raises(UsageError, match=r"space: .*uniform\(1, 2\)"):
        begun(here, "train.learning_rate=uniform(1, 2)")
    with pytest.raises(UsageError, match="other settings: seed: 0 -> 1"):
        begun(here, RATE, seed=1)
    (here / "full").mkdir()
    (here / "full/notes.txt").touch()
    with pytest.raises(UsageError, match="no sweep lies there"):
        begin(first._replace(root=here / "full"))
    with pytest.raises(UsageError, match="no sweep lies in"):
        look(here / "full")
    (first.root / "sweep.json").write_text("{")
    with pytest.raises(ExpungeError, match="cannot be read"):
        look(first.root)


def test_probes_meet_what_a_key_cannot_take() -> None:
    assert Dimension("a", "", "int", (1, 5)).probes == (1, 5)
    low, high, between = Dimension("a", "", "uniform", (1, 5)).probes
    assert (low, high) == (1, 5)
    assert between not in (2, 3, 4)
