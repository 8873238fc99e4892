"""The demo's parts without training: its plan, its progress, its means, its cache, its workers' errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.config.load import load_recipe
from expunge.demo import bases
from expunge.demo.plan import FAST, FULL, METHODS, RETRAINED, SECOND, START, Plan
from expunge.demo.progress import Watch
from expunge.demo.summary import mean_runs
from expunge.demo.workers import Job, carry_out
from expunge.errors import ExpungeError, UsageError
from expunge.runs.run import Run


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(7, FULL, tmp_path / "seed-7", second=True)


def test_the_runs_are_ordinary_recipes(plan: Plan) -> None:
    recipes = {run.name: load_recipe(run.recipe, plan.overrides(run)).recipe for run in plan.runs}
    assert list(recipes) == ["start", "retrained", "retrained_2", "eua", "npo", "grad_diff"]
    trained = {name: [Path(source.path).stem for source in recipe.data.train] for name, recipe in recipes.items()}
    assert trained["start"] == ["forget", "multi_hop", "retain"]
    assert trained["retrained"] == trained["retrained_2"] == ["retain"]
    assert {recipe.seed for name, recipe in recipes.items() if name != "retrained_2"} == {7}
    assert recipes["retrained_2"].seed != 7
    for name in ("eua", "npo", "grad_diff"):
        assert recipes[name].model.model_name_or_path == str(plan.path(START) / "model")
        assert recipes[name].method["name"] == name
        assert [Path(source.path).name for source in recipes[name].data.forget] == ["forget.jsonl"]
    # Everything but the rows is the same for the starting and the retrained model.
    one, two = recipes["start"], recipes["retrained"]
    assert (one.train, one.model, one.data.max_length) == (two.train, two.model, two.data.max_length)
    assert one.data.tokenizer_corpus == two.data.tokenizer_corpus
    assert {"forget", "holdout"} < {Path(source.path).stem for source in one.data.tokenizer_corpus}


def test_equal_effort_for_every_method(plan: Plan) -> None:
    recipes = [load_recipe(run.recipe, plan.overrides(run)).recipe for run in METHODS]
    assert len({(recipe.train.num_train_epochs, recipe.train.global_batch_size) for recipe in recipes}) == 1


def test_methods_wait_for_the_starting_model_only(plan: Plan) -> None:
    jobs = {run.name: plan.job(run) for run in plan.runs}
    assert jobs["start"].after == jobs["retrained"].after == ()
    assert all(jobs[run.name].after == ("7/start",) for run in METHODS)
    assert [step["do"] for step in jobs["eua"].steps] == ["unlearn", "eval", "guard", "ask"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_tells_steps_and_the_whole(plan: Plan) -> None:
    events: list[dict[str, Any]] = []
    clock = Clock()
    job = plan.job(START)
    watch = Watch(events.append, [(job, False)], clock)
    clock.now = 25.0
    watch(job, {"step": 0, "event": {"event": "step", "step": 5, "total": 10, "eta_s": 25.0}})
    assert events[0] == {"event": "phase", "name": "start: training", "done": 5, "total": 10, "eta_s": 25.0}
    assert events[1]["name"] == "demo"
    assert 0 < events[1]["done"] < 50
    assert events[1]["eta_s"] > 25
    clock.now = 50.0
    watch(job, {"finished": 0, "seconds": 50.0})
    watch(job, {"finished": 1, "seconds": 8.0})
    assert [event["text"] for event in events if event["event"] == "note"] == [
        "start: trained in 50 s",
        "start: measured in 8 s",
    ]
    assert (events[-1]["done"], events[-1]["eta_s"]) == (100, 0)


def test_what_was_reused_is_not_said_to_be_trained(plan: Plan) -> None:
    events: list[dict[str, Any]] = []
    job = plan.job(START)
    Watch(events.append, [(job, True)], Clock())(job, {"finished": 0, "seconds": 0.1})
    assert not [event for event in events if event["event"] == "note"]


def score(value: float, **more: Any) -> dict[str, Any]:
    return {
        "value": value,
        "low": None,
        "high": None,
        "n": 10,
        "n_total": 10,
        "ideal": 0.5,
        "direction": "match",
        **more,
    }


def test_the_mean_of_seeds_shows_their_spread() -> None:
    def run(**metrics: Any) -> dict[str, Any]:
        return {"name": "eua", "method": "eua", "path": "p", "cached": False, "metrics": metrics, "skipped": {}}

    (mean,) = mean_runs([[run(a=score(0.1), b=score(1.0))], [run(a=score(0.3))], [run(a=score(0.2, ideal=None))]])
    assert mean["metrics"]["a"]["value"] == pytest.approx(0.2)
    assert mean["metrics"]["a"]["values"] == [0.1, 0.3, 0.2]
    assert (mean["metrics"]["a"]["low"], mean["metrics"]["a"]["high"], mean["metrics"]["a"]["n"]) == (0.1, 0.3, 30)
    assert mean["metrics"]["a"]["ideal"] is None
    assert "b" not in mean["metrics"]
    assert mean["skipped"] == {"b": "not measured for every seed"}


@pytest.fixture
def finished(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan whose starting model is there as far as the cache can tell."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    path = plan.path(START)
    settings = {"data": {"train": [{"path": str(plan.world / "retain.jsonl")}]}, "output_dir": str(path)}
    run = Run.create(path, kind="train", given=settings, resolved=settings)
    run.model_dir.mkdir()
    (run.model_dir / "weights").write_text("w")
    run.append({"event": "step", "step": 1, "loss": 0.5})
    run.update(status="finished")
    return plan


def test_a_kept_run_is_restored_elsewhere(finished: Plan, tmp_path: Path) -> None:
    bases.keep(bases.entry(finished, START, world="w"), finished, START)
    other = Plan(7, FULL, tmp_path / "elsewhere/seed-7")
    assert bases.restore(bases.entry(other, START, world="w"), other.path(START))
    run = Run.open(other.path(START))
    assert run.manifest.resolved["data"]["train"][0]["path"] == str(other.world / "retain.jsonl")
    assert run.manifest.resolved["output_dir"] == str(other.path(START))
    assert (run.model_dir / "weights").read_text() == "w"
    assert run.events()[0]["loss"] == 0.5


def test_another_world_seed_size_or_run_is_another_entry(plan: Plan, tmp_path: Path) -> None:
    keys = {
        bases.entry(plan, START, world="w").key,
        bases.entry(plan, START, world="v").key,
        bases.entry(plan, RETRAINED, world="w").key,
        bases.entry(plan, SECOND, world="w").key,
        bases.entry(Plan(8, FULL, plan.folder), START, world="w").key,
        bases.entry(Plan(7, FAST, plan.folder), START, world="w").key,
    }
    assert len(keys) == 6
    assert bases.entry(Plan(7, FULL, tmp_path / "x"), START, world="w").key in keys


def test_a_cache_that_cannot_be_written_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot be written") as caught:
        bases.require_writable_cache()
    assert "EXPUNGE_CACHE" in str(caught.value.hint)


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_same_error_here(tmp_path: Path) -> None:
    job = Job("7/start", ({"do": "eval", "path": str(tmp_path / "no-such-model")},))
    with pytest.raises(ExpungeError, match="no-such-model") as caught:
        carry_out([job], lambda job, message: None, count=1)
    assert caught.value.exit_code == 2


def test_a_worker_that_dies_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(ExpungeError, match="a worker process ended while at 7/start") as caught:
        carry_out([Job("7/start", ())], lambda job, message: None, count=1)
    assert caught.value.exit_code == 4


def test_a_restored_run_is_still_a_reused_one_when_the_demo_goes_on(finished: Plan, tmp_path: Path) -> None:
    kept = bases.entry(finished, START, world="w")
    bases.keep(kept, finished, START)
    other = Plan(7, FULL, tmp_path / "elsewhere/seed-7").path(START)
    assert bases.restore(kept, other)
    (other / "model/weights").write_text("in place")
    assert bases.restore(kept, other)
    assert (other / "model/weights").read_text() == "in place"
    Run.open(other).update(created="2000-01-01T00:00:00+00:00")
    assert not bases.restore(kept, other), "a run that this demo trained itself"


def test_seeds_are_named_where_there_are_several(plan: Plan) -> None:
    events: list[dict[str, Any]] = []
    jobs = [one.job(START) for one in (plan, Plan(8, FULL, plan.folder))]
    Watch(events.append, [(job, False) for job in jobs], Clock())(jobs[1], {"finished": 0, "seconds": 3.0})
    assert events[0]["text"] == "start (seed 8): trained in 3 s"
