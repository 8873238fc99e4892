"""Evaluations while training: what they leave alone, which point is the best, when a run ends early, what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_world import by_default, questions

from expunge import api
from expunge.config.schema import KeepBestRule, Recipe, TrainSection
from expunge.data.example import prompt_text
from expunge.errors import DataError, UsageError
from expunge.evals.suite import Measured
from expunge.methods.npo import NPO
from expunge.metrics.score import Direction, Score
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.best import Best, Keeper
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Engine
from expunge.train.monitor import VOLATILE
from expunge.train.watch import Watcher, require_watchable

FORGET, RETAIN = "forget.extraction_strength", "retain.extraction_strength"
MakeEngine = Callable[..., Engine]


def score(value: float, direction: Direction = "lower") -> Score:
    return Score(value, None, None, 4, 4, None, direction)


def measured(forget: float, retain: float = 1.0) -> Measured:
    return Measured({FORGET: score(forget), RETAIN: score(retain, "higher")}, {"forget_quality": "no --reference"})


def keeper(metric: str = FORGET, *, patience: int | None = None, suite: str = "tofu", **rule: Any) -> Keeper:
    return Keeper(KeepBestRule.model_validate({"metric": metric, **rule}), patience=patience, suite=suite)


def judged(one: Keeper, values: Sequence[Measured]) -> list[bool]:
    return [one.judge(step, value).best for step, value in enumerate(values, 1)]


# Which point is the best.


def test_less_of_the_forgotten_is_better_and_a_tie_keeps_the_earlier() -> None:
    one = keeper()
    assert judged(one, [measured(v) for v in (0.5, 0.2, 0.2, 0.3, 0.1)]) == [True, True, False, False, True]
    assert one.best == Best(5, FORGET, 0.1)


@pytest.mark.parametrize(
    ("rule", "best"), [({"metric": RETAIN}, 2), ({"metric": RETAIN, "direction": "down"}, 3), ({"metric": FORGET}, 1)]
)
def test_the_direction_is_the_metrics_own_unless_said(rule: dict[str, Any], best: int) -> None:
    one = keeper(**rule)
    judged(one, [measured(0.1, 0.5), measured(0.2, 0.9), measured(0.3, 0.4)])
    assert one.best is not None
    assert one.best.step == best


def test_a_point_that_breaks_a_condition_is_never_the_best() -> None:
    one = keeper(subject_to=f"{RETAIN} >= 0.8")
    points = [measured(0.1, 0.7), measured(0.5, 0.8), measured(0.2, 0.79), measured(0.4, 0.9)]
    assert judged(one, points) == [False, True, False, True]
    assert one.judge(9, measured(0.0, 0.1)).broken == (f"{RETAIN} >= 0.8",)


def test_patience_counts_evaluations_without_a_better_one() -> None:
    one = keeper(patience=2)
    spent = []
    for step, value in enumerate((0.5, 0.6, 0.4, 0.4, 0.5), 1):
        one.judge(step, measured(value))
        spent.append(one.spent)
    assert spent == [False, False, False, False, True]


def test_the_state_of_a_keeper_goes_into_json_and_back() -> None:
    one, two = keeper(patience=2), keeper(patience=2)
    judged(one, [measured(0.5), measured(0.6)])
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (two.best, two.waited) == (Best(1, FORGET, 0.5), 1)
    assert keeper().state_dict() == {"best": None, "waited": 0}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"metric": "forget.extraction_strengh"}, "did you mean 'forget.extraction_strength'"),
        ({"metric": FORGET, "subject_to": "retain.probabilty > 1"}, "did you mean 'retain.probability'"),
        ({"metric": FORGET, "subject_to": "retain.probability"}, "train.keep_best.subject_to 'retain.probability'"),
        ({"metric": "forget.truth_ratio"}, "best where it is as in a retrained model"),
        ({"metric": "membership.loss_auc"}, "neither low nor high"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        keeper(**rule)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"metric": "forget_quality"}, "forget_quality was not measured: no --reference"),
        ({"metric": FORGET, "subject_to": "forget_quality > 0.1"}, "forget_quality was not measured"),
        ({"metric": "holdout.probability", "direction": "up"}, "unknown metric 'holdout.probability'"),
    ],
)
def test_a_metric_that_is_not_measured_is_named_with_the_reason(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        keeper(**rule).judge(1, measured(0.1))


def test_of_a_suite_of_somebodys_own_the_score_says_the_direction() -> None:
    own = Measured({"fluency": score(1.0, "higher"), "odd": score(0.5, "match")}, {})
    better = Measured({"fluency": score(2.0, "higher"), "odd": score(0.5, "match")}, {})
    assert judged(keeper("fluency", suite="mine"), [own, better]) == [True, True]
    with pytest.raises(UsageError, match="neither low nor high"):
        keeper("odd", suite="mine").judge(1, own)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"keep_best": FORGET}, "train.keep_best compares evaluations, and there are none"),
        ({"eval_every": 2, "early_stopping_patience": 2}, "nothing says of what"),
        ({"eval_every": 2, "keep_best": "nothing"}, "unknown metric 'nothing'"),
        ({"report_to": "tensorbord"}, "did you mean 'tensorboard'"),
    ],
)
def test_settings_that_no_run_could_follow(train: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        require_watchable(Recipe.model_validate({"train": train}), NPO())


def test_gradients_of_a_divided_model_are_not_measured() -> None:
    settings = {"train": {"eval_every": 2, "fsdp": True}, "eval": {"gradnorm": True}}
    with pytest.raises(UsageError, match=r"eval\.gradnorm differentiates one text at a time, and train\.fsdp divides"):
        require_watchable(Recipe.model_validate(settings), NPO())
    require_watchable(Recipe.model_validate(settings | {"train": {"eval_every": 2}}), NPO())


def test_a_method_that_makes_its_model_at_the_end_is_not_measured_before() -> None:
    recipe = Recipe.model_validate({"train": {"eval_every": 2}})
    with pytest.raises(UsageError, match="alkn makes its model of the trained weights after the last step"):
        require_watchable(recipe, by_default("alkn"))
    require_watchable(recipe, NPO())


# The watch of an engine.


class Scripted:
    """An evaluator that answers from a list, and disturbs what it can on the way."""

    def __init__(self, values: Mapping[int, Measured]) -> None:
        self.values = values
        self.kept: set[int] = set()

    def __call__(self, engine: Engine) -> Measured:
        assert not engine.model.training
        torch.manual_seed(engine.step)
        torch.rand(7)
        self.kept.add(engine.step)
        return self.values[engine.step]

    def keep_only(self, steps: Collection[int]) -> None:
        self.kept &= set(steps)


def values(*forget: float) -> dict[int, Measured]:
    return {step: measured(value) for step, value in enumerate(forget, 1)}


def watched(
    make_engine: MakeEngine, scripted: Mapping[int, Measured], every: int = 1, patience: int | None = None, **rule: Any
) -> tuple[Engine, list[dict[str, Any]]]:
    # Dropout draws from the generator that an evaluation must leave alone.
    model = tiny_llama(len(tiny_tokenizer()), seed=1, attention_dropout=0.2)
    engine = make_engine(NPO(), model=model, steps=6)
    events: list[dict[str, Any]] = []
    compared = keeper(patience=patience, **rule) if scripted else None
    if scripted:
        settings = TrainSection(eval_every=every)
        engine.watch = Watcher(settings, emit=events.append, evaluate=Scripted(scripted), keeper=compared)
    return engine, events


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


def same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_evaluations_change_nothing(make_engine: MakeEngine) -> None:
    plain, plain_events = watched(make_engine, {})
    plain.fit(emit=plain_events.append)
    engine, events = watched(make_engine, values(*[0.5] * 6))
    engine.fit(emit=events.append)
    steps = [event for event in events if event["event"] == "step"]
    for one, two in zip(steps, plain_events, strict=True):
        assert {k: v for k, v in one.items() if k not in VOLATILE} == {
            k: v for k, v in two.items() if k not in VOLATILE
        }
    assert same(weights(engine), weights(plain))
    assert torch.equal(engine.state_dict()["rng"], plain.state_dict()["rng"])
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_evaluations_come_every_so_many_steps_and_after_the_last(make_engine: MakeEngine) -> None:
    engine, events = watched(make_engine, values(*[0.5] * 6), every=4)
    engine.fit(emit=events.append)
    found = [event for event in events if event["event"] == "eval"]
    assert [(event["step"], event["best"]) for event in found] == [(4, True), (6, False)]
    assert found[0]["metrics"] == {FORGET: 0.5, RETAIN: 1.0}
    assert found[0]["shown"] == [FORGET]


def test_the_weights_of_the_best_point_come_back(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine, events = watched(make_engine, values(0.5, 0.2, 0.3, 0.2, 0.4, 0.6))
    saved = Checkpoints(tmp_path / "checkpoints")
    after: dict[int, dict[str, torch.Tensor]] = {}

    def emit(event: dict[str, Any]) -> None:
        events.append(event)
        after[event["step"]] = weights(engine)

    engine.fit(emit=emit, checkpoints=saved)
    assert (saved.steps(), saved.kept) == ([2, 6], 2)
    watcher = engine.watch
    assert isinstance(watcher, Watcher)
    watcher.finish(engine, saved)
    assert same(weights(engine), after[2])
    assert not same(weights(engine), after[6])
    assert events[-1]["text"] == f"the weights of step 2 become the model: {FORGET} 0.2"
    assert isinstance(watcher.evaluate, Scripted)
    assert watcher.evaluate.kept == {2}


def test_a_run_without_a_point_that_counts_keeps_its_last_weights_and_says_so(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine, events = watched(make_engine, values(*[0.5] * 6), subject_to=f"{RETAIN}>2")
    saved = Checkpoints(tmp_path / "checkpoints")
    engine.fit(emit=events.append, checkpoints=saved)
    assert engine.watch is not None
    last = weights(engine)
    engine.watch.finish(engine, saved)  # type: ignore[attr-defined]
    assert same(weights(engine), last)
    assert events[-1]["event"] == "warning"
    assert f"no evaluation satisfied train.keep_best.subject_to ({RETAIN}>2)" in events[-1]["text"]


def test_a_run_ends_early_when_nothing_gets_better(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine, events = watched(make_engine, values(0.5, 0.2, 0.3, 0.2, 0.1, 0.1), patience=2)
    saved = Checkpoints(tmp_path / "checkpoints")
    engine.fit(emit=events.append, checkpoints=saved)
    assert (engine.step, engine.ended) == (4, True)
    assert isinstance(engine.watch, Watcher)
    engine.watch.finish(engine, saved)
    said = [event["text"] for event in events if event["event"] == "note"]
    assert said == [
        f"ended after step 4 of 6: 2 evaluations in a row without a better {FORGET}",
        f"the weights of step 2 become the model: {FORGET} 0.2",
    ]
    again, more = watched(make_engine, values(*[9.0] * 6), patience=2)
    assert saved.load(again) == 4
    again.fit(emit=more.append, checkpoints=saved)
    assert (again.step, more) == (4, []), "a run that has ended does not go on"


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_killed_run_comes_to_the_same_decisions(stop: int, make_engine: MakeEngine, tmp_path: Path) -> None:
    script = values(0.5, 0.2, 0.3, 0.25, 0.3, 0.1)
    whole, events = watched(make_engine, script, patience=4)
    whole.fit(emit=events.append, checkpoints=Checkpoints(tmp_path / "whole"))
    saved = Checkpoints(tmp_path / "killed")
    killed, _ = watched(make_engine, script, patience=4)
    killed.settings = killed.settings.model_copy(update={"save_steps": 1})
    with pytest.raises(SystemExit):
        killed.fit(emit=lambda event: exit() if event["step"] == stop else None, checkpoints=saved)
    resumed, more = watched(make_engine, script, patience=4)
    assert saved.load(resumed) == stop - 1
    resumed.fit(emit=more.append, checkpoints=saved)
    assert isinstance(whole.watch, Watcher)
    assert isinstance(resumed.watch, Watcher)
    assert resumed.watch.state_dict() == whole.watch.state_dict()
    told = [{k: v for k, v in event.items() if k not in VOLATILE} for event in events if event["step"] >= stop]
    assert [{k: v for k, v in event.items() if k not in VOLATILE} for event in more] == told
    assert same(weights(resumed), weights(whole))


# Whole runs.


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Six steps on a model whose answers end at once, as most tokens end an answer."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), seed=1)
    model.generation_config.eos_token_id = list(range(60, len(tokenizer)))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for role in ("forget", "retain"):
        rows = [{"question": prompt_text(row), "answer": row.answer} for row in questions(role, 8)]
        (tmp_path / f"{role}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return {
        "model": {"model_name_or_path": str(tmp_path / "model")},
        "data": {"forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl"), "max_length": 256},
        "method": {"name": "npo"},
        "train": {"learning_rate": 1e-3, "max_steps": 5, "global_batch_size": 4, "token_budget": 512},
        "eval": {"limit": 4},
        "device": "cpu",
    }


WATCHED = ("train.eval_every=2", "train.keep_best={metric: forget.probability, direction: up}")


def unlearn(recipe: dict[str, Any], out: Path, *overrides: str, progress: Any = None) -> Run:
    return Run.open(api.unlearn(recipe, f"output_dir={out}", *overrides, progress=progress).path)


def test_a_run_keeps_its_best_point(recipe: dict[str, Any], tmp_path: Path) -> None:
    plain = unlearn(recipe, tmp_path / "plain", "train.save_total_limit=9", "train.save_steps=2")
    run = unlearn(recipe, tmp_path / "run", *WATCHED)
    found = {event["step"]: event for event in run.events() if event["event"] == "eval"}
    assert list(found) == [2, 4, 5]
    best = run.manifest.best
    assert best is not None
    assert (best.step, best.metric) == (2, "forget.probability"), "which falls from step to step"
    assert best.value == found[2]["metrics"]["forget.probability"]
    assert (run.manifest.steps, run.manifest.status, run.manifest.stop_reason) == (5, "finished", None)
    after_two = load_file(plain.checkpoint_dir(2) / "model.safetensors")
    model = load_file(run.model_dir / "model.safetensors")
    assert all(torch.equal(model[name], tensor) for name, tensor in after_two.items())

    points = {path.name: sorted(file.name for file in path.iterdir()) for path in sorted(run.watch_dir.iterdir())}
    tables = ["generations.parquet", "metrics.json", "spec.json", "trace.parquet"]
    assert points == {"step-000002": tables, "step-000004": ["metrics.json"], "step-000005": ["metrics.json"]}
    final = api.evaluate(run.path, recipe=None)
    assert {name: value.value for name, value in final.scores.items()} == pytest.approx(found[2]["metrics"], rel=1e-5)

    removed = purge(run)
    assert sum("watch" in table.path.parts for table in removed.tables) == 2
    assert not purge(run).tables


def test_a_killed_run_ends_as_one_that_was_not(recipe: dict[str, Any], tmp_path: Path) -> None:
    settings = (*WATCHED, "train.save_steps=1", "train.early_stopping_patience=1")
    whole = unlearn(recipe, tmp_path / "whole", *settings)
    assert (whole.manifest.steps, whole.manifest.stop_reason) == (4, "early")

    def kill(event: dict[str, Any]) -> None:
        if event.get("event") == "eval" and event["step"] == 4:
            raise SystemExit

    with pytest.raises(SystemExit):
        unlearn(recipe, tmp_path / "killed", *settings, progress=kill)
    killed = unlearn(recipe, tmp_path / "killed", *settings)
    assert killed.manifest.best == whole.manifest.best
    assert (killed.manifest.steps, killed.manifest.stop_reason) == (4, "early")
    assert load_file(killed.model_dir / "model.safetensors").keys()
    for name, tensor in load_file(whole.model_dir / "model.safetensors").items():
        assert torch.equal(load_file(killed.model_dir / "model.safetensors")[name], tensor)


def test_rows_that_cannot_be_measured_are_said_before_training(recipe: dict[str, Any], tmp_path: Path) -> None:
    long = {"question": "Who?", "answer": "Vane " * 600}
    (tmp_path / "long.jsonl").write_text(json.dumps(long), encoding="utf-8")
    recipe["eval"] = {"forget": str(tmp_path / "long.jsonl"), "retain": recipe["data"]["retain"]}
    with pytest.raises(DataError, match=r"1 of 9 tofu rows do not fit into .* \(forget row 0\)"):
        unlearn(recipe, tmp_path / "run", "train.eval_every=2")
    assert not (tmp_path / "run").exists()
