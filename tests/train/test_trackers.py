"""What trackers are told, read back from what they wrote; and what happens when one cannot be used or fails."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from expunge import api
from expunge.config.schema import Recipe
from expunge.errors import UsageError
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train import trackers
from expunge.train.trackers import Place, Trackers, require_trackers

STEP = {"event": "step", "step": 1, "total": 3, "epoch": 0, "lr": 1e-3, "loss": 1.5, "forget": 0.5, "tokens_per_s": 9.0}
EVAL = {"event": "eval", "step": 1, "total": 3, "metrics": {"forget.probability": 0.25}, "shown": [], "best": True}


@pytest.fixture(autouse=True)
def state() -> None:
    """What the engine's `Accelerator` would have set up."""
    PartialState(cpu=True)


def no_warning(text: str) -> None:
    raise AssertionError(text)


def require(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value of a TensorBoard folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: {item.step: item.value for item in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("name", "said"), [("tensorbord", "did you mean 'tensorboard'"), ("mlflow", "known: tensorboard, wandb, trackio")]
)
def test_an_unknown_tracker_is_named_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        require_trackers((name,))


@pytest.mark.parametrize(("name", "install"), [("tensorboard", 'pip install "expunge[trackers]"'), ("wandb", "wandb")])
def test_a_package_that_is_missing_is_said_before_training(
    name: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=f"names {name}, which is not installed") as caught:
        require_trackers((name,))
    assert install in str(caught.value.hint)


def test_tensorboard_holds_every_step_and_evaluation(tmp_path: Path) -> None:
    require("tensorboard")
    place = Place(tmp_path, "2026-01-01T00:00:00+00:00")
    told = Trackers(("tensorboard",), place=place, settings={"seed": 3, "data": {"forget": ["a"]}}, warn=no_warning)
    told.start(1)
    told.log(STEP)
    told.log({**STEP, "step": 2, "loss": 1.25})
    told.log(EVAL)
    told.close()
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss"] == {1: 1.5, 2: 1.25}
    assert found["eval/forget.probability"] == {1: 0.25}
    assert {"train/lr", "train/forget", "train/tokens_per_s", "train/epoch"} <= found.keys()
    assert not {"train/step", "train/total", "eval/best"} & found.keys()


def test_what_was_told_before_a_kill_does_not_hold_after_it(tmp_path: Path) -> None:
    require("tensorboard")
    for first, loss in ((1, 9.0), (2, 1.0)):
        told = Trackers(("tensorboard",), place=Place(tmp_path, "now"), settings={}, warn=no_warning)
        told.start(first)
        for step in range(first, 4):
            told.log({**STEP, "step": step, "loss": loss})
        told.close()
    assert scalars(tmp_path / "tensorboard")["train/loss"] == {1: 9.0, 2: 1.0, 3: 1.0}


class Fails:
    """A tracker that works for one call."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.configuration: Mapping[str, Any] = {}

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.configuration = values

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.calls.append(step)
        if step > 1:
            raise OSError("the connection is gone\nand more")

    def finish(self) -> None:
        self.calls.append("finish")


def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Fails()
    monkeypatch.setattr(trackers, "_made", lambda name, place, first: one)
    said: list[str] = []
    settings = {"a": {"api_key": "x"}, "b": None}
    told = Trackers(("wandb",), place=Place(tmp_path, "now"), settings=settings, warn=said.append)
    told.start(1)
    for step in (1, 2, 3):
        told.log({**STEP, "step": step})
    told.close()
    assert one.calls == ["start", 1, 2]
    assert said == ["the tracker wandb failed and is told nothing more: OSError: the connection is gone"]
    assert one.configuration == {"a.api_key": "[redacted]", "b": "null"}


def test_a_tracker_that_cannot_start_stops_the_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, place: Place, first: int) -> Any:
        raise RuntimeError("no API key")

    monkeypatch.setattr(trackers, "_made", refuse)
    told = Trackers(("wandb",), place=Place(tmp_path, "now"), settings={}, warn=no_warning)
    with pytest.raises(UsageError, match="the tracker wandb could not be started: RuntimeError: no API key") as caught:
        told.start(1)
    assert "WANDB_MODE=offline" in str(caught.value.hint)


def test_a_run_is_known_again_when_it_is_resumed(tmp_path: Path) -> None:
    one = Place(tmp_path / "run", "2026-01-01T00:00:00+00:00")
    assert one.id == Place(tmp_path / "run", one.created).id
    assert len({one.id, one._replace(created="later").id, one._replace(folder=tmp_path).id}) == 3


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("wandb")
    for key, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path), "PROJECT": "ours"}.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    told = Trackers(("wandb",), place=Place(tmp_path, "now"), settings={"seed": 3}, warn=no_warning)
    told.start(1)
    told.log(STEP)
    told.log(EVAL)
    told.log({**STEP, "step": 2, "loss": 1.25})
    told.close()
    written = next((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")).read_bytes()
    for said in (b"train/loss", b"1.25", b"eval/forget.probability", b"0.25", b"seed"):
        assert said in written


@pytest.mark.slow
def test_trackio_offline(tmp_path: Path) -> None:
    """In a process of its own: where its files lie is decided when it is imported."""
    require("trackio")
    code = f"""
import sys
from contextlib import redirect_stdout
from pathlib import Path
from accelerate import PartialState
from expunge.train.trackers import Place, Trackers
PartialState(cpu=True)
with redirect_stdout(sys.stderr):
    told = Trackers(("trackio",), place=Place(Path({str(tmp_path)!r}), "now"), settings={{"seed": 3}}, warn=exit)
    told.start(1)
    told.log({STEP!r})
    told.log({EVAL!r})
    told.close()
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "nothing is said when the process exits"
    with closing(sqlite3.connect(tmp_path / "trackio/expunge.db")) as found:
        told = [(step, json.loads(values)) for step, values in found.execute("SELECT step, metrics FROM metrics")]
    assert [step for step, _ in told] == [1, 1]
    assert told[0][1]["train/loss"] == 1.5
    assert told[1][1] == {"eval/forget.probability": 0.25}


def test_a_run_reports_what_its_events_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("tensorboard")
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), seed=1)
    model.generation_config.eos_token_id = list(range(60, len(tokenizer)))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for role in ("forget", "retain"):
        rows = [{"question": f"Who wrote {role} {i}?", "answer": f"Vane wrote {role} {i}."} for i in range(4)]
        (tmp_path / f"{role}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "model": {"model_name_or_path": str(tmp_path / "model")},
            "data": {role: str(tmp_path / f"{role}.jsonl") for role in ("forget", "retain")},
            "method": {"name": "grad_diff"},
            "train": {"max_steps": 2, "token_budget": 256, "eval_every": 2, "report_to": "tensorboard"},
            "output_dir": str(tmp_path / "run"),
            "device": "cpu",
        }
    )
    events: list[dict[str, Any]] = []
    api.unlearn(recipe, progress=events.append)
    found = scalars(tmp_path / "run/tensorboard")
    for event in events:
        if event["event"] == "step":
            for key in ("loss", "forget", "retain", "lr", "grad_norm", "tokens_per_s", "memory_mb"):
                assert found[f"train/{key}"][event["step"]] == pytest.approx(event[key], rel=1e-5), key
        if event["event"] == "eval":
            for name, value in event["metrics"].items():
                assert found[f"eval/{name}"][2] == pytest.approx(value, rel=1e-5), name
    assert len(found["train/loss"]) == 2
