"""Sweeps that train: trials are runs, a killed worker's trial goes on where it stopped, and nothing is done twice."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_sweep import ANY, METHOD, RATE, begun, step, write_world

from expunge import api
from expunge.cli.main import main
from expunge.errors import ExpungeError, StoppedError
from expunge.runs.run import Run
from expunge.sweep import run as run_module
from expunge.sweep import worker
from expunge.sweep.claims import Claims
from expunge.sweep.plan import Sweep
from expunge.sweep.run import look, sweep
from expunge.sweep.study import take_turn
from expunge.sweep.summary import Summary

optuna = pytest.importorskip("optuna", minversion="5")
pytestmark = pytest.mark.xdist_group("sweep")


@pytest.fixture
def started(here: Path) -> Sweep:
    """A sweep whose starting model has been measured."""
    found = begun(here, RATE, METHOD, trials=2)
    worker.start(step(found), lambda event: None)
    return found


def carry_out(found: Sweep, listen: Any = lambda event: None) -> dict[str, Any]:
    return worker.trial(step(found), listen)


def at_step(number: int, what: Any) -> Any:
    def listen(event: dict[str, Any]) -> None:
        if event.get("event") == "step" and event["step"] == number:
            what()

    return listen


def killed(found: Sweep) -> None:
    """A worker process that gets SIGKILL in the third step of its trial."""
    carry_out(found, at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def stop() -> None:
    raise KeyboardInterrupt


def resumed(path: Path) -> list[int]:
    return [event["step"] for event in Run.open(path).events() if event["event"] == "resumed"]


@pytest.mark.slow
def test_a_killed_or_interrupted_trial_goes_on_and_is_repeated_by_its_command(started: Sweep) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed, args=(started,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (trial,) = look(started.root).trials
    assert (trial.number, trial.state) == (0, "running")
    with pytest.raises(KeyboardInterrupt):
        carry_out(started, at_step(5, stop))
    assert not Claims(started.root).orphaned("trial-0000"), "who is asked to stop gives its trial back"

    heard: list[dict[str, Any]] = []
    assert carry_out(started, heard.append) == {"trial": 0}
    assert [event["state"] for event in heard if event["event"] == "trial"] == ["running", "finished"]
    found = look(started.root)
    (after,) = found.trials
    assert (after.state, after.params, after.feasible) == ("finished", trial.params, True)
    assert resumed(started.path(0)) == [2, 4]
    assert not (started.path(0) / "checkpoints").exists()
    assert (started.path(0) / "model/config.json").is_file()

    _, command, recipe, *overrides = shlex.split(found.command(after))
    assert command == "unlearn"
    again = api.evaluate(api.unlearn(recipe, *overrides).path)
    assert {name: again.scores[name].value for name in after.values} == dict(after.values)


@pytest.mark.slow
def test_a_trial_that_was_unlearned_is_only_measured(started: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            carry_out(started)
    monkeypatch.setattr(api, "unlearn", interrupted)
    assert carry_out(started) == {"trial": 0}
    assert look(started.root).trials[0].state == "finished"


@pytest.mark.slow
def test_how_trials_end(started: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        StoppedError("step 2: loss is nan", hint="lower it"),
        optuna.TrialPruned("behind"),
    ]

    def unlearn(*args: Any, **kwargs: Any) -> None:
        raise failures.pop(0)

    monkeypatch.setattr(api, "unlearn", unlearn)
    with pytest.raises(StoppedError, match="no space left on the disk in trial 0"):
        carry_out(started)
    assert look(started.root).trials[0].state == "running"
    assert carry_out(started) == {"trial": 0}
    assert carry_out(started) == {"trial": 1}
    assert carry_out(started) == {"trial": None}
    found = look(started.root)
    assert [(trial.state, trial.reason) for trial in found.trials] == [
        ("failed", "step 2: loss is nan"),
        ("pruned", "behind"),
    ]
    assert found.finished
    assert found.best is None


def test_processes_share_the_gpus_of_a_machine(started: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    found = started._replace(settings={**started.settings, "device": None})
    assert worker._device(found) is None, "none or one: the recipe's or the best there is"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert worker._device(started) is None, "the recipe says cpu"
    places = []
    for _ in range(3):
        # As in another process.
        worker._own_place.cache_clear()
        places += [worker._device(found) for _ in range(2)]
    assert places == ["cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:0", "cuda:0"]


def test_hopeless_trials_are_given_up(here: Path) -> None:
    found = begun(here, RATE, trials=9)._replace(prune=True)
    for number in range(6):
        turn = take_turn(found, Claims(found.root))
        assert turn is not None
        listen = worker.Watcher(found, turn, lambda event: None)
        value = 0.1 * number
        evaluation = {"event": "eval", "step": 4, "total": 8, "metrics": {"forget.extraction_strength": value}}
        if number < 4:
            listen(evaluation)
        else:
            with pytest.raises(optuna.TrialPruned, match=r"forget.extraction_strength is 0\.\d after step 4"):
                listen(evaluation)
            listen(evaluation | {"step": 8})
        turn.study.tell(turn.trial, value)
        turn.claim.close()


class Swept(NamedTuple):
    summary: Summary
    said: list[str]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Six trials by two processes that train nothing; one of them is killed."""
    folder = tmp_path_factory.mktemp("swept")
    write_world(folder)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", f"{Path(__file__).parents[2] / 'src'}:{Path(__file__).parent}")
        patch.setattr(run_module, "WORKER", "tiny_worker")
        listen: Any = lambda event: said.append(str(event.get("text")))  # noqa: E731 - a line
        found = sweep("recipe.yaml", [RATE, "train.max_steps=30"], trials=6, workers=2, out="sweep", progress=listen)
    return Swept(found, said)


def test_a_killed_worker_is_replaced_and_every_trial_ends_once(swept: Swept) -> None:
    found = swept.summary
    assert "a worker process ended, most often killed for memory; its trial is taken up again" in swept.said
    assert [(trial.number, trial.state) for trial in found.trials] == [(n, "finished") for n in range(6)]
    assert sum(text.startswith("trial 1: learning_rate") for text in swept.said) == 2
    for number in range(6):
        assert sum(text.startswith(f"trial {number}: forget.extraction_strength") for text in swept.said) == 1
    assert not list((found.sweep.root / "claims").iterdir())


def test_the_best_one_keeps_the_condition(swept: Swept) -> None:
    trials = {trial.number: trial for trial in swept.summary.trials}
    kept = {n: trial for n, trial in trials.items() if trial.values["retain.extraction_strength"] >= 0.9}
    assert {n for n, trial in trials.items() if trial.feasible} == set(kept)
    best = swept.summary.best
    assert best is not None
    assert best.params["train.learning_rate"] == max(trial.params["train.learning_rate"] for trial in kept.values())
    # What forgets more keeps less: nothing dominates anything.
    assert len(swept.summary.pareto) == 6


@pytest.mark.slow
def test_two_real_workers_one_killed(here: Path) -> None:
    victims: list[int] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "phase" and "unlearning" in event["name"] and not victims:
            number = int(event["name"].split()[1].rstrip(":"))
            owner = json.loads((here / f"sweep/claims/trial-{number:04d}/owner.json").read_text())
            os.kill(owner["pid"], signal.SIGKILL)
            victims.append(number)

    given = {"subject_to": [ANY], "trials": 4, "workers": 2, "out": "sweep", "progress": listen}
    found = sweep("recipe.yaml", [RATE, METHOD, "train.max_steps=30"], **given)
    assert len(victims) == 1
    root = found.sweep.root
    assert [(trial.number, trial.state) for trial in found.trials] == [(n, "finished") for n in range(4)]
    assert sorted(path.name for path in root.glob("trial-*")) == [f"trial-{n:04d}" for n in range(4)]
    for trial in found.trials:
        run = Run.open(found.sweep.path(trial.number))
        steps = [event["step"] for event in run.events() if event["event"] == "step"]
        assert steps == list(range(1, 31))
        assert run.manifest.status == "finished"
        assert run.manifest.given["train"]["learning_rate"] == trial.params["train.learning_rate"]
        assert run.manifest.given["method"]["name"] == trial.params["method.name"]


def test_it_is_written_down(swept: Swept) -> None:
    written = json.loads((swept.summary.sweep.root / "summary.json").read_text())
    assert written == json.loads(json.dumps(swept.summary.to_json()))
    assert written["finished"]
    assert {trial["path"] for trial in written["trials"]} == {f"trial-000{n}" for n in range(6)}
    assert written["best"]["command"].endswith(f"output_dir=runs/sweep-{written['best']['number']}")


def test_a_folder_is_shown(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(swept.summary.sweep.root)
    for argv in ([root], ["--join", root, "--workers", "2"]):
        assert main(["sweep", *argv]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0].split()[:3] == ["trial", "learning_rate", "forget.extraction_strength"]
        assert out[1].split() == ["start", "1", "1"]
        assert [line.split()[0] for line in out[2:8]] == ["0", "1", "2", "3", "4", "5"]
        assert sum("best" in line for line in out[2:8]) == 1
        assert out[-1].startswith("expunge unlearn recipe.yaml train.max_steps=30 train.learning_rate=")
    assert main(["sweep", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["number_of_trials"] == 6


def test_what_the_command_refuses(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (["sweep"], "give a recipe, a sweep's folder, or --join DIR"),
        (["sweep", str(swept.summary.sweep.root), "train.max_steps=2"], "its space is settled"),
        (["sweep", "--join", "nowhere"], "no sweep lies in nowhere"),
        (["sweep", "no/such/recipe", RATE], "unknown recipe"),
    ):
        assert main(argv) == 2
        assert said in capsys.readouterr().err


def test_what_cannot_start_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(jobs: Any, listen: Any, *, count: int, worker: str) -> None:
        found = run_module.read_sweep(here / "sweep")
        worker_module.start(step(found), lambda event: None)

    worker_module = worker
    monkeypatch.setattr(run_module, "carry_out", refuse)
    for arguments, said in (
        (["method.bta=uniform(0.1, 1)"], "unknown key method.bta"),
        ([METHOD, "method.delta=uniform(0, 1)"], "method.delta=0"),
        ([RATE, "data.forget=nothing.jsonl"], "nothing.jsonl"),
    ):
        with pytest.raises(ExpungeError) as caught:
            sweep("recipe.yaml", arguments, out="sweep", trials=2)
        assert said in str(caught.value)
        assert not (here / "sweep").exists()


def test_without_optuna_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["optuna"] = None
from expunge.cli.main import main
sys.exit(main(["sweep", "recipe.yaml", "a=int(1,2)"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a sweep needs Optuna" in done.stderr
    assert 'pip install "expunge[sweep]"' in done.stderr
