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
)
GUARD = ("guard.refusal_rate", "guard.over_refusal_rate")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]


class Ended(NamedTuple):
    code: int
    out: str
    said: str

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Demos(NamedTuple):
    interrupted: Ended
    """After the starting model was trained."""
    first: Ended
    again: Ended
    """Interrupted as soon as it said what it reuses."""


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demos:
    folder = tmp_path_factory.mktemp("demo")
    interrupted = run(folder, until="start: trained")
    return Demos(interrupted, run(folder), run(folder, "elsewhere", until="retrained: reused from the cache"))


def heed_ctrl_c() -> None:
    """Where the tests run as a background job it is ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(folder: Path, out: str = "demo", *, until: str | None = None) -> Ended:
    """A demo in a process of its own; with `until`, Ctrl-C once it has said that."""
    process = subprocess.Popen(
        [sys.executable, "-m", "expunge.cli.main", "demo", "--fast", "--json", "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"EXPUNGE_CACHE": str(folder / "cache")},
        preexec_fn=heed_ctrl_c,
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr if until else ():
        said += line
        if until and until in line:
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=400)
    return Ended(process.returncode, out, said + rest)


def test_interrupted_it_says_how_to_go_on(demos: Demos) -> None:
    assert demos.interrupted.code == 130, demos.interrupted.said
    assert demos.interrupted.out == ""
    assert "the same command continues" in demos.interrupted.said
    assert "Traceback" not in demos.interrupted.said


def test_the_same_command_continues(demos: Demos) -> None:
    assert demos.first.code == 0, demos.first.said
    assert "continuing it" in demos.first.said
    assert "start: trained before it was interrupted" in demos.first.said
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
    assert runs["eua"].keys() >= set(GUARD)
    (guard,) = (run["guard"] for run in demos.first.result["runs"] if run["guard"])
    assert guard["rate"] == 0.05
    assert asked["forget"]["threshold"] == guard["threshold"]
    assert "forget_quality" in runs["eua"]
    assert "forms.dependence_index" in runs["eua"]


def test_a_second_demo_reuses_the_base_models_and_says_so(demos: Demos) -> None:
    assert "start: reused from the cache (trained " in demos.again.said
    assert "retrained: reused from the cache (trained " in demos.again.said
    assert "trained in" not in demos.again.said
    assert demos.again.code == 130, demos.again.said
