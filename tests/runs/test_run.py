"""Starting, resuming, refusing and replacing a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import DataError, UsageError
from expunge.runs import manifest as manifests
from expunge.runs.manifest import load_manifest
from expunge.runs.run import Run, differing, resume_key

SETTINGS: dict[str, Any] = {
    "kind": "unlearn",
    "method": {"name": "npo", "beta": 0.1},
    "train": {"learning_rate": 1e-5, "token_budget": "auto"},
    "output_dir": "runs/a",
    "device": None,
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**SETTINGS, **changes}


def create(path: Path, settings: dict[str, Any] = SETTINGS, *, overwrite: bool = False) -> Run:
    return Run.create(path, kind="unlearn", given={"seed": 1}, resolved=settings, overwrite=overwrite)


def test_a_new_run_is_written_down(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    again = Run.open(tmp_path / "run")
    assert again.manifest == run.manifest
    assert not run.resumed
    assert (again.manifest.kind, again.manifest.status, again.manifest.schema_version) == ("unlearn", "running", 1)
    assert again.manifest.resolved["method"] == {"name": "npo", "beta": 0.1}
    assert {"expunge", "python", "torch"} <= again.manifest.versions.keys()


def test_an_unfinished_run_with_the_same_settings_resumes_and_keeps_its_facts(tmp_path: Path) -> None:
    create(tmp_path).update(token_budget=1024, status="stopped", stop_reason="interrupted")
    again = create(tmp_path, changed(output_dir="elsewhere", device="cpu"))
    assert again.resumed
    assert again.manifest.token_budget == 1024
    assert (Run.open(tmp_path).manifest.status, again.manifest.stop_reason) == ("running", None)


def test_a_finished_run_is_kept(tmp_path: Path) -> None:
    create(tmp_path).update(status="finished")
    with pytest.raises(UsageError, match="finished run with these settings") as caught:
        create(tmp_path)
    assert "--overwrite" in str(caught.value.hint)


def test_other_settings_are_listed(tmp_path: Path) -> None:
    create(tmp_path)
    other = changed(method={"name": "npo", "beta": 0.5}, seed=3)
    with pytest.raises(UsageError, match=r"method\.beta: 0\.1 -> 0\.5; seed: \(not set\) -> 3"):
        create(tmp_path, other)


def test_a_run_of_another_kind_is_kept(tmp_path: Path) -> None:
    create(tmp_path)
    with pytest.raises(UsageError, match="expunge unlearn"):
        Run.create(tmp_path, kind="eval", given={}, resolved=SETTINGS)


def test_overwrite_removes_the_run_and_nothing_beside_it(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.append({"event": "step", "step": 1})
    run.checkpoint_dir(3).mkdir(parents=True)
    run.model_dir.mkdir()
    run.update(status="finished")
    (tmp_path / "notes.txt").write_text("mine")
    again = create(tmp_path, changed(seed=2), overwrite=True)
    assert not again.resumed
    assert again.events() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "notes.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="not a run"):
        create(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_foreign_manifest_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(DataError, match="not a manifest of expunge"):
        create(tmp_path, overwrite=True)
    assert (tmp_path / "manifest.json").exists()


def test_what_a_kill_during_the_first_write_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.17-ab.tmp").write_text("{")
    assert not create(tmp_path).resumed


def test_a_file_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        create(tmp_path / "file")


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        Run.open(tmp_path)


def test_paths(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert run.checkpoint_dir(40).name == "step-000040"
    for name in ("step-000040", "step-000008", ".partial-000048"):
        (run.checkpoints_dir / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints()] == ["step-000008", "step-000040"]
    folder = run.eval_dir("tofu", "canonical", "0123456789abcdef")
    folder.mkdir(parents=True)
    assert folder.name == "tofu-canonical-01234567"


def test_a_slip_in_an_update_is_found(tmp_path: Path) -> None:
    run = create(tmp_path)
    with pytest.raises(ValueError, match="has no field step"):
        run.update(step=3)
    with pytest.raises(ValueError):
        run.update(status="done")
    assert Run.open(tmp_path).manifest.status == "running"


def test_the_resume_key_ignores_order_and_where_it_runs() -> None:
    assert resume_key(dict(reversed(SETTINGS.items()))) == resume_key(SETTINGS)
    moved = changed(output_dir="b", device="cuda", train={"learning_rate": 1e-5, "token_budget": 4096})
    assert resume_key(moved) == resume_key(SETTINGS)
    assert differing(SETTINGS, moved) == []


@pytest.mark.parametrize(
    "other",
    [changed(seed=1), changed(method={"name": "npo"}), changed(train={"learning_rate": 2e-5, "token_budget": "auto"})],
)
def test_the_resume_key_sees_what_changes_the_result(other: dict[str, Any]) -> None:
    assert resume_key(other) != resume_key(SETTINGS)
    assert len(differing(SETTINGS, other)) == 1


def test_no_credential_is_written(tmp_path: Path) -> None:
    secret = "hf_" + "a1B2" * 6
    given = {
        "hf_token": "abc",
        "api_key": "def",
        "model": {"name": f"https://me:{secret}@host/x", "password": "ghi"},
        "tokens": [secret],
        "train": {"token_budget": 12, "tokenizer": "t"},
    }
    Run.create(tmp_path, kind="unlearn", given=given, resolved=given)
    text = (tmp_path / "manifest.json").read_text()
    assert not any(word in text for word in (secret, "abc", "def", "ghi", "me:"))
    assert load_manifest(tmp_path).given["train"] == {"token_budget": 12, "tokenizer": "t"}


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"schema": 99}))
    with pytest.raises(UsageError, match="schema 99") as caught:
        load_manifest(path)
    assert "upgrade" in str(caught.value.hint)


def test_an_older_schema_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path)
    path = tmp_path / "manifest.json"
    old = json.loads(path.read_text()) | {"schema": 0}
    old["task"] = old.pop("kind")
    path.write_text(json.dumps(old))
    with pytest.raises(DataError, match="schema 0"):
        load_manifest(path)
    monkeypatch.setitem(manifests.MIGRATIONS, 0, lambda raw: {"kind": raw.pop("task"), **raw})
    assert load_manifest(path).kind == "unlearn"


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}'])
def test_a_broken_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_manifest(tmp_path)
