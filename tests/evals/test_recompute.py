"""Metrics from stored tables: which evaluation is found, what is written, what is refused, all without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import expunge
from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.recompute import find_comparable, find_evaluation, read_tables, recompute
from expunge.evals.suite import Tables
from expunge.evals.suites.tofu import measure
from expunge.testing.tables import random_tables

DIGEST = "0123456789abcdef"


def store(
    run: Path,
    tables: Tables | None = None,
    *,
    profile: str = "canonical",
    digest: str = DIGEST,
    first: int | None = None,
    **spec: Any,
) -> Path:
    folder = run / "evals" / (f"tofu-{profile}-{digest[:8]}" + ("" if first is None else f"-first-{first}"))
    folder.mkdir(parents=True)
    tables = tables or random_tables(rows=12)
    pq.write_table(tables.trace, folder / "trace.parquet")
    pq.write_table(tables.generations, folder / "generations.parquet")
    content = {
        "schema": 1,
        "suite": "tofu",
        "profile": profile,
        "template": {"name": "plain", "digest": digest},
        "max_new_tokens": 200,
        "total_length": 200 if profile == "tofu" else None,
        "model_digest": "m0",
        "dtype": "float32",
        "options": {"limit": str(first or "none")},
    }
    (folder / "spec.json").write_text(json.dumps(content | spec))
    return folder


def test_measures_and_writes(tmp_path: Path) -> None:
    tables, retrained = random_tables(rows=12), random_tables(rows=12, seed=1)
    folder = store(tmp_path / "run", tables)
    store(tmp_path / "retrained", retrained, model_digest="m1")
    done = recompute(tmp_path / "run", reference=tmp_path / "retrained")
    expected = measure(read_tables(folder), reference=read_tables(tmp_path / "retrained/evals/tofu-canonical-01234567"))
    assert (done.scores, done.skipped) == expected[:2]
    assert (done.path, done.suite, done.profile, done.metrics_path) == (
        folder,
        "tofu",
        "canonical",
        folder / "metrics.json",
    )
    written = json.loads(done.metrics_path.read_text())
    assert written["schema"] == 1
    assert written["reference"] == {"evaluation": "tofu-canonical-01234567", "model_digest": "m1", "dtype": "float32"}
    assert written["metrics"] == {name: score.to_json() for name, score in done.scores.items()}
    assert all(entry["value"] is not None for entry in written["metrics"].values())
    assert written["skipped"] == done.skipped
    assert sorted(path.name for path in folder.iterdir()) == [
        "generations.parquet",
        "metrics.json",
        "spec.json",
        "trace.parquet",
    ]
    assert recompute(tmp_path / "run", reference=tmp_path / "retrained") == done
    alone = {"forget_quality", "forget_quality_statistic", "membership.reference_auc"}
    assert recompute(folder).skipped.keys() - done.skipped.keys() == alone


def test_another_profile_keeps_its_own_file(tmp_path: Path) -> None:
    folder = store(tmp_path)
    first = recompute(tmp_path).metrics_path.read_text()
    done = recompute(tmp_path, profile="openunlearning")
    assert done.metrics_path == folder / "metrics-openunlearning.json"
    assert "forget_Q_A_Prob" in done.scores
    assert (folder / "metrics.json").read_text() == first


def test_the_evaluation_of_the_profile_is_preferred(tmp_path: Path) -> None:
    canonical, published = store(tmp_path), store(tmp_path, profile="openunlearning")
    assert find_evaluation(tmp_path, profile="canonical").folder == canonical
    assert find_evaluation(tmp_path, profile="openunlearning").folder == published
    with pytest.raises(
        UsageError, match="2 evaluations that fit: tofu-canonical-01234567, tofu-openunlearning-01234567"
    ):
        find_evaluation(tmp_path)
    with pytest.raises(UsageError, match="no evaluation of suite 'muse'"):
        find_evaluation(tmp_path, suite="muse")
    with pytest.raises(UsageError, match="no finished evaluation"):
        find_evaluation(tmp_path / "elsewhere")


def test_a_look_at_the_first_rows_stands_beside_the_evaluation(tmp_path: Path) -> None:
    looks = [store(tmp_path, first=rows) for rows in (2, 10)]
    assert find_evaluation(tmp_path).folder == looks[1]
    whole = store(tmp_path)
    assert find_evaluation(tmp_path).folder == whole
    assert find_evaluation(looks[0]).limit == 2
    ours = find_evaluation(store(tmp_path / "ours", first=2))
    assert find_comparable(tmp_path, ours).folder == looks[0]
    assert find_comparable(tmp_path, find_evaluation(store(tmp_path / "other", first=3))).folder == whole


def test_an_unfinished_evaluation_is_refused(tmp_path: Path) -> None:
    folder = store(tmp_path)
    (folder / "spec.json").unlink()
    for path in (folder, tmp_path):
        with pytest.raises(UsageError, match=r"unfinished|no finished"):
            recompute(path)


def test_a_reference_with_another_template_is_refused(tmp_path: Path) -> None:
    store(tmp_path / "run")
    store(tmp_path / "other", digest="f" * 16)
    with pytest.raises(MetricError, match=r"another template \(plain ffffffff; ours is plain 01234567\)"):
        recompute(tmp_path / "run", reference=tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no evaluation of suite 'tofu'"):
        recompute(tmp_path / "run", reference=tmp_path / "empty")


def test_a_reference_may_have_several_evaluations(tmp_path: Path) -> None:
    store(tmp_path / "run")
    for profile, digest in (("canonical", "f" * 16), ("openunlearning", DIGEST), ("canonical", DIGEST)):
        store(tmp_path / "other", profile=profile, digest=digest)
    done = recompute(tmp_path / "run", reference=tmp_path / "other")
    assert done.reference is not None
    assert done.reference["evaluation"] == "tofu-canonical-01234567"


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = store(tmp_path)
    (folder / "trace.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        recompute(folder)
    pq.write_table(
        random_tables(rows=12).trace.replace_schema_metadata({"expunge.schema": "9"}), folder / "trace.parquet"
    )
    with pytest.raises(DataError, match="table schema 9, this version reads 1"):
        recompute(folder)
    (folder / "spec.json").write_text('{"schema": 1, "suite": "tofu"}')
    with pytest.raises(DataError, match="lacks profile, template"):
        recompute(folder)
    (folder / "spec.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        recompute(folder)


def with_columns(tables: Tables, **columns: list[Any]) -> Tables:
    made = tables.generations
    for name, values in columns.items():
        index = made.schema.get_field_index(name)
        made = made.set_column(index, made.schema.field(index), pa.array(values, made.schema.field(index).type))
    return Tables(tables.trace, made)


def test_answers_beyond_the_original_s_length_limit_are_refused(tmp_path: Path) -> None:
    tables = random_tables(rows=12)
    rows = tables.generations.num_rows
    store(tmp_path / "short", tables)
    assert "ROUGE Forget" in recompute(tmp_path / "short", profile="tofu").scores
    exact = with_columns(tables, token=[[7] * 194] + [[7]] * (rows - 1))
    store(tmp_path / "exact", exact)
    recompute(tmp_path / "exact", profile="tofu")
    long = with_columns(tables, token=[[7] * 195] + [[7]] * (rows - 1))
    store(tmp_path / "long", long)
    with pytest.raises(MetricError, match=f"1 of {rows} greedy answers run past 200 tokens of prompt and answer"):
        recompute(tmp_path / "long", profile="tofu")
    store(tmp_path / "cut", with_columns(tables, ended=[False] * 2 + [True] * (rows - 2)), profile="tofu")
    with pytest.raises(MetricError, match=f"2 of {rows} greedy answers run past a total of 200 tokens"):
        recompute(tmp_path / "cut", profile="canonical")
    recompute(tmp_path / "cut")
    purged = with_columns(tables, token=[None] * rows)
    store(tmp_path / "purged", purged)
    with pytest.raises(MetricError, match="were purged"):
        recompute(tmp_path / "purged", profile="tofu")


BLOCKED = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "accelerate"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Forbid())
from pathlib import Path
from expunge.evals.recompute import recompute
for profile in ("canonical", "openunlearning", "tofu"):
    print(len(recompute(Path(sys.argv[1]), profile=profile, reference=Path(sys.argv[2])).scores))
"""


@pytest.mark.slow
def test_works_without_torch(tmp_path: Path) -> None:
    store(tmp_path / "run")
    store(tmp_path / "retrained", random_tables(rows=12, seed=1))
    source = str(Path(expunge.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r})\n{BLOCKED}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "retrained")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["46", "31", "16"]
