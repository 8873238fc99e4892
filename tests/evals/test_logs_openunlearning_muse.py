"""Logs of OpenUnlearning's evaluation on MUSE: the suite muse under that project's names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_logs import Log, Shell, indexed, metric, write

from expunge import api

ROWS = 5


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def answers(numbers: np.random.Generator, topic: str) -> Log:
    recalls = [float(value) for value in numbers.uniform(0, 1, ROWS)]
    rows = [
        {
            "rouge1_recall": 1.0,
            "rougeL_recall": 1.0,
            "rougeL_f1": recall,
            "input": f"Question: Which {topic} is in report {row}?\nAnswer: ",
            "ground_truth": f"{topic} {row}",
            "generation": "none",
        }
        for row, recall in enumerate(recalls)
    ]
    return {"agg_value": float(np.mean(recalls)), "value_by_index": indexed(rows)}


def muse_log(seed: int = 0, *, topic: str = "town") -> Log:
    numbers = np.random.default_rng(seed)
    texts = {side: [float(value) for value in numbers.uniform(1, 3, ROWS)] for side in ("forget", "holdout")}
    area = float(np.mean(np.subtract.outer(texts["holdout"], texts["forget"]) > 0))
    sides = {side: metric("score", losses) for side, losses in texts.items()} | {"agg_value": area}
    return {
        "forget_knowmem_ROUGE": answers(numbers, topic),
        "retain_knowmem_ROUGE": answers(numbers, "year"),
        "forget_verbmem_ROUGE": answers(numbers, "text"),
        "extraction_strength": metric("score", [float(value) for value in numbers.uniform(0, 1, ROWS)]),
        "mia_loss": sides,
        "mia_min_k": sides,
    }


def imported(folder: Path, log: Log, name: str = "log") -> Path:
    done = api.import_log(write(folder / f"{name}.json", log), origin="openunlearning", out=folder / name)
    assert (done.suite, done.profile, done.unread, done.differing) == ("muse", "openunlearning", (), {})
    assert set(done.equal) == log.keys()
    return folder / name


def test_every_aggregate_and_privleak(tmp_path: Path, shell: Shell) -> None:
    log, retrained = muse_log(), muse_log(1)
    ours, theirs = imported(tmp_path, log), imported(tmp_path, retrained, "retrained")
    found = shell.metrics(ours, "--reference", theirs, "--profile", "openunlearning")
    for name, entry in log.items():
        assert found[name]["value"] == pytest.approx(entry["agg_value"]), name
        assert found[name]["ideal"] == pytest.approx(retrained[name]["agg_value"]), name
    hidden, known = (1 - each["mia_min_k"]["agg_value"] for each in (log, retrained))
    assert found["privleak"]["value"] == pytest.approx(100 * (hidden - known) / (known + 1e-10))
    assert found["privleak"]["ideal"] == 0
    assert found["retain_knowmem_ROUGE"]["direction"] == "higher"
    alone = json.loads(shell("metrics", ours, "--json").out)
    assert alone["metrics"]["privleak"]["value"] == pytest.approx(100 * (hidden - 0.5) / 0.5)
    assert alone["skipped"]["exact_memorization"] == "this log has no values for it"
    assert "privleak" not in alone["skipped"]


def test_its_rows_can_be_read(tmp_path: Path, shell: Shell) -> None:
    log = muse_log()
    said = shell("samples", imported(tmp_path, log), "--worst", "forget_knowmem_ROUGE", "-n", "1", "--json")
    (worst,) = json.loads(said.out)["samples"]
    recalls = [row["rougeL_f1"] for row in log["forget_knowmem_ROUGE"]["value_by_index"].values()]
    assert (worst["row"], worst["value"]) == (int(np.argmax(recalls)), max(recalls))
    assert "Which town is in report" in worst["question"]


def test_other_questions_and_other_definitions_are_refused(tmp_path: Path, shell: Shell) -> None:
    ours, other = imported(tmp_path, muse_log()), imported(tmp_path, muse_log(topic="river"), "other")
    said = shell.refused("metrics", ours, "--reference", other)
    assert "forget: the reference is of other questions or of another template in 5 of 5 rows" in said
    for profile in ("canonical", "tofu"):
        said = shell.refused("metrics", ours, "--profile", profile)
        assert f"profile '{profile}' cannot be computed with an imported log" in said
        assert "use --profile openunlearning" in said
