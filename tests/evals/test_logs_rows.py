"""An imported log beside other commands: rows behind its scores, a report that it cannot give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from foreign_logs import Log, Shell, open_log, questions, tofu_file, write

from expunge import api
from expunge.errors import UsageError
from expunge.evals.recompute import recompute, remeasure
from expunge.report.collect import compared
from expunge.report.samples import NOT_IN_LOG, pick_samples
from expunge.runs.run import Run
from expunge.runs.store import atomic_write_json
from expunge.testing.tables import answer_row, make_tables, text_row


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def imported(folder: Path, log: Any, name: str = "log", *, origin: str = "openunlearning") -> Path:
    api.import_log(write(folder / "files" / f"{name}.json", log), origin=origin, out=folder / name)
    return folder / name


def muse_log(folder: Path) -> Path:
    rows = [
        {"question": f"Who wrote report {row}?", "prompt": "", "gt": f"Person {row}", "response": "Somebody"}
        | dict.fromkeys(("rougeL", "rougeL_recall", "rouge1", "rouge1_recall"), (row + 1) / 4)
        for row in range(3)
    ]
    write(folder / "of_muse" / "knowmem_f" / "history.json", rows)
    for side, shift in (("forget", 0.0), ("holdout", 1.5)):
        texts = [{"text": "t", "ppl": {"Min-40%": shift + row}} for row in range(3)]
        write(folder / "of_muse" / "privleak" / f"{side}.json", texts)
    write(folder / "of_muse" / "privleak" / "auc.json", {"forget_holdout": {"Min-40%": 1 / 9}})
    api.import_log(folder / "of_muse", origin="muse", out=folder / "muse")
    return folder / "muse"


def test_every_mean_of_a_log_has_its_rows(tmp_path: Path) -> None:
    log = open_log()
    log["exact_memorization"]["value_by_index"]["2"]["score"] = None
    for folder in (imported(tmp_path, log), muse_log(tmp_path)):
        found = remeasure(folder).measured
        assert found.rows
        for name, rows in found.rows.items():
            assert rows.values[rows.valid].mean() == pytest.approx(found.scores[name].value), name
            assert rows.valid.sum() == found.scores[name].n or "mia" in name or "Min" in name
        whole = {"model_utility", "privleak", "forget_quality", "forget_quality_statistic"}
        assert {
            name for name in found.scores.keys() - found.rows.keys() if ".max" not in name and "max_" not in name
        } <= whole


def test_the_worst_rows_of_a_log(tmp_path: Path, shell: Shell) -> None:
    log = open_log(seed=5)
    folder = imported(tmp_path, log)
    recalls = [row["rougeL_recall"] for row in log["forget_Q_A_ROUGE"]["value_by_index"].values()]
    found = pick_samples(folder, "forget_Q_A_ROUGE", number=2)
    assert [sample.row for sample in found.samples] == np.argsort(np.negative(recalls))[:2].tolist()
    first = found.samples[0]
    assert (first.value, first.output.text) == (max(recalls), "Green.")
    assert questions(6)[first.row] in str(first.question.text)
    assert first.answer.text == f"Colour number {first.row}."
    said = shell("samples", folder, "--worst", "forget_Q_A_ROUGE", "-n", "1")
    assert said.code == 0
    assert "model     Green." in said.out
    assert "tofu (openunlearning)" in said.err
    # As in an evaluation of our own: what is to be matched has no worst row without the value to match.
    assert "--reference RUN" in shell.refused("samples", folder, "--worst", "forget_truth_ratio")
    assert "is not a mean over the rows" in shell.refused("samples", folder, "--worst", "privleak")


def test_a_text_that_was_not_logged_is_absent_with_its_reason(tmp_path: Path) -> None:
    losses = {
        "avg_gt_loss": [0.5, 1.0],
        "average_perturb_loss": [[1.0, 2.0], [2.0, 3.0]],
        "avg_paraphrased_loss": [0.75, 1.25],
        "rougeL_recall": [0.9, 0.5],
    }
    file: Log = tofu_file(losses)
    del file["generated_text"]
    path = write(tmp_path / "eval_log_forget.json", file)
    api.import_log(path, origin="tofu", out=tmp_path / "log")
    (sample, _) = pick_samples(tmp_path / "log", "ROUGE Forget").samples
    assert sample.row == 0
    for text in (sample.question, sample.answer, sample.output):
        assert (text.text, text.note) == (None, NOT_IN_LOG)


def test_forgotten_text_of_a_log_can_be_withheld(tmp_path: Path, shell: Shell) -> None:
    for folder, metric in ((imported(tmp_path, open_log()), "forget_Q_A_Prob"), (muse_log(tmp_path), "knowmem_f")):
        shown = json.loads(shell("samples", folder, "--worst", metric, "--json").out)["samples"][0]
        assert shown["question"]
        said = shell("samples", folder, "--worst", metric, "--redact")
        assert said.code == 0, said.err
        for text in (shown["question"], shown["answer"], shown["output"]):
            assert text not in said.out
        assert "withheld, HMAC" in said.out


def test_an_auc_of_muse_s_texts_knows_chance(tmp_path: Path, shell: Shell) -> None:
    folder = muse_log(tmp_path)
    found = shell.metrics(folder)
    assert found["forget_holdout_Min-40%"]["ideal"] == 0.5
    assert found["knowmem_f"]["value"] == pytest.approx(50)
    said = shell("samples", folder, "--worst", "forget_holdout_Min-40%", "-n", "1", "--json")
    (worst,) = json.loads(said.out)["samples"]
    assert (worst["row"], worst["value"]) == (1, 0)
    assert set(worst["absent"].values()) == {NOT_IN_LOG, "no answer was generated", "the row has no group"}


def test_scores_stand_under_one_key(tmp_path: Path, shell: Shell) -> None:
    folder = imported(tmp_path, open_log())
    printed = json.loads(shell("metrics", folder, "--json").out)
    assert printed["metrics"] == json.loads((folder / "metrics.json").read_text())["metrics"]
    assert printed.keys() == {"path", "suite", "profile", "metrics", "skipped"}


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_log_is_no_run_to_report_on(tmp_path: Path, shell: Shell, command: str) -> None:
    folder = imported(tmp_path, open_log())
    words = (folder, folder) if command == "compare" else (folder,)
    said = shell.refused(command, *words)
    assert "is an imported log: there is no run and no model to report on" in said
    assert f"expunge metrics {folder}" in said


def test_a_report_says_that_the_retrained_model_is_a_log(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", kind="eval", given={}, resolved={})
    run.update(status="finished")
    folder = run.eval_dir("tofu", "openunlearning", "ab" * 32)
    folder.mkdir(parents=True)
    variants = ("answer", "paraphrase", *(f"perturbed_{number}" for number in range(5)))
    texts = [text_row("forget", row, variant, [-0.1 * (row + 1)] * 2) for row in range(6) for variant in variants]
    answers = [answer_row("forget", row, prompt=question) for row, question in enumerate(questions(6))]
    for name, table in zip(("trace", "generations"), make_tables(texts, answers), strict=True):
        pq.write_table(table, folder / f"{name}.parquet")
    spec = {
        "schema": 1,
        "suite": "tofu",
        "profile": "openunlearning",
        "template": {"name": "plain", "digest": "ab" * 32},
    }
    atomic_write_json(folder / "spec.json", spec)
    recompute(run.path, reference=imported(tmp_path, open_log(), "retrained-log"))
    found = compared(run.path)
    assert found.retrained is None
    assert "by an imported log alone (retrained-log)" in found.reasons["retrained"]
    assert not any("--reference" in command for command in found.commands)
    assert found.this.scores["forget_truth_ratio"].ideal is not None


def test_a_log_has_no_start(tmp_path: Path) -> None:
    folder = imported(tmp_path, open_log())
    with pytest.raises(UsageError, match="starting model"):
        remeasure(folder, start=folder)


def test_logs_of_two_suites_are_not_compared(tmp_path: Path, shell: Shell) -> None:
    said = shell.refused("metrics", imported(tmp_path, open_log()), "--reference", muse_log(tmp_path))
    assert "no evaluation of suite 'tofu'" in said
