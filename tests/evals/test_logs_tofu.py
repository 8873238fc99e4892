"""TOFU's own logs, with the numbers of twelve published models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from foreign_logs import Log, Shell, questions, tofu_file, write

from expunge import api

EXACT: Any = {"rel": 1e-9, "abs": 1e-12}
FILES = ("eval_log.json", "eval_real_author_wo_options.json", "eval_real_world_wo_options.json", "eval_log_forget.json")


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def recorded(conformance_dir: Path) -> Log:
    path = conformance_dir / "tofu_logs.json"
    if not path.is_file():
        pytest.skip(f"no tofu_logs.json in {conformance_dir}")
    found: Log = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def logs(recorded: Log, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model -> its log, imported."""
    out, found = tmp_path_factory.mktemp("tofu"), {}
    for model, inputs in recorded["inputs"].items():
        found[model] = out / model
        log = {name: tofu_file(inputs[name]) for name in FILES}
        file = write(out / "files" / model / "eval_log_aggregated.json", log)
        api.import_log(file, origin="tofu", out=found[model])
    return found


@pytest.mark.slow
def test_every_logged_model(recorded: Log, logs: dict[str, Path], shell: Shell) -> None:
    assert len(logs) == 12
    for model, folder in logs.items():
        expected = recorded["model_utility"][model]
        own = shell.metrics(folder)
        for name, value in expected["tofu_aggregate_eval_stat"].items():
            assert own[name]["value"] == pytest.approx(value, **EXACT), (model, name)
        theirs = shell.metrics(folder, "--profile", "openunlearning")
        for name, value in expected["open_unlearning"].items():
            name = "forget_truth_ratio" if name == "forget_Truth_Ratio" else name
            assert theirs[name]["value"] == pytest.approx(value, **EXACT), (model, name)


@pytest.mark.slow
def test_every_logged_pair(recorded: Log, logs: dict[str, Path], shell: Shell) -> None:
    refused = again = 0
    for pair in recorded["forget_quality"]:
        ours, theirs = pair["unlearn"], pair["retain"]
        sizes = [len(recorded["inputs"][name]["eval_log_forget.json"]["avg_gt_loss"]) for name in (ours, theirs)]
        words = (logs[ours], "--reference", logs[theirs])
        if sizes[0] != sizes[1]:
            # A retrained model's log for another forget set: its p-value would say nothing.
            said = shell.refused("metrics", *words)
            assert f"forget: the reference is of other questions: {sizes[1]} rows against {sizes[0]}" in said
            refused += 1
            continue
        found = shell.metrics(*words)
        assert found["Forget Quality"]["value"] == pytest.approx(pair["tofu_pvalue"], rel=1e-6, abs=1e-30)
        assert found["KS Test Forget"]["value"] == pytest.approx(pair["tofu_ks_stat"], **EXACT)
        if again < 2:
            # The constant in its denominators changes no rank here, so two pairs say it all.
            again += 1
            found = shell.metrics(*words, "--profile", "openunlearning")
            expected = pair["open_unlearning_pvalue"]
            assert found["forget_quality"]["value"] == pytest.approx(expected, rel=1e-6, abs=1e-30)
    assert again == 2
    assert 0 < refused < len(recorded["forget_quality"]) == 11


# The format


def small() -> Log:
    losses = {
        "avg_gt_loss": [0.5, 1.0, 1.5],
        "average_perturb_loss": [[1.0, 2.0], [2.0, 3.0], [1.5, 2.5]],
        "avg_paraphrased_loss": [0.75, 1.25, 1.75],
        "rougeL_recall": [0.9, 0.5, 0.1],
    }
    return {name: tofu_file(losses) for name in FILES}


def imported(folder: Path, log: Any) -> Path:
    api.import_log(write(folder / "eval_log_aggregated.json", log), origin="tofu", out=folder / "out")
    return folder / "out"


def test_lists_of_older_logs_are_rows_in_order(tmp_path: Path, shell: Shell) -> None:
    log = small()
    new = shell.metrics(imported(tmp_path / "new", log))
    older = {name: {key: list(values.values()) for key, values in file.items()} for name, file in log.items()}
    assert shell.metrics(imported(tmp_path / "older", older)) == new


def test_one_file_of_the_four(tmp_path: Path, shell: Shell) -> None:
    file = write(tmp_path / "eval_log_forget.json", small()["eval_log_forget.json"])
    assert shell("import", "--from", "tofu", file, "--out", tmp_path / "out").code == 0
    found = shell.metrics(tmp_path / "out")
    assert found["ROUGE Forget"]["value"] == pytest.approx(0.5)
    assert "Model Utility" not in found


def refusal(tmp_path: Path, shell: Shell, log: Any) -> str:
    file = write(tmp_path / "eval_log_aggregated.json", log)
    return shell.refused("import", "--from", "tofu", file, "--out", tmp_path / "out")


def test_a_file_that_is_missing(tmp_path: Path, shell: Shell) -> None:
    log = small()
    del log["eval_log_forget.json"]
    said = refusal(tmp_path, shell, log)
    assert "lacks eval_log_forget.json (it has: eval_log.json, eval_real_author_wo_options.json, eval_real_w" in said


def test_a_quantity_that_is_missing(tmp_path: Path, shell: Shell) -> None:
    log = small()
    del log["eval_log.json"]["avg_paraphrased_loss"]
    said = refusal(tmp_path, shell, log)
    assert "eval_log.json lacks avg_paraphrased_loss (it has: avg_gt_loss, average_perturb_loss, rougeL_recall" in said


def test_a_value_that_is_not_a_number(tmp_path: Path, shell: Shell) -> None:
    log = small()
    log["eval_log_forget.json"]["average_perturb_loss"]["1"] = [2.0, float("nan")]
    said = refusal(tmp_path, shell, log)
    assert "eval_log_forget.json (average_perturb_loss): 1 of 3 rows are not a finite number (rows 1;" in said


def test_quantities_of_different_rows(tmp_path: Path, shell: Shell) -> None:
    log = small()
    del log["eval_log.json"]["rougeL_recall"]["2"]
    said = refusal(tmp_path, shell, log)
    assert "eval_log.json: rougeL_recall and avg_gt_loss are of different rows (rows 2 are in one of them)" in said


def test_a_retain_log_of_other_questions(tmp_path: Path, shell: Shell) -> None:
    log = small()
    ours = imported(tmp_path / "ours", log)
    texts = [[f"[INST] {question} [/INST]", "out", "right"] for question in questions(3, topic="age")]
    log["eval_log_forget.json"]["generated_text"] = dict(enumerate(texts))
    theirs = imported(tmp_path / "theirs", log)
    said = shell.refused("metrics", ours, "--reference", theirs)
    assert "forget: the reference is of other questions or of another template in 3 of 3 rows (rows 0, 1, 2)" in said
