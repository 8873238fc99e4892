"""The list of runs is what the manifests say, whatever the index remembers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.runs import index
from expunge.runs.index import index_path, list_runs
from expunge.runs.run import Run


def make(path: Path, method: str = "npo") -> Run:
    return Run.create(path, kind="unlearn", given={}, resolved={"method": {"name": method}})


def test_runs_are_found_at_any_depth_and_not_inside_models(tmp_path: Path) -> None:
    first = make(tmp_path / "runs" / "a")
    make(tmp_path / "runs" / "deep" / "b", "wga")
    first.update(steps=3, total_steps=5, status="stopped", model={"name": "m"})
    inside = first.model_dir / "manifest.json"
    inside.parent.mkdir()
    inside.write_text('{"schema": 1}')
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "app"}')
    found = list_runs(tmp_path)
    assert [Path(run.path).name for run in found] == ["a", "b"]
    assert (found[0].status, found[0].steps, found[0].total_steps, found[0].model) == ("stopped", 3, 5, "m")
    assert found[1].method == "wga"


def test_a_run_directory_itself_is_listed(tmp_path: Path) -> None:
    make(tmp_path)
    assert [run.path for run in list_runs(tmp_path)] == [str(tmp_path)]


def test_an_unchanged_manifest_is_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)
    before = list_runs(tmp_path)
    monkeypatch.setattr(index, "load_manifest", lambda path: pytest.fail(f"read {path} again"))
    assert list_runs(tmp_path) == before
    monkeypatch.undo()
    run.update(status="finished")
    assert list_runs(tmp_path)[0].status == "finished"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"index": 1, "runs": []}', '{"index": 0, "runs": {}}'])
def test_a_lost_or_broken_index_is_built_again(tmp_path: Path, text: str) -> None:
    make(tmp_path)
    before = list_runs(tmp_path)
    index_path().write_text(text)
    assert list_runs(tmp_path) == before
    assert len(json.loads(index_path().read_text())["runs"]) == 1


def test_an_unreadable_manifest_is_listed_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": 99}')
    found = list_runs(tmp_path)
    assert found[0].status == "unreadable"
    assert "schema 99" in str(found[0].problem)
