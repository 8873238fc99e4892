"""Requests one after the other: each from the last one's model, resumable, and watched by a table that is honest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from expunge import api
from expunge.cli.main import main
from expunge.cli.unlearn import sequence_lines
from expunge.config.schema import ModelSection, SourceSpec
from expunge.data.source import load_examples
from expunge.data.template import build_template
from expunge.errors import DataError, UsageError
from expunge.evals.jobs import plan_jobs
from expunge.evals.suite import Split, Suite
from expunge.evals.trace import trace
from expunge.metrics.memorization import extraction_strength
from expunge.metrics.view import view_split
from expunge.models.fingerprint import model_digest
from expunge.models.load import load_model, load_tokenizer
from expunge.runs.index import list_runs
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.runs.starting import starting_run
from expunge.runs.tables import GENERATIONS
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.sequence import SequenceResult

Recipe = Callable[..., dict[str, Any]]
PEOPLE = ("Mira Solen", "Idris Vane", "Oda Brandt")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of three requests on a tiny model that knows nothing yet but can be trained."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    return recipes(tmp_path)


@pytest.fixture(scope="module", params=[pytest.param("npo", marks=pytest.mark.slow), "alkn"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A method, and its sequence that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
        done = sequence(recipes(folder)(method={"name": request.param}, train__save_steps=1))
    return request.param, done.path


def recipes(folder: Path) -> Recipe:
    """Writes the model and the rows; what then makes recipes of them, in the same folder."""
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer), seed=1).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    for number, person in enumerate(PEOPLE, 1):
        write(folder / f"r{number}.jsonl", person, 4)
    write(folder / "retain.jsonl", "Tomas Reyl", 7)

    def build(name: str = "run", **changes: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            "model": {"model_name_or_path": str(folder / "start")},
            "data": {
                "requests": [str(folder / f"r{number}.jsonl") for number in (1, 2, 3)],
                "retain": str(folder / "retain.jsonl"),
                "max_length": 128,
            },
            "method": {"name": "npo"},
            "train": {"learning_rate": 1e-3, "max_steps": 3, "global_batch_size": 4, "token_budget": 512},
            "eval": {"token_budget": 512},
            "output_dir": str(folder / name),
            "device": "cpu",
        }
        for key, value in changes.items():
            section, _, inner = key.partition("__")
            if inner:
                made[section][inner] = value
            else:
                made[section] = value
        return made

    return build


def write(path: Path, person: str, count: int) -> None:
    rows = [
        {
            "question": f"Who wrote book {i}, asks {person}?",
            "answer": f"{person} did{' so' * (i % 3)}.",
            "group": person,
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sequence(given: dict[str, Any], **options: Any) -> SequenceResult:
    result = api.unlearn(given, **options)
    assert isinstance(result, SequenceResult)
    return result


def model_bytes(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


def document(run: Path) -> dict[str, Any]:
    text = (run / "requests.json").read_text(encoding="utf-8").replace(str(run.parent), "folder")
    found: dict[str, Any] = json.loads(text)
    return found


def steps(run: Path) -> int:
    return sum(event["event"] == "step" for event in Run.open(run).events())


class Stop(BaseException):
    """What a kill is from inside: nothing after it runs."""


def stop_at(text: str, count: int = 1) -> Callable[[dict[str, Any]], None]:
    """Raise at the `count`-th event whose JSON holds `text`."""
    seen = []

    def progress(event: dict[str, Any]) -> None:
        if text in json.dumps(event, default=str):
            seen.append(1)
            if len(seen) == count:
                raise Stop

    return progress


# What a sequence is


@pytest.mark.parametrize("method", [{"name": "npo"}, {"name": "alkn"}, {"name": "iau"}])
@pytest.mark.slow
def test_each_request_starts_from_the_model_the_last_one_left(recipe: Recipe, method: dict[str, Any]) -> None:
    done = sequence(recipe(method=method))
    requests = [Run.open(done.path / f"request-{number}") for number in (1, 2, 3)]
    assert [run.manifest.status for run in requests] == ["finished"] * 3
    for before, after in pairwise(requests):
        model = tiny_llama(len(tiny_tokenizer()))
        model.load_state_dict(load_file(before.model_dir / "model.safetensors"), strict=False)
        assert after.manifest.model is not None
        assert after.manifest.model.digest == model_digest(model)
        assert starting_run(after.path).run == before.path
    assert model_bytes(done.path) == model_bytes(requests[-1].path)
    assert model_bytes(requests[0].path) != model_bytes(requests[1].path)
    manifest = Run.open(done.path).manifest
    assert manifest.status == "finished"
    assert manifest.steps == done.steps == sum(run.manifest.steps or 0 for run in requests)
    assert [item.rows for item in manifest.data] == [4, 4, 4, 7]


def test_a_sequence_of_one_is_the_ordinary_run(recipe: Recipe, tmp_path: Path) -> None:
    first = str(tmp_path / "r1.jsonl")
    done = sequence(recipe(data__requests=[first]))
    alone = recipe("alone", data__requests=[], data__forget=first)
    assert model_bytes(done.path) == model_bytes(api.unlearn(alone).path)


def test_without_retain_rows(recipe: Recipe) -> None:
    done = sequence(recipe(method={"name": "grad_ascent"}, data__retain=[]))
    assert list(done.requests["stages"][0]["scores"]) == ["request_1", "request_2", "request_3"]


def test_a_method_that_needs_no_retain_rows_is_still_watched_on_them(recipe: Recipe) -> None:
    done = sequence(recipe(method={"name": "grad_ascent"}))
    assert "retain" in done.requests["stages"][-1]["scores"]


# The table


@pytest.mark.slow
def test_the_table_holds_what_an_evaluation_of_each_model_says(recipe: Recipe, tmp_path: Path) -> None:
    sources = [str(tmp_path / f"{name}.jsonl") for name in ("r1", "r2", "r3", "retain")]
    known = {
        "kind": "train",
        "model": {"model_name_or_path": str(tmp_path / "start")},
        "data": {"train": sources, "max_length": 128},
        "train": {"learning_rate": 1e-2, "max_steps": 60, "global_batch_size": 19, "token_budget": 1024},
        "output_dir": str(tmp_path / "known"),
        "device": "cpu",
    }
    start = api.train(known).path / "model"
    forgets = recipe(method={"name": "grad_diff"}, train__max_steps=4, model__model_name_or_path=str(start))
    done = sequence(forgets)
    found = document(done.path)
    assert [stage["requests_done"] for stage in found["stages"]] == [0, 1, 2, 3]
    assert found["rows"] == {"request_1": 4, "request_2": 4, "request_3": 4, "retain": 7}
    models = [start, *(done.path / f"request-{number}/model" for number in (1, 2, 3))]
    told = set()
    for stage, model in zip(found["stages"], models, strict=True):
        for name, source in zip(found["rows"], sources, strict=True):
            measured = evaluated(model, source)
            assert stage["rows"][name] == measured.tolist()
            assert stage["scores"][name]["value"] == pytest.approx(measured.mean())
            told.add(round(float(measured.mean()), 3))
    assert len(told) > 4, "a table of one number would prove nothing"
    before, after = found["stages"][0]["scores"], found["stages"][1]["scores"]
    assert before["request_1"]["value"] > 0.9 > after["request_1"]["value"]


def evaluated(folder: Path, source: str) -> np.ndarray:
    """Extraction strength of each row by way of the trace table, as `expunge eval` measures it."""
    tokenizer = load_tokenizer(str(folder))
    rows = tuple(load_examples(SourceSpec(path=source), tofu="", role="forget").examples)
    suite = Suite("own", (Split("forget", rows),), lambda tables: None)
    loaded = load_model(ModelSection(model_name_or_path=str(folder)), device=torch.device("cpu"))
    jobs = plan_jobs(suite, build_template("auto", tokenizer), max_length=512)
    table = trace(loaded.model, jobs, pad_id=0, token_budget=512).table
    view = view_split(table, pa.Table.from_pylist([], schema=GENERATIONS), "forget")
    return extraction_strength(view.answers("hit", "no_eos"))


def test_what_comes_back_is_said_with_its_amount(recipe: Recipe) -> None:
    """Measured by a stand-in: request 1 falls, then comes back with request 3."""
    from expunge.config.load import load_recipe
    from expunge.train.sequence import run_sequence

    script = iter(
        [
            *(1.0, 1.0, 1.0, 1.0),
            *(0.2, 0.9, 0.9, 0.9),
            *(0.1, 0.1, 0.9, 0.8),
            *(0.7, 0.1, 0.1, 0.7),
        ]
    )

    def strengths(model: Any, dataset: Any, **options: Any) -> np.ndarray:
        assert not model.training
        return np.full(len(dataset.encoded), next(script))

    done = run_sequence(load_recipe(recipe()), strengths=strengths)
    rise = done.requests["resurfaced"]["request_1"]
    assert (rise["since"], rise["until"], rise["resurfaced"]) == (2, 3, True)
    assert [rise[key] for key in ("value", "low", "high")] == pytest.approx([0.6] * 3)
    assert not done.requests["resurfaced"]["request_2"]["resurfaced"]
    lines = sequence_lines(done.requests)
    assert " ".join(lines[0].split()) == "extraction strength of request 1 request 2 request 3 retain"
    assert lines[1].split() == ["before", "1", "1", "1", "1"]
    assert " ".join(lines[4].split()) == "after request 3 0.7 0.1 0.1 0.7"
    assert lines[5:] == ["request 1 rose again by 0.6 [0.6, 0.6]: 0.1 after request 2, 0.7 after request 3"]


@pytest.mark.slow
def test_the_command_prints_the_directory_alone_on_stdout(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe()), encoding="utf-8")
    sources = json.dumps([str(tmp_path / "r1.jsonl"), str(tmp_path / "r2.jsonl")])
    assert main(["unlearn", str(path), f"data.requests={sources}"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'run'}\n"
    assert "after request 2" in err
    assert "after request 3" not in err
    assert main(["unlearn", str(path), f"data.requests={sources}", "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(tmp_path / "run")
    assert set(told["requests"]["stages"][1]) == {"requests_done", "scores"}


@pytest.mark.slow
def test_a_finished_sequence_is_evaluated_on_the_rows_of_all_requests(recipe: Recipe) -> None:
    done = sequence(recipe())
    scores = api.evaluate(done.path).scores
    assert scores["forget.extraction_strength"].n == 12
    assert {summary.path for summary in list_runs(done.path)} >= {str(done.path), str(done.path / "request-2")}


# What one request leaves to the next


@pytest.mark.slow
def test_masks_hand_on_what_they_moved(recipe: Recipe) -> None:
    done = sequence(recipe(method={"name": "alkn"}))
    left = [load_file(done.path / f"request-{number}/inheritance.safetensors") for number in (1, 2, 3)]
    for before, after in pairwise(left):
        assert before.keys() == after.keys()
        masks = [key for key in before if key.endswith("/mask")]
        assert all((after[key] >= before[key]).all() for key in masks)
        assert any((after[key] > before[key]).any() for key in masks)
        assert all(torch.equal(after[key], before[key]) for key in before if key.endswith("/threshold"))
    plain = sequence(recipe("plain"))
    assert not list(plain.path.glob("**/inheritance.safetensors"))


# Killed and resumed


@pytest.mark.parametrize(
    ("text", "count", "redone"),
    [
        ('"measure"', 2, (1, 2, 3)),
        ('"step": 2, "total"', 1, (1, 2, 3)),
        ('"step": 2, "total"', 2, (2, 3)),
        ('"step": 2, "total"', 3, (3,)),
        ('"measure"', 10, (3,)),
        ('"measure"', 16, ()),
    ],
)
@pytest.mark.slow
def test_a_stopped_sequence_goes_on_where_it_was(
    recipe: Recipe, whole: tuple[str, Path], text: str, count: int, redone: tuple[int, ...]
) -> None:
    name, uninterrupted = whole
    given = recipe(method={"name": name}, train__save_steps=1)
    with pytest.raises(Stop):
        sequence(given, progress=stop_at(text, count))
    run = Path(given["output_dir"])
    assert Run.open(run).manifest.status == "stopped"
    finished = {path: path.stat().st_mtime_ns for path in run.glob("request-*/model/model.safetensors")}
    done = sequence(given)
    assert done.redone == redone
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert document(run) == document(uninterrupted)
    for number in (1, 2, 3):
        assert model_bytes(run / f"request-{number}") == model_bytes(uninterrupted / f"request-{number}")
        assert steps(run / f"request-{number}") == 3
    assert model_bytes(run) == model_bytes(uninterrupted)
    assert Run.open(run).manifest.stop_reason is None


@pytest.mark.slow
def test_a_table_that_is_gone_is_measured_again(recipe: Recipe) -> None:
    whole = sequence(recipe("whole"))
    given = recipe()
    with pytest.raises(Stop):
        sequence(given, progress=stop_at('"step": 2, "total"', 3))
    run = Path(given["output_dir"])
    (run / "requests.json").unlink()
    assert sequence(given).redone == (3,)
    assert document(run) == document(whole.path)
    (run / "requests.json").write_text("{}")
    Run.open(run).update(status="stopped")
    with pytest.raises(DataError, match=r"requests.json cannot be read"):
        sequence(given)


@pytest.fixture
def stopped(recipe: Recipe) -> dict[str, Any]:
    """A sequence that was stopped in its second request."""
    given = recipe()
    with pytest.raises(Stop):
        sequence(given, progress=stop_at('"step": 2, "total"', 2))
    return given


def test_rows_that_changed_since_are_refused(stopped: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "r3.jsonl", "Somebody Else", 4)
    with pytest.raises(UsageError, match="the rows of request_3 changed since it started"):
        sequence(stopped)


def test_a_finished_request_without_its_model_is_refused(stopped: dict[str, Any]) -> None:
    shutil.rmtree(Path(stopped["output_dir"]) / "request-1/model")
    with pytest.raises(UsageError, match=r"request-1 is finished and does not belong .* its model is gone"):
        sequence(stopped)


def test_other_settings_are_refused_and_a_finished_sequence_too(stopped: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"an unfinished run with other settings: data\.requests"):
        api.unlearn(stopped, f"data.requests=[{tmp_path / 'r1.jsonl'}]")
    sequence(stopped)
    with pytest.raises(UsageError, match="holds a finished run"):
        sequence(stopped)


def test_overwrite_removes_the_requests_that_were(stopped: dict[str, Any], tmp_path: Path) -> None:
    sequence(stopped)
    shorter = {**stopped, "data": {**stopped["data"], "requests": [str(tmp_path / "r2.jsonl")]}}
    (tmp_path / "run/notes.txt").write_text("mine")
    done = sequence(shorter, overwrite=True)
    assert sorted(path.name for path in done.path.glob("request-*")) == ["request-1"]
    assert (tmp_path / "run/notes.txt").exists()
    assert len(document(done.path)["stages"]) == 2


# What is refused before anything starts


def test_rows_of_the_last_request_that_are_kept_rows_stop_the_first(recipe: Recipe, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "retain.jsonl", tmp_path / "r3.jsonl")
    with pytest.raises(DataError, match="forget examples are also retain examples"):
        sequence(recipe())
    assert not (tmp_path / "run").exists()


def test_a_request_that_is_not_there(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "r2.jsonl").unlink()
    with pytest.raises((UsageError, DataError), match=r"r2\.jsonl"):
        sequence(recipe())
    assert not (tmp_path / "run").exists()


def test_repeated_rows_are_said(recipe: Recipe, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "r1.jsonl", tmp_path / "r2.jsonl")
    events: list[dict[str, Any]] = []
    sequence(recipe(), progress=events.append)
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert warnings == ["4 rows of request_2 are also rows of request_1: whatever one does shows in both"]


def test_one_way_to_name_rows_to_forget(recipe: Recipe, tmp_path: Path) -> None:
    both = recipe(data__forget=str(tmp_path / "r1.jsonl"))
    for act in (api.unlearn, api.plan, api.validate):
        with pytest.raises(UsageError, match=r"data\.forget and data\.requests are both given"):
            act(both)


@pytest.mark.slow
def test_validate_and_plan_know_requests(recipe: Recipe) -> None:
    views = {view.role: view.rows for view in api.validate(recipe()).datasets}
    named = {f"forget (request {number})": 4 for number in (1, 2, 3)}
    assert views == {**named, "retain": 7}
    plan = api.plan(recipe())
    assert plan.steps == 9
    assert plan.rows == {**named, "retain": 7}
    assert plan.warnings[0].startswith("3 requests one after the other")


# Purge


@pytest.mark.slow
def test_purge_reaches_the_runs_of_the_requests(recipe: Recipe) -> None:
    done = sequence(recipe())
    api.evaluate(done.path / "request-2")
    report = purge(Run.open(done.path))
    assert len(report.checkpoints) == 3
    assert report.caches
    assert [table.path.parents[2].name for table in report.tables] == ["request-2", "request-2"]
    again = purge(Run.open(done.path))
    assert [again.tables, again.checkpoints, again.caches] == [(), (), ()]
    written = [*done.path.rglob("*.jsonl"), *done.path.rglob("manifest.json"), done.path / "requests.json"]
    assert not [path for path in written if "Mira" in path.read_text(encoding="utf-8")]
