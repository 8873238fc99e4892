"""What each command passes on and prints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from invocation import Invoke

from expunge import api
from expunge.catalog import METHODS, SUITES
from expunge.cli.scores import skipped_lines
from expunge.config import packaged
from expunge.evals import recompute
from expunge.metrics.score import Score
from expunge.runs.cache import open_entry
from expunge.runs.run import Run

SCORES = {
    "forget.extraction_strength": Score(0.25, 0.2, 0.3, 398, 400, 0.05, "lower"),
    "forget_quality": Score(1.5e-9, None, None, 400, 400, None, "higher"),
}


class FakeRun(NamedTuple):
    path: Path
    steps: int
    resumed_from: int | None
    seconds: float
    last: dict[str, Any]


class Calls(list[tuple[tuple[Any, ...], dict[str, Any]]]):
    """Records what a fake was called with, and returns a value."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.append((args, kwargs))
        if progress := kwargs.get("progress"):
            progress({"event": "warning", "text": "careful"})
        return self.value


@pytest.fixture
def evaluation() -> Calls:
    skipped = {"retain.rougeL_recall": "nothing was generated"}
    return Calls(
        SimpleNamespace(
            path=Path("e"), suite="tofu", profile="canonical", scores=SCORES, skipped=skipped, reference=None
        )
    )


@pytest.mark.parametrize("command", ["unlearn", "train"])
def test_a_run_prints_its_path(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    calls = Calls(FakeRun(Path("runs/a"), 50, 40, 12.3, {"loss": 1.5}))
    monkeypatch.setattr(api, command, calls)
    result = invoke(command, "r.yaml", "a.b=c", "d=1", "--overwrite")
    assert (result.code, result.out) == (0, "runs/a\n")
    assert "resumed from step 40" in result.err
    assert "warning: careful" in result.err
    args, kwargs = calls[0]
    assert args == ("r.yaml", "a.b=c", "d=1")
    assert kwargs["overwrite"] is True


def test_a_run_as_json(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "unlearn", Calls(FakeRun(Path("runs/a"), 50, None, 12.5, {"loss": 1.5})))
    assert json.loads(invoke("unlearn", "r.yaml", "--json").out) == {
        "path": "runs/a",
        "steps": 50,
        "resumed_from": None,
        "seconds": 12.5,
        "last": {"loss": 1.5},
    }


def test_eval_passes_everything_on(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, evaluation: Calls) -> None:
    monkeypatch.setattr(api, "evaluate", evaluation)
    options = ["--suite", "tofu", "--reference", "R", "--profile", "tofu", "--out", "O", "--tofu", "T"]
    options += ["--start", "S", "--world", "W", "--source", "D", "--num_fewshot", "5"]
    options += ["--tasks", "arc_easy, mine", "--tasks-path", "Y"]
    options += ["--samples", "4", "--temperature", "0.5", "--temperature", "1", "--top_p", "0.9", "--gradnorm"]
    options += ["--gibberish", "G", "--perplexity-model", "P"]
    more = ["--forget_split", "forget05", "--template", "plain", "--limit", "3", "--token_budget", "64"]
    flags = ["--recipe", "r.yaml", "--allow_missing", "--overwrite", "--device", "cpu"]
    result = invoke("eval", "M", *options, *more, *flags)
    assert result.code == 0
    args, kwargs = evaluation[0]
    assert args == ("M",)
    del kwargs["progress"]
    assert kwargs == {
        "recipe": "r.yaml",
        "suite": "tofu",
        "profile": "tofu",
        "reference": "R",
        "start": "S",
        "out": Path("O"),
        "tofu": "T",
        "source": "D",
        "world": Path("W"),
        "num_fewshot": 5,
        "tasks": ["arc_easy", "mine"],
        "tasks_path": Path("Y"),
        "forget_split": "forget05",
        "template": "plain",
        "limit": 3,
        "token_budget": 64,
        "samples": 4,
        "temperatures": [0.5, 1.0],
        "top_ps": [0.9],
        "gradnorm": True,
        "gibberish": "G",
        "perplexity_model": "P",
        "allow_missing": True,
        "overwrite": True,
        "device": "cpu",
    }


def test_scores_are_a_table(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, evaluation: Calls) -> None:
    monkeypatch.setattr(api, "evaluate", evaluation)
    result = invoke("eval", "M")
    assert result.out.splitlines() == [
        "metric                        value  95 % interval  ideal         n",
        "forget.extraction_strength     0.25  [0.2, 0.3]     0.05    398/400",
        "forget_quality              1.5e-09                 higher      400",
    ]
    assert "skipped retain.rougeL_recall: nothing was generated" in result.err


def test_skipped_metrics_are_told_briefly() -> None:
    skipped = {
        **{f"forget_task1_sc.{name}": "no forget_task1_sc rows" for name in ("a", "b", "c")},
        **dict.fromkeys(("retain.rougeL_recall", "lume_score", "retain.exact_match"), "nothing was generated"),
        **{f"kind_{number}.{name}": "no probes" for number in range(8) for name in ("a", "b")},
        "mmlu.accuracy": "no mmlu rows",
        "holdout.a": "one reason",
        "holdout.b": "another",
        "total": "needs " + ", ".join(f"part_{number}.a" for number in range(9)) + ", not measured here",
        "few": "needs a, b, c, d, e, f, not measured here",
    }
    assert skipped_lines({"retain.probability", "few.scores"}, skipped) == [
        "skipped forget_task1_sc.*: no forget_task1_sc rows",
        "skipped retain.rougeL_recall, lume_score, retain.exact_match: nothing was generated",
        "skipped kind_0.*, kind_1.*, kind_2.*, kind_3.*, kind_4.*, kind_5.* and 2 more: no probes",
        "skipped mmlu.accuracy: no mmlu rows",
        "skipped holdout.a: one reason",
        "skipped holdout.b: another",
        "skipped total: needs part_0.a, part_1.a, part_2.a, part_3.a, part_4.a, part_5.a and 3 more, not measured here",
        "skipped few: needs a, b, c, d, e, f, not measured here",
    ]


def test_scores_as_json(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, evaluation: Calls) -> None:
    monkeypatch.setattr(recompute, "recompute", evaluation)
    found = json.loads(invoke("metrics", "RUN", "--json").out)
    assert found["metrics"]["forget_quality"] == SCORES["forget_quality"].to_json()
    assert found["skipped"] == {"retain.rougeL_recall": "nothing was generated"}
    assert evaluation[0][1] == {
        "suite": None,
        "profile": None,
        "reference": None,
        "start": None,
        "allow_missing": False,
    }


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        (["forget.extraction_strength>0.1"], 5),
        (["forget.extraction_strength > .25"], 0),
        (["forget.extraction_strength>=.25"], 5),
        (["forget.extraction_strength<1", "forget_quality>0.05"], 5),
        (["forget_quality<1e-10"], 0),
        (["forget.extraction_strenght>0"], 2),
        (["retain.rougeL_recall<0.5"], 3),
        (["forget_quality=0.1"], 2),
        (["forget_quality>high"], 2),
        (["forget_quality>nan"], 2),
    ],
)
def test_conditions_are_exit_codes(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, evaluation: Calls, conditions: list[str], code: int
) -> None:
    monkeypatch.setattr(api, "evaluate", evaluation)
    argv = [word for condition in conditions for word in ("--fail-if", condition)]
    result = invoke("eval", "M", *argv)
    assert result.code == code
    assert ("condition met" in result.err) == (code == 5)


def test_a_malformed_condition_stops_before_anything_runs(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, evaluation: Calls
) -> None:
    monkeypatch.setattr(api, "evaluate", evaluation)
    invoke("eval", "M", "--fail-if", "nonsense")
    assert evaluation == []


@pytest.mark.parametrize("kind", ["methods", "metrics", "suites", "recipes", "templates"])
def test_listings(invoke: Invoke, kind: str) -> None:
    rows = json.loads(invoke("ls", kind, "--json").out)
    lines = invoke("ls", kind).out.splitlines()
    assert len(lines) == len(rows) + 1
    assert [line.split()[0] for line in lines[1:]] == [row["name"] for row in rows]
    assert all(row["summary"] for row in rows)


def test_listings_are_the_catalogues(invoke: Invoke) -> None:
    assert [row["name"] for row in json.loads(invoke("ls", "methods", "--json").out)] == METHODS.names()
    assert [row["name"] for row in json.loads(invoke("ls", "suites", "--json").out)] == SUITES.names()


def test_cp_copies_once(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes" / "tofu"
    folder.mkdir(parents=True)
    (folder / "grad_diff.yaml").write_text("seed: 1\n")
    monkeypatch.setattr(packaged, "recipes_folder", lambda: tmp_path / "recipes")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert invoke("cp", "tofu/grad-diff").out == "grad_diff.yaml\n"
    assert (here / "grad_diff.yaml").read_text() == "seed: 1\n"
    assert invoke("cp", "tofu/grad_diff").code == 2
    assert invoke("cp", "tofu/grad_diff", "--overwrite").code == 0
    assert invoke("cp", "tofu/grad_diff", "mine.yaml").out == "mine.yaml\n"
    assert invoke("cp", "tofu/gradiff").code == 2


def test_runs_and_purge(invoke: Invoke, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a", kind="unlearn", given={}, resolved={"method": {"name": "npo"}})
    run.update(status="finished", steps=3, total_steps=3)
    run.checkpoint_dir(3).mkdir(parents=True)
    listed = json.loads(invoke("runs", tmp_path, "--json").out)
    assert [(item["method"], item["status"]) for item in listed] == [("npo", "finished")]
    assert "3/3" in invoke("runs", tmp_path).out
    assert "step-000003" in invoke("purge", run.path, "--dry-run").out
    assert run.checkpoints()
    removed = json.loads(invoke("purge", run.path, "--json").out)["removed"]
    assert [item["what"] for item in removed] == ["checkpoint"]
    assert not run.checkpoints()
    assert "nothing left" in invoke("purge", run.path).err
    assert invoke("runs", tmp_path / "missing").code == 2


def test_cache(invoke: Invoke) -> None:
    open_entry("reference", "abc123").write(lambda folder: (folder / "a").write_text("1"), {"description": "rows"})
    assert "reference/abc123" in invoke("cache", "ls").out
    assert json.loads(invoke("cache", "ls", "--json").out)[0]["kind"] == "reference"
    assert invoke("cache", "rm", "zzz").code == 2
    assert invoke("cache", "rm", "abc", "--all").code == 2
    assert invoke("cache", "rm", "abc").out == "reference/abc123\n"
    assert json.loads(invoke("cache", "rm", "--all", "--json").out) == []


def test_env(invoke: Invoke) -> None:
    facts = json.loads(invoke("env", "--json").out)
    assert {"expunge", "python", "torch", "device", "cache"} <= facts.keys()
