"""Logs of OpenUnlearning: what is in them is what we compute, and what cannot be used is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from foreign_logs import Log, Shell, open_log, questions, write

from expunge import api
from expunge.errors import UsageError
from expunge.evals.recompute import find_evaluation, find_reference
from expunge.metrics.forget_quality import ks_test
from expunge.runs.store import atomic_write_json
from expunge.testing.tables import answer_row, make_tables, text_row

FULL = "tofu_Llama-3.2-1B-Instruct_full/evals_forget01"
RETAIN = "tofu_Llama-3.2-1B-Instruct_retain99"
FLOAT32: Any = {"rel": 1e-6, "abs": 1e-9}


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def published(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two published logs, imported as `full` and `retain`."""
    out = tmp_path_factory.mktemp("published")
    for name, folder in (("full", FULL), ("retain", RETAIN)):
        file = shared / "data" / "logs_tofu_openunlearning" / folder / "TOFU_EVAL.json"
        done = api.import_log(file, origin="openunlearning", out=out / name)
        assert done.differing == {}
        assert done.unread == ()
        assert len(done.equal) >= 26
        assert done.rows == {"forget": 40, "retain": 400, "real_authors": 100, "world_facts": 117, "holdout": 40}
    return out


def content(shared: Path, folder: str, file: str) -> Log:
    found: Log = json.loads((shared / "data" / "logs_tofu_openunlearning" / folder / file).read_text())
    return found


def aggregates(log: Log) -> dict[str, float]:
    return {name: entry["agg_value"] for name, entry in log.items() if entry["agg_value"] is not None}


def imported(folder: Path, log: Any, name: str = "log") -> Path:
    file = write(folder / f"{name}.json", log)
    api.import_log(file, origin="openunlearning", out=folder / name)
    return folder / name


@pytest.mark.parametrize(("name", "folder", "options"), [("full", FULL, ["retain"]), ("retain", RETAIN, [])])
def test_every_aggregate_and_summary_of_the_published_logs(
    published: Path, shared: Path, shell: Shell, name: str, folder: str, options: list[str]
) -> None:
    reference = [word for option in options for word in ("--reference", published / option)]
    found = shell.metrics(published / name, *reference, "--profile", "openunlearning")
    expected = aggregates(content(shared, folder, "TOFU_EVAL.json"))
    assert expected.keys() <= found.keys()
    for metric, value in expected.items():
        assert found[metric]["value"] == pytest.approx(value, **FLOAT32), metric
    for metric, value in content(shared, folder, "TOFU_SUMMARY.json").items():
        assert found[metric]["value"] == pytest.approx(value, **FLOAT32), metric


def test_scores_know_their_ideals(published: Path, shell: Shell) -> None:
    found = shell.metrics(published / "full", "--reference", published / "retain")
    assert found["forget_truth_ratio"]["ideal"] == pytest.approx(0.651601, abs=1e-6)
    assert found["forget_quality_statistic"]["value"] == pytest.approx(15 / 40)
    assert found["forget_quality"]["ideal"] == 1
    assert found["model_utility"]["low"] < found["model_utility"]["value"] < found["model_utility"]["high"]
    stored = json.loads((published / "full" / "metrics.json").read_text())
    assert stored["reference"] == {"evaluation": "retain", "questions": "compared"}


def test_a_log_under_tofu_s_own_names(published: Path, shell: Shell) -> None:
    found = shell.metrics(published / "full", "--reference", published / "retain", "--profile", "tofu")
    assert found["Forget Quality"]["value"] == pytest.approx(0.0067607323, rel=1e-6)
    assert found["Prob. Forget"]["value"] == pytest.approx(0.9011520192, rel=1e-6)
    assert found["ROUGE Retain"]["n"] == 300


def test_the_complete_log_of_a_tiny_model(shared: Path, tmp_path: Path, shell: Shell) -> None:
    file = shared / "conformance" / "end_to_end" / "TOFU_EVAL_full.json"
    assert shell("import", "--from", "openunlearning", file, "--out", tmp_path / "a").out == f"{tmp_path / 'a'}\n"
    found = shell.metrics(tmp_path / "a")
    expected = aggregates(json.loads(file.read_text()))
    for metric in expected.keys() - {"forget_quality", "privleak"}:
        assert found[metric]["value"] == pytest.approx(expected[metric], **FLOAT32), metric


def test_what_an_import_says(tmp_path: Path, shell: Shell) -> None:
    log = open_log() | {"forget_rare_metric": {"agg_value": 0.5}}
    log["exact_memorization"]["agg_value"] = 0.123
    said = shell(
        "import", "--from", "openunlearning", write(tmp_path / "l.json", log), "--out", tmp_path / "a", "--json"
    )
    found = json.loads(said.out)
    assert found["rows"] == {"forget": 6, "holdout": 6}
    assert found["unread"] == ["forget_rare_metric"]
    assert found["differing"]["exact_memorization"]["log"] == 0.123
    assert set(found["equal"]) == {*aggregates(log)} - {"exact_memorization", "forget_rare_metric"}
    assert "6 of 7 aggregates of the log follow from its rows" in said.err
    assert "warning: exact_memorization is" in said.err
    assert "forget_rare_metric" in json.loads(shell("metrics", tmp_path / "a", "--json").out)["skipped"]


def test_without_a_reference_privleak_is_against_chance(tmp_path: Path, shell: Shell) -> None:
    found = shell.metrics(imported(tmp_path, open_log()))
    hidden = 1 - found["mia_min_k"]["value"]
    assert found["privleak"]["value"] == pytest.approx(100 * (hidden - 0.5) / (0.5 + 1e-10))
    assert "forget_quality" not in found


def test_a_row_that_could_not_be_measured_is_left_out(tmp_path: Path, shell: Shell) -> None:
    log = open_log()
    log["exact_memorization"]["value_by_index"]["2"]["score"] = None
    log["forget_Q_A_PARA_Prob"]["value_by_index"]["3"] = None
    found = shell.metrics(imported(tmp_path, log))
    assert (found["exact_memorization"]["n"], found["exact_memorization"]["n_total"]) == (5, 6)
    assert found["forget_truth_ratio"]["n"] == 5


def test_the_order_of_rows_does_not_matter(tmp_path: Path, shell: Shell) -> None:
    log = open_log()
    turned = {name: {**entry} for name, entry in log.items()}
    for entry in turned.values():
        if "value_by_index" in entry:
            entry["value_by_index"] = dict(reversed(entry["value_by_index"].items()))
    assert shell.metrics(imported(tmp_path, turned, "turned")) == shell.metrics(imported(tmp_path, log))


# A log beside an evaluation of our own


def own_evaluation(folder: Path, log: Log, asked: list[str]) -> Path:
    """An evaluation with the losses of a log, stored as `expunge eval` stores it."""
    texts, answers = [], []
    for row, question in enumerate(asked):
        entry = {
            name: log[f"forget_Q_A_{name}"]["value_by_index"][str(row)]["avg_loss"] for name in ("Prob", "PARA_Prob")
        }
        wrong = log["forget_Q_A_PERT_Prob"]["value_by_index"][str(row)]["avg_loss"]
        texts.append(text_row("forget", row, "answer", [-entry["Prob"]] * 2, prompt=question, moments=True))
        texts.append(text_row("forget", row, "paraphrase", [-entry["PARA_Prob"]]))
        texts += [text_row("forget", row, f"perturbed_{i}", [-loss]) for i, loss in enumerate(wrong)]
        answers.append(answer_row("forget", row, prompt=question))
    tables = make_tables(texts, answers)
    folder.mkdir()
    for name, table in zip(("trace", "generations"), tables, strict=True):
        pq.write_table(table, folder / f"{name}.parquet")
    spec = {"schema": 1, "suite": "tofu", "profile": "openunlearning", "template": {"name": "auto", "digest": "abc"}}
    atomic_write_json(folder / "spec.json", spec)
    return folder


def ratios(log: Log) -> np.ndarray[Any, Any]:
    losses = [log[f"forget_Q_A_{name}"]["value_by_index"].values() for name in ("PARA_Prob", "PERT_Prob")]
    return np.array([np.exp(a["avg_loss"] - np.mean(b["avg_loss"])) for a, b in zip(*losses, strict=True)])


def test_a_log_is_the_reference_of_our_own_evaluation(tmp_path: Path, shell: Shell) -> None:
    log, ours = open_log(seed=1), open_log(seed=2)
    reference = imported(tmp_path, log)
    own = own_evaluation(tmp_path / "own", ours, questions(6))
    found = shell.metrics(own, "--reference", reference, "--profile", "openunlearning")
    assert found["forget_quality"]["value"] == pytest.approx(ks_test(ratios(ours), ratios(log)).pvalue)
    assert found["forget_Q_A_Prob"]["ideal"] == pytest.approx(log["forget_Q_A_Prob"]["agg_value"])
    swapped = shell.metrics(reference, "--reference", own)
    assert swapped["forget_quality"]["value"] == pytest.approx(found["forget_quality"]["value"])
    assert swapped["forget_Q_A_Prob"]["ideal"] == pytest.approx(ours["forget_Q_A_Prob"]["agg_value"])


def test_our_own_evaluation_against_a_log_of_other_questions(tmp_path: Path, shell: Shell) -> None:
    reference = imported(tmp_path, open_log())
    asked = [*questions(6)[:5], "Who built house number 5?"]
    own = own_evaluation(tmp_path / "own", open_log(), asked)
    said = shell.refused("metrics", own, "--reference", reference, "--profile", "openunlearning")
    assert "other questions or of another template in 1 of 6 rows (rows 5)" in said


# What is refused


def test_a_retain_log_of_other_questions(tmp_path: Path, shell: Shell) -> None:
    ours = imported(tmp_path, open_log(), "ours")
    asked = questions(6)
    asked[4] = "Who lives in house number 4?"
    theirs = imported(tmp_path, open_log(asked=asked), "theirs")
    said = shell.refused("metrics", ours, "--reference", theirs)
    assert (
        "forget: the reference is of other questions or of another template in 1 of 6 rows (rows 4); row 4 is" in said
    )
    assert "Who lives in house number 4?" in said


def test_a_retain_log_of_another_template(tmp_path: Path, shell: Shell) -> None:
    ours = imported(tmp_path, open_log(), "ours")
    log = open_log(seed=3)
    for row, question in enumerate(questions(6)):
        log["forget_Q_A_ROUGE"]["value_by_index"][str(row)]["input"] = f"[INST]  {question} [/INST]"
    said = shell.refused("metrics", ours, "--reference", imported(tmp_path, log, "theirs"))
    assert "or of another template in 6 of 6 rows" in said


def test_a_retain_log_of_other_rows(published: Path, tmp_path: Path, shell: Shell) -> None:
    ours = imported(tmp_path, open_log(6), "ours")
    theirs = imported(tmp_path, open_log(8), "theirs")
    said = shell.refused("metrics", ours, "--reference", theirs)
    assert "forget: the reference is of other questions: 8 rows against 6, only one of them has rows 6, 7" in said
    assert "--limit" in said


def test_without_questions_only_rows_are_compared_and_it_is_said(tmp_path: Path, shell: Shell) -> None:
    ours, theirs = open_log(), open_log(seed=4)
    del ours["forget_Q_A_ROUGE"]
    folders = imported(tmp_path, ours, "ours"), imported(tmp_path, theirs, "theirs")
    said = shell("metrics", folders[0], "--reference", folders[1])
    assert said.code == 0
    assert "row numbers only, because a log holds no questions" in said.err


BROKEN = {
    "not a number": (("forget_Q_A_Prob", "value_by_index", "3", "avg_loss"), float("nan"), r"1 of 6 rows.*rows 3"),
    "text": (("exact_memorization", "value_by_index", "1", "score"), "high", r"exact_memorization.*row 1 has 'high'"),
    "an infinite loss": (("forget_Q_A_PERT_Prob", "value_by_index", "0", "avg_loss"), [1.0, float("inf")], "rows 0"),
    "no row number": (("forget_Q_A_Prob", "value_by_index", "first"), {"avg_loss": 1}, "first is no row number"),
    "no rows": (("forget_Q_A_Prob",), {"agg_value": 1}, "forget_Q_A_Prob of forget lacks value_by_index.*agg_value"),
    "no field": (("mia_loss", "forget", "value_by_index", "2"), {"loss": 1}, "mia_loss, row 2, lacks score.*loss"),
    "no side": (("mia_loss",), {"forget": {}}, r"mia_loss lacks holdout \(it has: forget\)"),
    "an aggregate": (("mia_loss", "agg_value"), float("inf"), r"mia_loss \(agg_value\) is inf"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_named(tmp_path: Path, shell: Shell, case: str) -> None:
    place, value, message = BROKEN[case]
    log = open_log()
    inner = log
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file = write(tmp_path / "log.json", log)
    said = shell.refused("import", "--from", "openunlearning", file, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert re.search(message, said), said


def test_rows_without_an_answer(tmp_path: Path, shell: Shell) -> None:
    log = open_log()
    del log["forget_Q_A_ROUGE"]["value_by_index"]["5"]
    file = write(tmp_path / "log.json", log)
    said = shell.refused("import", "--from", "openunlearning", file, "--out", tmp_path / "out")
    assert "forget_Q_A_ROUGE lacks 1 rows that other metrics have (rows 5)" in said


def test_a_summary_is_no_log(shared: Path, tmp_path: Path, shell: Shell) -> None:
    file = shared / "data" / "logs_tofu_openunlearning" / FULL / "TOFU_SUMMARY.json"
    words = ("import", "--from", "openunlearning")
    assert "is a summary: it has values and no rows" in shell.refused(*words, file, "--out", tmp_path / "out")
    file = write(tmp_path / "other.json", {"eval_log.json": {"avg_gt_loss": {}}})
    said = shell.refused(*words, file, "--out", tmp_path / "out")
    assert "holds no rows of a metric that is known here (it has: eval_log.json)" in said


def test_a_row_that_stands_there_twice(tmp_path: Path, shell: Shell) -> None:
    file = tmp_path / "log.json"
    file.write_text('{"exact_memorization": {"value_by_index": {"0": {"score": 1}, "0": {"score": 0}}}}')
    said = shell.refused("import", "--from", "openunlearning", file, "--out", tmp_path / "out")
    assert "0 stands there twice" in said


def test_places_and_names(tmp_path: Path, shell: Shell) -> None:
    file = write(tmp_path / "log.json", open_log())
    words = ("import", "--from", "openunlearning", file, "--out", tmp_path / "out")
    assert "there is no" in shell.refused("import", "--from", "tofu", tmp_path / "none.json", "--out", tmp_path / "o")
    assert "openunlearning" in shell.refused("import", "--from", "openunlearnin", file, "--out", tmp_path / "out")
    assert shell(*words).code == 0
    assert "holds an imported log" in shell.refused(*words)
    assert shell(*words, "--overwrite").code == 0
    (tmp_path / "taken").mkdir()
    write(tmp_path / "taken" / "x.json", {})
    assert "holds other files (x.json)" in shell.refused(*words[:-1], tmp_path / "taken", "--overwrite")


def test_a_log_is_no_trace(tmp_path: Path, shell: Shell) -> None:
    folder = imported(tmp_path, open_log())
    said = shell.refused("metrics", folder, "--profile", "canonical")
    assert "profile 'canonical' cannot be computed with an imported log" in said
    assert "--profile openunlearning or tofu" in said
    two = imported(tmp_path, open_log(), "two")
    said = shell.refused("metrics", folder, two, "--reference", folder, "--reference", two)
    assert "is an imported log: it has values of rows and no tokens" in said


def test_an_evaluation_knows_before_its_passes_whether_a_log_can_be_its_reference(tmp_path: Path) -> None:
    log = imported(tmp_path, open_log())
    own = find_evaluation(own_evaluation(tmp_path / "own", open_log(), questions(6)))
    assert find_reference(log, own, profile="openunlearning").logged
    with pytest.raises(UsageError, match="profile 'canonical' cannot be computed with an imported log"):
        find_reference(log, own, profile="canonical")
