"""One matrix over all methods, on whole runs: each lowers its own objective, comes back from disk and from a kill bit
for bit, and touches nothing it must not. A new method is covered by its line in the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from method_runs import STEPS, STOP_AFTER, Done, Recorder, World, build_world, nll, recipe, saved
from transformers import AutoModelForCausalLM

from expunge.catalog import METHODS
from expunge.cli.ls_facts import method_facts

DETACHED = {"wga", "tnpo", "wtnpo", "satimp", "simsat", "simimp"}
"""Weighted by what the model itself says, without gradient: the loss of another step has other weights and cannot be
compared, but what they all ascend can."""
ONE_STEP = {"iau"}
"""Methods that are over after one step, so that there is no middle to be killed in."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("methods"))


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_keeps_its_promises(name: str, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    files, recorder = world.digest(), Recorder(monkeypatch, name)
    whole = recorder.run(recipe(world, name, tmp_path / "whole"))
    assert len(whole.steps) == (1 if name in ONE_STEP else STEPS)

    starts_from_the_starting_model(whole, world)
    lowers_its_objective(whole, recorder, world, name, tmp_path)
    reloads_bit_equal(whole)
    moves_what_it_trains_and_nothing_else(whole, name)
    draws_rows_as_every_method_does(whole)
    if name not in ONE_STEP:
        resumes_bit_equal(whole, recorder, recipe(world, name, tmp_path / "killed"))
    assert world.digest() == files, "its input"
    assert listed(name)["reductions"] == sorted(recorder.reductions), "run: python tests/methods/catalogue_facts.py"


def listed(name: str) -> dict[str, Any]:
    """What `expunge ls methods --json` says of a method."""
    return next(facts for facts in method_facts() if facts["name"] == name)


def starts_from_the_starting_model(whole: Done, world: World) -> None:
    """Whatever it made before the first step."""
    start = saved(world.model)
    assert all(torch.equal(start[key], value) for key, value in whole.before.items())


def lowers_its_objective(whole: Done, recorder: Recorder, world: World, name: str, folder: Path) -> None:
    """Over the whole forget set: the last step's loss is below the first one's."""
    if name in DETACHED:
        assert nll(whole.path / "model", world.folder / "forget.jsonl") > nll(
            world.model, world.folder / "forget.jsonl"
        )
        return
    steps = whole.steps
    if name in ONE_STEP:
        again: Any = recipe(world, name, folder / "again")
        again["model"]["model_name_or_path"] = str(whole.path / "model")
        steps = [*steps, *recorder.run(again).steps]
    assert steps[-1]["loss"] < steps[0]["loss"], [step["loss"] for step in steps]


def reloads_bit_equal(whole: Done) -> None:
    loaded = dict(AutoModelForCausalLM.from_pretrained(whole.path / "model").named_parameters())
    assert loaded.keys() == whole.after.keys()
    assert all(torch.equal(loaded[key], value) for key, value in whole.after.items())


def moves_what_it_trains_and_nothing_else(whole: Done, name: str) -> None:
    moved = {key for key, value in whole.after.items() if not torch.equal(value, whole.before[key])}
    assert moved <= whole.trained
    if not METHODS.load(name)().wrappers():
        assert moved == whole.trained


def draws_rows_as_every_method_does(whole: Done) -> None:
    """Which rows a step sees is the recipe's matter: every forget row once an epoch, nothing drawn beyond the rest."""
    for step in whole.drawn:
        assert sorted(step["forget"]) == list(range(8))
        assert set(step.get("retain", ())) <= set(range(12))


def resumes_bit_equal(whole: Done, recorder: Recorder, given: dict[str, Any]) -> None:
    recorder.run(given, stop_after=STOP_AFTER)
    torch.manual_seed(99)
    resumed = recorder.run(given)
    assert resumed.steps == whole.steps
    assert len(resumed.drawn) == STEPS - STOP_AFTER + 1, "it did not continue from its checkpoint"
    assert resumed.drawn == whole.drawn[STOP_AFTER - 1 :]
    for key, value in whole.after.items():
        assert torch.equal(resumed.after[key], value), key
