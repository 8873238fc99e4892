"""MUSE's own logs, in the published format: its numbers follow from the rows, and lone aggregates are kept as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_logs import Log, Shell, write

ATTACKS = ("PPL", "PPL/zlib", "Min-40%")
SIDES = ("forget", "retain2", "holdout")


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def history(rows: int, *, seed: int = 0, asked: bool = True) -> list[Log]:
    numbers = np.random.default_rng(seed)
    return [
        {
            "prompt": f"Question: Who wrote report {row}?\nAnswer: ",
            "gt": f"Person {row}",
            "response": "Somebody",
            **{name: float(numbers.uniform()) for name in ("rougeL", "rougeL_recall", "rouge1", "rouge1_recall")},
        }
        | ({"question": f"Who wrote report {row}?"} if asked else {})
        for row in range(rows)
    ]


def out(rows: list[Log]) -> Log:
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    means = {f"mean_{name}": float(np.mean([row[name] for row in rows])) for name in names}
    highest = {f"max_{name}": max(row[name] for row in rows) for name in names}
    return means | highest | {"model": "swj0419/some-model", "max_new_tokens": 32}


def texts(seed: int, shift: float) -> list[Log]:
    numbers = np.random.default_rng(seed)
    return [
        {"text": f"text {row}", "ppl": {name: float(numbers.normal(shift)) for name in ATTACKS}} for row in range(20)
    ]


def aucs(sides: dict[str, list[Log]]) -> Log:
    """P(a text of b scores below one of a), by counting pairs."""
    found: Log = {}
    for a, first in sides.items():
        for b, second in sides.items():
            found[f"{a}_{b}"] = {
                name: float(
                    np.mean([(y["ppl"][name] < x["ppl"][name]) + 0.5 * (x is y) for x in first for y in second])
                )
                for name in ATTACKS
            }
    return found


def test_a_folder_in_the_published_layout(tmp_path: Path, shell: Shell) -> None:
    tests = {"knowmem_f": "knowmem/out/bbc/npo/forget", "knowmem_r": "knowmem/out/bbc/npo/retain"}
    tests["verbmem_f"] = "verbmem/out/bbc/npo/forget"
    logged = {}
    for seed, (part, folder) in enumerate(tests.items()):
        rows = history(10, seed=seed, asked=part != "verbmem_f")
        logged[part] = out(rows)
        write(tmp_path / "log" / folder / "history.json", rows)
        write(tmp_path / "log" / folder / "out.json", logged[part])
    sides = {side: texts(seed, seed / 2) for seed, side in enumerate(SIDES)}
    for side, rows in sides.items():
        write(tmp_path / "log/privleak/out/bbc/npo" / f"{side}.json", rows)
    areas = aucs(sides)
    write(tmp_path / "log/privleak/out/bbc/npo/auc.json", areas)
    said = shell("import", "--from", "muse", tmp_path / "log", "--out", tmp_path / "a", "--json")
    assert said.code == 0, said.err
    summary = json.loads(said.out)
    assert summary["differing"] == {}
    assert len(summary["equal"]) == 3 * 8 + 9 * len(ATTACKS)
    found = shell.metrics(tmp_path / "a")
    for part, values in logged.items():
        assert found[part]["value"] == pytest.approx(100 * values["mean_rougeL"])
        assert found[f"{part}.max_rouge1_recall"]["value"] == values["max_rouge1_recall"]
        assert found[part]["low"] < found[part]["value"] < found[part]["high"]
        assert found[part]["direction"] == ("higher" if part == "knowmem_r" else "lower")
    for pair, attacks in areas.items():
        for name, value in attacks.items():
            assert found[f"{pair}_{name}"]["value"] == pytest.approx(value), (pair, name)
    assert "privleak" not in found


def test_privleak_of_lone_aucs(tmp_path: Path, shell: Shell) -> None:
    # Published for the retrained model of the news corpus; an unlearned model that still recognises every text.
    for name, area in (("ours", 0.0), ("retrained", 0.4772)):
        write(tmp_path / name / "auc.json", {"forget_holdout": {"Min-40%": area, "PPL": 0.4652}})
        assert (
            shell("import", "--from", "muse", tmp_path / name / "auc.json", "--out", tmp_path / f"{name}-log").code == 0
        )
    alone = shell("metrics", tmp_path / "ours-log", "--json")
    skipped = json.loads(alone.out)["skipped"]
    assert skipped.keys() == {"privleak"}
    assert skipped["privleak"].startswith("no --reference given: `expunge import`")
    found = shell.metrics(tmp_path / "ours-log", "--reference", tmp_path / "retrained-log")
    assert found["privleak"]["value"] == pytest.approx(-100)
    assert found["privleak"]["ideal"] == 0
    assert found["forget_holdout_Min-40%"]["ideal"] == pytest.approx(0.4772)
    assert found["forget_holdout_PPL"]["n"] == 0
    write(tmp_path / "ours" / "auc.json", {"forget_holdout": {"Min-40%": 1.0}})
    words = (tmp_path / "ours" / "auc.json", "--out", tmp_path / "ours-log", "--overwrite")
    assert shell("import", "--from", "muse", *words).code == 0
    found = shell.metrics(tmp_path / "ours-log", "--reference", tmp_path / "retrained-log")
    assert found["privleak"]["value"] == pytest.approx(109.556, abs=1e-3)


@pytest.mark.parametrize(("named", "history_name"), [("out.json", "history.json"), ("agg.json", "log.json")])
def test_one_file_keeps_its_own_names(tmp_path: Path, shell: Shell, named: str, history_name: str) -> None:
    rows = history(8)
    folder = tmp_path / "knowmem_r"
    write(folder / history_name, rows)
    write(folder / named, out(rows))
    assert shell("import", "--from", "muse", folder / named, "--out", tmp_path / "a").code == 0
    found = shell.metrics(tmp_path / "a")
    assert found["mean_rougeL"]["value"] == pytest.approx(out(rows)["mean_rougeL"])
    assert found["knowmem_r"]["value"] == pytest.approx(100 * out(rows)["mean_rougeL"])
    assert (found["mean_rougeL"]["n"], found["mean_rougeL"]["direction"]) == (8, "higher")


def test_an_out_without_its_history(tmp_path: Path, shell: Shell) -> None:
    file = write(tmp_path / "verbmem_f" / "out.json", out(history(8)))
    said = shell("import", "--from", "muse", file, "--out", tmp_path / "a")
    assert "rows: none, aggregates only" in said.err
    found = shell.metrics(tmp_path / "a")
    assert (found["mean_rougeL"]["n"], found["mean_rougeL"]["low"]) == (0, None)


def refusal(shell: Shell, file: Path) -> str:
    return shell.refused("import", "--from", "muse", file, "--out", file.parent / "imported")


def broken(folder: Path, value: Any) -> Path:
    rows = history(5)
    rows[3]["rougeL"] = value
    return write(folder / "knowmem_f" / "history.json", rows)


def test_what_cannot_be_used_is_named(tmp_path: Path, shell: Shell) -> None:
    assert "1 of 5 rows are not a finite number (rows 3" in refusal(shell, broken(tmp_path / "a", float("nan")))
    rows = history(2)
    del rows[1]["rouge1"]
    file = write(tmp_path / "b" / "knowmem_f" / "history.json", rows)
    assert "row 1, lacks rouge1 (it has: prompt, gt, response" in refusal(shell, file)
    file = write(tmp_path / "c" / "history.json", history(2))
    assert "nothing says which test" in refusal(shell, file)
    file = write(tmp_path / "d" / "verbmem_f" / "out.json", {"mean_bleu": 1})
    assert "lacks mean_rougeL (it has: mean_bleu)" in refusal(shell, file)
    file = write(tmp_path / "e" / "auc.json", {"forget_holdout": {"Min-40%": None}})
    assert "forget_holdout, Min-40% is None, not a finite number" in refusal(shell, file)
    file = write(tmp_path / "f" / "scores.json", {})
    assert "scores.json is none of MUSE's logs" in refusal(shell, file)
    for step in ("one", "two"):
        write(tmp_path / "g" / step / "knowmem_f" / "history.json", history(2))
    assert "several logs of knowmem_f" in shell.refused(
        "import", "--from", "muse", tmp_path / "g", "--out", tmp_path / "h"
    )


def test_another_model_s_questions(tmp_path: Path, shell: Shell) -> None:
    for name, rows in (("ours", history(5)), ("theirs", history(5, seed=1))):
        if name == "theirs":
            rows[2]["question"] = "When was report 2 written?"
        file = write(tmp_path / name / "knowmem_f" / "history.json", rows)
        assert shell("import", "--from", "muse", file, "--out", tmp_path / f"{name}-log").code == 0
    said = shell.refused("metrics", tmp_path / "ours-log", "--reference", tmp_path / "theirs-log")
    assert "knowmem_f: the reference is of other questions or of another template in 1 of 5 rows (rows 2)" in said


def test_only_logs_of_muse_have_its_metrics(tmp_path: Path, shell: Shell) -> None:
    file = write(tmp_path / "auc.json", {"forget_holdout": {"Min-40%": 0.5}})
    assert shell("import", "--from", "muse", file, "--out", tmp_path / "a").code == 0
    said = shell.refused("metrics", tmp_path / "a", "--profile", "openunlearning")
    assert "a log that MUSE's own code wrote is compared with such logs only" in said
