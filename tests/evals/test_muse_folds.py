"""MUSE's scalability and sustainability: curves over stored runs, and which of the two they are."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from expunge.cli.main import main
from expunge.errors import MetricError, UsageError
from expunge.evals.folds import folds_of_runs
from expunge.runs.manifest import DataInfo, ModelInfo
from expunge.runs.run import Run
from expunge.testing.tables import answer_row, make_tables, text_row


def fold(path: Path, *, start: str, model: str, rouge: float, rows: int = 3, scored_for: str = "canonical") -> Path:
    """An unlearned run, evaluated: where it started from, what it became, and how well it answers."""
    forget = DataInfo(role="forget", origin="forget.json", digest="d", rows=rows * 10, format="text")
    run = Run.create(path, kind="unlearn", given={}, resolved={})
    run.update(status="finished", model=ModelInfo(name="start", digest=start), data=(forget,))
    splits = ("forget", "retain", "forget_verbatim")
    texts = [text_row(split, row, "answer", [-1.0, -1.0]) for split in splits for row in range(3)]
    answers = [answer_row(split, row, rouge=rouge) for split in splits for row in range(3)]
    folder = path / "evals/muse-canonical-01234567"
    folder.mkdir(parents=True)
    stored = make_tables(texts, answers)
    pq.write_table(stored.trace, folder / "trace.parquet")
    pq.write_table(stored.generations, folder / "generations.parquet")
    spec = {
        "schema": 1,
        "suite": "muse",
        "profile": "canonical",
        "options": {"scored_for": scored_for},
        "template": {"name": "plain", "digest": "0123456789abcdef"},
        "model_digest": model,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return path


@pytest.fixture
def larger(tmp_path: Path) -> list[Path]:
    """Three folds, each removed by itself."""
    return [
        fold(tmp_path / f"scal{n}", start="target", model=f"s{n}", rouge=0.8 - 0.2 * n, rows=n) for n in range(1, 4)
    ]


@pytest.fixture
def successive(tmp_path: Path) -> list[Path]:
    """Three folds, one removed after the other."""
    starts = ("target", "m1", "m2")
    return [
        fold(tmp_path / f"sust{n}", start=start, model=f"m{n}", rouge=0.7 - 0.1 * n)
        for n, start in enumerate(starts, 1)
    ]


def test_runs_from_one_model_are_scalability(larger: list[Path]) -> None:
    found = folds_of_runs(larger)
    assert found.path == "scalability: 3 runs, 10, 20, 30 rows to forget"
    curve = [found.scores[f"retain.knowmem@{n}"].value for n in (1, 2, 3)]
    assert curve == pytest.approx([0.6, 0.4, 0.2])
    assert len(found.scores) == 9
    assert found.scores["retain.knowmem@1"].direction == "higher"
    assert found.scores["forget_verbatim.verbmem@3"].direction == "lower"


def test_runs_from_one_another_are_sustainability(successive: list[Path]) -> None:
    found = folds_of_runs(successive)
    assert found.path == "sustainability: 3 runs, 30, 30, 30 rows to forget"
    assert found.scores["retain.knowmem@3"].value == pytest.approx(0.4)


def test_runs_in_the_wrong_order_are_neither(successive: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"run 2 \(.*sust3\) does not start from the one before it"):
        folds_of_runs([successive[0], successive[2], successive[1]])


def test_what_cannot_be_a_fold(larger: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least two runs, found 1"):
        folds_of_runs(larger[:1])
    trained = Run.create(tmp_path / "trained", kind="train", given={}, resolved={})
    (larger[0] / "evals").rename(trained.path / "evals")
    with pytest.raises(UsageError, match="kind of run: train"):
        folds_of_runs([trained.path, larger[1]])


def test_other_rows_and_other_scoring_are_refused(larger: list[Path], tmp_path: Path) -> None:
    scored = fold(tmp_path / "scored", start="target", model="x", rouge=0.5, scored_for="openunlearning")
    with pytest.raises(MetricError, match="scored for the profile 'openunlearning'"):
        folds_of_runs([larger[0], scored])
    place = larger[1] / "evals/muse-canonical-01234567"
    table = pq.read_table(place / "trace.parquet")
    pq.write_table(table.slice(0, table.num_rows - 1), place / "trace.parquet")
    table = pq.read_table(place / "generations.parquet")
    pq.write_table(table.slice(0, table.num_rows - 1), place / "generations.parquet")
    with pytest.raises(MetricError, match=r"forget_verbatim: .* measured on other rows"):
        folds_of_runs(larger)


def test_the_command(larger: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in larger]
    assert main(["metrics", *paths, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metrics"]["retain.knowmem@2"]["value"] == pytest.approx(0.4)
    assert main(["metrics", *paths, "--suite", "muse", "--fail-if", "retain.knowmem@3<0.5"]) == 5
    out, err = capsys.readouterr()
    assert "forget.knowmem@1" in out
    assert "scalability" in err
    assert main(["metrics", *paths, "--profile", "openunlearning"]) == 3
    assert "scored for the profile" in capsys.readouterr().err
    assert main(["metrics", *paths, "--reference", paths[0]]) == 2, "with a reference it is KLOM"
