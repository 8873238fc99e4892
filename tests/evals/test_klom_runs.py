"""KLOM over stored evaluations: which runs may be compared, and what their tables give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from expunge.cli.main import main
from expunge.errors import MetricError, UsageError
from expunge.evals.klom import klom_of_runs
from expunge.metrics.klom import klom, sequence_margins
from expunge.metrics.view import view_split
from expunge.testing.tables import random_tables


def store(folder: Path, seed: int, *, rows: int = 12, **spec: Any) -> Path:
    """An evaluated run whose model answers at random."""
    place = folder / "evals/tofu-canonical-01234567"
    place.mkdir(parents=True)
    tables = random_tables(rows=rows, seed=seed)
    pq.write_table(tables.trace, place / "trace.parquet")
    pq.write_table(tables.generations, place / "generations.parquet")
    content = {
        "schema": 1,
        "suite": "tofu",
        "profile": "canonical",
        "template": {"name": "plain", "digest": "0123456789abcdef"},
        "model_digest": f"m{seed}",
    }
    (place / "spec.json").write_text(json.dumps(content | spec))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [store(tmp_path / f"run{seed}", seed) for seed in range(5)]


def test_every_split_is_compared_row_by_row(runs: list[Path]) -> None:
    found = klom_of_runs(runs[:2], runs[2:])
    assert found.path == "2 unlearned and 3 retrained models"
    margins = []
    for seed in range(5):
        tables = random_tables(rows=12, seed=seed)
        margins.append(
            sequence_margins(view_split(tables.trace, tables.generations, "forget").answers("logp", "with_eos"))
        )
    expected = klom(np.stack(margins[:2]), np.stack(margins[2:]))
    score = found.scores["forget.klom"]
    assert score.value == pytest.approx(expected.mean())
    assert (score.direction, score.ideal, score.n, score.n_total) == ("lower", 0.0, 12, 12)
    assert score.low is not None
    assert score.high is not None
    assert score.low <= score.value <= score.high
    assert found.scores["forget.klom_p95"].value == pytest.approx(np.quantile(expected, 0.95))
    splits = {name.partition(".")[0] for name in found.scores}
    assert {"forget", "retain"} <= splits


def test_the_same_models_on_both_sides_score_zero(runs: list[Path]) -> None:
    assert {score.value for score in klom_of_runs(runs[:3], runs[:3]).scores.values()} == {0.0}


def test_one_model_is_no_sample(runs: list[Path]) -> None:
    with pytest.raises(UsageError, match="1 unlearned, at least 2 are needed"):
        klom_of_runs(runs[:1], runs[1:])
    with pytest.raises(UsageError, match="0 retrained"):
        klom_of_runs(runs, [])


def test_one_model_twice_is_no_sample_either(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hold the same model"):
        klom_of_runs([runs[0], runs[0]], runs[2:])
    copy = store(tmp_path / "copy", 3)
    with pytest.raises(UsageError, match="hold the same model"):
        klom_of_runs(runs[:2], [runs[3], copy])


def test_other_rows_and_other_templates_are_refused(runs: list[Path], tmp_path: Path) -> None:
    short = store(tmp_path / "short", 9, rows=8)
    with pytest.raises(MetricError, match="other rows"):
        klom_of_runs(runs[:2], [runs[2], short])
    other = store(tmp_path / "other", 10, template={"name": "chat", "digest": "f" * 16})
    with pytest.raises(MetricError, match="another template"):
        klom_of_runs([runs[0], other], runs[2:])


def test_the_command(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    references = [part for run in runs[2:] for part in ("--reference", str(run))]
    assert main(["metrics", str(runs[0]), str(runs[1]), *references, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metrics"]["forget.klom"]["value"] == klom_of_runs(runs[:2], runs[2:]).scores["forget.klom"].value
    assert main(["metrics", str(runs[0]), str(runs[1]), *references, "--fail-if", "forget.klom>0.5"]) == 5
    out, err = capsys.readouterr()
    assert "forget.klom_p95" in out
    assert "2 unlearned and 3 retrained models" in err
    assert main(["metrics", str(runs[0]), *references]) == 2
    assert "at least 2 are needed" in capsys.readouterr().err
    assert main(["metrics", str(runs[0]), "--reference", str(runs[1])]) == 0
    assert "forget.extraction_strength" in capsys.readouterr().out
    assert not list(runs[1].glob("evals/*/metrics*"))
