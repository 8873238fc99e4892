"""`expunge explain`, `expunge samples`, `ls metrics` and `ls suites`: what a person reads and what a program gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from invocation import Invoke

from expunge.catalog import SUITES
from expunge.metrics.registry import METRICS
from expunge.testing.tables import answer_row, make_tables, text_row

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "evaluate.md"
ESCAPE = "\x1b[31mred\x1b[0m \u202etxet"


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """An evaluation folder that lies alone; one answer tries to paint the terminal, one is very long."""
    outputs = [ESCAPE, "word " * 400, "", "answer 3\nand a second line"]
    texts = [text_row(split, row, "answer", [-0.5, -0.5]) for split in ("forget", "retain") for row in range(4)]
    answers = [
        answer_row(split, row, rouge=row / 4, output=outputs[row]) for split in ("forget", "retain") for row in range(4)
    ]
    tables = make_tables(texts, answers)
    folder = tmp_path / "alone"
    folder.mkdir()
    pq.write_table(tables.trace, folder / "trace.parquet")
    pq.write_table(tables.generations, folder / "generations.parquet")
    spec = {"schema": 1, "suite": "tofu", "profile": "canonical", "template": {"name": "plain", "digest": "ab" * 32}}
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def test_the_guide_shows_what_explain_prints(invoke: Invoke) -> None:
    result = invoke("explain", "forget.rougeL_recall")
    assert (result.code, result.err) == (0, "")
    assert f"```text\n{result.out}```" in GUIDE.read_text(encoding="utf-8")


def test_explain_takes_hyphens_and_offers_the_nearest_name(invoke: Invoke) -> None:
    assert invoke("explain", "forget.extraction-strength").out == invoke("explain", "forget.extraction_strength").out
    wrong = invoke("explain", "forget.extraction_strenght")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean 'forget.extraction_strength'?" in wrong.err


def test_explain_as_json(invoke: Invoke) -> None:
    found = json.loads(invoke("explain", "membership.loss_auc", "--json").out)
    assert (found["name"], found["direction"]) == ("membership.loss_auc", "match")
    assert (found["ideal"], found["ideal_without_reference"]) == (None, 0.5)
    assert found["urls"] == ["https://arxiv.org/abs/1709.01604"]
    assert found["suites"].items() >= {"tofu": [], "world": [], "muse": []}.items()
    assert all(found[key] for key in ("definition", "formula", "cannot_tell", "source", "summary"))


def test_what_is_explained_fits_a_terminal(invoke: Invoke) -> None:
    for metric in METRICS[::6]:
        out = invoke("explain", metric.name).out
        assert out.startswith(f"{metric.name}\n")
        assert max(map(len, out.splitlines())) <= 100


def test_metrics_are_listed_with_all_that_is_known(invoke: Invoke) -> None:
    listed = {row["name"]: row for row in json.loads(invoke("ls", "metrics", "--json").out)}
    assert list(listed) == [metric.name for metric in METRICS]
    keys = {"name", "summary", "direction", "ideal", "source", "suites", "definition", "formula", "cannot_tell"}
    assert all(keys <= row.keys() for row in listed.values())
    assert listed["energy.fpr95"]["ideal"] == 0
    lines = {line.split()[0]: line for line in invoke("ls", "metrics").out.splitlines()}
    assert lines["name"].split() == ["name", "direction", "ideal", "suites", "summary"]
    assert "retrained, else 0.5" in lines["membership.loss_auc"]


def test_suites_are_listed_with_what_they_need(invoke: Invoke) -> None:
    listed = {row["name"]: row for row in json.loads(invoke("ls", "suites", "--json").out)}
    assert list(listed) == SUITES.names()
    assert listed["world"]["needs"].startswith("a world")
    assert listed["world"]["profiles"] == ["canonical"]
    assert listed["tofu"]["tested_on"] == "real data"
    assert "model_utility" in listed["tofu"]["metrics"]
    assert "model_utility" not in listed["world"]["metrics"]
    assert all(row["needs"] and row["splits"] and row["tested_on"] for row in listed.values())
    # What a task of the harness reports, the task says.
    assert [name for name, row in listed.items() if not row["metrics"]] == ["harness"]


def test_samples_for_a_person(invoke: Invoke, evaluation: Path) -> None:
    result = invoke("samples", evaluation, "--worst", "forget.rougeL_recall", "-n", "3")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[:4] == [
        "forget row 3 (forget:3)  forget.rougeL_recall 0.75",
        "  question  question 3",
        "  answer    answer 3",
        "  model     answer 3",
    ]
    assert "[the answer is empty]" in result.out
    assert "cut: 1" in result.out
    assert "forget.rougeL_recall 0.375" in result.err
    assert "the 3 worst of 4 rows" in result.err


def test_what_a_model_said_cannot_reach_the_terminal_as_commands(invoke: Invoke, evaluation: Path) -> None:
    shown = invoke("samples", evaluation, "--best", "forget.rougeL_recall").out
    assert "‹U+001B›[31mred" in shown
    assert not {"\x1b", "\u202e"} & set(shown)


def test_samples_for_a_program(invoke: Invoke, evaluation: Path) -> None:
    found = json.loads(invoke("samples", evaluation, "--best", "forget.rougeL_recall", "--json").out)
    assert (found["metric"], found["split"], found["order"], found["suite"]) == (
        *("forget.rougeL_recall", "forget", "best", "tofu"),
    )
    first = found["samples"][0]
    assert (first["row"], first["value"], first["output"]) == (0, 0.0, ESCAPE), "text as it was stored"
    assert first["absent"] == {"group": "the row has no group"}
    assert len(found["samples"][1]["output"]) == 2000, "and uncut"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "--worst"),
        (["--worst", "forget.probability", "--best", "forget.probability"], 2, "--worst"),
        (["--worst", "forget.probabilty"], 2, "did you mean 'forget.probability'?"),
        (["--worst", "forget.truth_ratio"], 3, "no perturbed answers in forget"),
        (["--worst", "forget.probability", "-n", "0"], 2, "-n"),
        (["--worst", "forget.probability", "--profile", "canonicle"], 2, "canonicle"),
        (["--worst", "forget.probability", "--suite", "world"], 2, "world"),
    ],
)
def test_samples_that_cannot_be_shown(
    invoke: Invoke, evaluation: Path, options: list[str], code: int, message: str
) -> None:
    result = invoke("samples", evaluation, *options)
    assert (result.code, result.out) == (code, "")
    assert message in result.err


@pytest.mark.slow
@pytest.mark.parametrize("argv", [["explain", "forget_quality"], ["ls", "metrics"], ["ls", "suites", "--json"]])
def test_what_is_read_imports_nothing_heavy(argv: list[str]) -> None:
    code = f"""
import sys
from expunge.cli.main import main
code = main({argv!r})
heavy = {{"torch", "transformers", "pyarrow", "scipy", "numpy"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_samples_import_no_torch(evaluation: Path) -> None:
    code = f"""
import sys
from expunge.cli.main import main
assert main(["samples", {str(evaluation)!r}, "--worst", "forget.probability"]) == 0
assert not {{"torch", "transformers"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
