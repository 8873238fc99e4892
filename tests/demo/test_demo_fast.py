"""`expunge demo --fast`, for real: interrupted, continued to the end, and run again from the cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMES = ["start", "retrained", "eua", "npo", "grad_diff"]
METRICS = (
    "forget.extraction_strength",
    "retain.extraction_strength",
    "neighbours.extraction_strength",
    "energy.auroc",
    "energy.auroc_paraphrase",
    "guard.refusal_rate",
    "guard.over_refusal_rate",
)

pytestmark = pytest.mark.xdist_group("demo")


class Ended(NamedTuple):
    code: int
    out: str
    said: str

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Demos(NamedTuple):
    folder: Path
    interrupted: Ended
    first: Ended
    again: Ended


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demos:
    folder = tmp_path_factory.mktemp("demo")
    environment = os.environ | {"EXPUNGE_CACHE": str(folder / "cache")}

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "expunge.cli.main", "demo", "--fast", "--json", "--out", "demo", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    process = start()
    assert process.stderr is not None
    for line in process.stderr:
        if "start (seed 0): trained" in line:
            process.send_signal(signal.SIGINT)
            break
    out, said = process.communicate(timeout=120)
    ended = [Ended(process.returncode, out, said)]
    for _ in range(2):
        process = start()
        out, said = process.communicate(timeout=300)
        ended.append(Ended(process.returncode, out, said))
    return Demos(folder, *ended)


def test_interrupted_it_says_how_to_go_on(demos: Demos) -> None:
    assert demos.interrupted.code == 130, demos.interrupted.said
    assert demos.interrupted.out == ""
    assert "the same command continues" in demos.interrupted.said
    assert "Traceback" not in demos.interrupted.said


def test_the_same_command_continues(demos: Demos) -> None:
    assert demos.first.code == 0, demos.first.said
    assert "continuing it" in demos.first.said
    assert "start (seed 0): trained in" in demos.first.said
    assert "left" in demos.first.said


def test_the_result_is_one_object(demos: Demos) -> None:
    result = demos.first.result
    assert result["schema"] == 1
    assert (result["seed"], result["fast"]) == (0, True)
    assert result["seconds"] > 0
    assert Path(result["report"]).is_file()
    assert [run["name"] for run in result["runs"]] == NAMES
    for run in result["runs"]:
        assert Path(run["path"], "model/config.json").is_file()
        assert not run["cached"]
        for name in METRICS:
            score = run["metrics"][name]
            assert score.keys() >= {"value", "low", "high", "n", "n_total", "ideal", "direction"}
            assert 0 <= score["value"] <= 1, (run["name"], name)


def test_the_story_is_told(demos: Demos) -> None:
    runs = {run["name"]: run["metrics"] for run in demos.first.result["runs"]}
    known, forgotten = (runs[name]["forget.extraction_strength"]["value"] for name in ("start", "eua"))
    assert forgotten < 0.5 * known
    asked = {exchange["about"]: exchange for exchange in demos.first.result["story"]}
    assert asked.keys() == {"forget", "retain"}
    assert asked["forget"]["before"] == asked["forget"]["truth"]
    assert asked["forget"]["refused"] == (asked["forget"]["energy"] > asked["forget"]["threshold"])
    if asked["forget"]["refused"]:
        assert asked["forget"]["after"] not in asked["forget"]["guarded"]
    assert runs["retrained"].keys() >= {"energy.auroc"}
    assert "forget_quality" in runs["eua"]
    assert "forms.dependence_index" in runs["eua"]


def test_a_second_demo_reuses_the_base_models_and_says_so(demos: Demos) -> None:
    assert demos.again.code == 0, demos.again.said
    result = demos.again.result
    assert [run["name"] for run in result["runs"] if run["cached"]] == ["start", "retrained"]
    assert "reused from the cache" in demos.again.said
    assert "start (seed 0): trained in" not in demos.again.said
    first = {run["name"]: run["metrics"] for run in demos.first.result["runs"]}
    for run in result["runs"]:
        for name in METRICS:
            assert run["metrics"][name]["value"] == pytest.approx(first[run["name"]][name]["value"], abs=1e-6)
