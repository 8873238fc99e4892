"""A purge removes text, and nothing a number is computed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.errors import UsageError
from expunge.runs.cache import entries, open_entry
from expunge.runs.prompt_order import COLUMN
from expunge.runs.purge import purge
from expunge.runs.run import Run
from expunge.runs.tables import GENERATIONS, PURGEABLE, TRACE

SECRET = "Basil Mahfouz"
VALUES: dict[str, Any] = {
    "split": "forget",
    "row": 0,
    "variant": "answer",
    "id": "forget10:0",
    "group": "0",
    "prompt": f"Who is {SECRET}?",
    "target": f"{SECRET} is a writer.",
    "reference": f"{SECRET} is a writer.",
    "output": f"{SECRET}.",
    "token": [3, 4],
    "logp": [-0.5, -0.25],
    "hit": [True, False],
    "rougeL_recall": 0.5,
}


def write(path: Path, schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {name: VALUES.get(name) for name in schema.names}
    pq.write_table(pa.Table.from_pylist([row, row], schema=schema), path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run", kind="unlearn", given={}, resolved={})
    folder = run.eval_dir("tofu", "canonical", "a" * 64)
    write(folder / "trace.parquet", TRACE)
    write(folder / "generations.parquet", GENERATIONS)
    (run.checkpoint_dir(5)).mkdir(parents=True)
    (run.checkpoint_dir(5) / "state.pt").write_bytes(b"x" * 100)
    run.model_dir.mkdir()
    for key, identity in (("own", {"data": "d1"}), ("named", {}), ("other", {"data": "d2"})):
        open_entry("reference", key).write(lambda folder: (folder / "a").write_text("1"), {"identity": identity})
    data = {"role": "forget", "origin": "x", "digest": "y", "rows": 2, "format": "z", "encoded_digest": "d1"}
    run.update(status="finished", caches=["reference/named"], data=[data])
    return run


def read_all(run: Run) -> bytes:
    return b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())


def test_text_checkpoints_and_own_caches_go(run: Run) -> None:
    report = purge(run)
    assert SECRET.split()[0].encode() not in read_all(run)
    assert [len(table.columns) for table in report.tables] == [3, 4]
    assert report.checkpoints == (run.checkpoint_dir(5),)
    assert set(report.caches) == {"reference/own", "reference/named"}
    assert report.freed_bytes > 100
    assert run.checkpoints() == []
    assert [info.key for info in entries()] == ["other"]
    assert run.model_dir.is_dir()


@pytest.mark.parametrize("name", ["trace", "generations"])
def test_everything_else_stays(run: Run, name: str) -> None:
    path = next(run.path.rglob(f"{name}.parquet"))
    before = pq.read_table(path)
    purge(run)
    after = pq.read_table(path)
    assert after.select(before.column_names).schema.equals(before.schema, check_metadata=True)
    assert set(after.column_names) - set(before.column_names) == ({COLUMN} if name == "trace" else set())
    for column in before.column_names:
        if column in PURGEABLE:
            assert after[column].null_count == 2
        else:
            assert after[column].equals(before[column])


def test_a_second_purge_finds_nothing(run: Run) -> None:
    purge(run)
    again = purge(run)
    assert (again.tables, again.checkpoints, again.caches, again.freed_bytes) == ((), (), (), 0)


def test_a_dry_run_removes_nothing(run: Run) -> None:
    before = read_all(run)
    said = purge(run, dry_run=True)
    assert read_all(run) == before
    assert said == purge(run)


def test_a_running_run_is_refused_unless_forced(run: Run) -> None:
    run.update(status="running")
    with pytest.raises(UsageError, match="running"):
        purge(run)
    assert SECRET.split()[0].encode() in read_all(run)
    assert purge(run, force=True).tables
