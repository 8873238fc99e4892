"""A bench for real, tiny: interrupted, continued, a cell that fails, and nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PROGRAM = Path(__file__).with_name("tiny_bench.py")
OPTIONS = ("--trials", "2", "--jobs", "1", "--settings", "own.yaml", "--out", "bench")
BOTH = ("--methods", "npo,grad-diff")
# The second setting of grad_diff cannot end well.
OWN = """
grad_diff:
- {train.learning_rate: 1e-3}
- {train.learning_rate: 1e+30, train.max_grad_norm: null}
- {train.learning_rate: 2e-3}
- {train.learning_rate: 4e-3}
"""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("bench")]


class Ended(NamedTuple):
    code: int
    out: str
    said: str


class Benches(NamedTuple):
    folder: Path
    interrupted: Ended
    """After the first trial of NPO."""
    table: Ended
    again: Ended
    """One of its methods, as JSON."""

    @property
    def kept(self) -> dict[str, Any]:
        """What the second one left in its folder."""
        found: dict[str, Any] = json.loads((self.folder / "bench/bench.json").read_text())["result"]
        return found


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Benches:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "own.yaml").write_text(OWN)
    interrupted = run(folder, *BOTH, until="npo-1 (seed 200): unlearned and measured")
    table = run(folder, *BOTH)
    kept = (folder / "bench/bench.json").read_bytes()
    again = run(folder, "--methods", "npo", "--json")
    (folder / "bench/bench.json").write_bytes(kept)
    return Benches(folder, interrupted, table, again)


def heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(folder: Path, *more: str, until: str | None = None) -> Ended:
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *OPTIONS, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"EXPUNGE_CACHE": str(folder / "cache")},
        preexec_fn=heed_ctrl_c,
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr if until else ():
        said += line
        if until and until in line:
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=400)
    return Ended(process.returncode, out, said + rest)


def test_interrupted_it_says_how_to_go_on(benches: Benches) -> None:
    assert benches.interrupted.code == 130, benches.interrupted.said
    assert benches.interrupted.out == ""
    assert "the same command continues" in benches.interrupted.said
    assert "Traceback" not in benches.interrupted.said


def test_finished_cells_are_not_carried_out_again(benches: Benches) -> None:
    assert "1 of 4 cells are finished" in benches.table.said
    assert "npo-1 (seed 200)" not in benches.table.said
    assert "npo-2 (seed 200): unlearned and measured" in benches.table.said
    assert "start (seed 200): trained before it was interrupted" in benches.table.said


def test_a_failed_cell_is_shown_and_counts(benches: Benches) -> None:
    assert benches.table.code == 4, benches.table.said
    assert "warning: grad_diff-2 (seed 200): failed" in benches.table.said
    assert "failed: 200/grad_diff-2: step" in benches.table.out
    assert "(1 failed)" in next(line for line in benches.table.out.splitlines() if line.startswith("grad_diff"))


def test_the_table_has_a_row_per_method(benches: Benches) -> None:
    lines = benches.table.out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["method", "start", "retrained", "npo", "grad_diff"]
    for heading in ("forget ES", "retain ES", "truth ratio", "energy AUROC", "retain utility", "seconds", "peak MB"):
        assert heading in lines[0]
    assert "tried on world 200" in benches.table.out


def test_json_has_every_cell(benches: Benches) -> None:
    result = benches.kept
    assert (result["tuned_on"], result["seeds"], result["trials"]) == (200, [201], 2)
    npo, grad_diff = result["methods"]
    assert [trial["status"] for trial in npo["trials"]] == ["finished", "finished"]
    assert [trial["status"] for trial in grad_diff["trials"]] == ["finished", "failed"]
    assert grad_diff["chosen"] == 1
    assert grad_diff["trials"][1]["score"] is None
    assert "Traceback" not in grad_diff["trials"][1]["error"]
    assert [cell["seed"] for cell in npo["runs"]] == [201]
    best = max(npo["trials"], key=lambda trial: trial["score"])
    assert npo["setting"] == best["setting"]
    for cell in npo["runs"]:
        assert cell["seconds"] > 0
        assert cell["peak_memory_mb"] > 0
        assert Path(cell["path"], "model/config.json").is_file()
        assert "forget_quality" in cell["metrics"] or "forget_quality" in cell["skipped"]
    values = npo["values"]["forget.extraction_strength"]
    each = [cell["metrics"]["forget.extraction_strength"]["value"] for cell in npo["runs"]]
    assert values["values"] == each
    assert (values["low"], values["high"]) == (min(each), max(each))
    assert {base["name"] for base in result["bases"]} == {"start", "retrained"}


def test_where_everything_is_finished_nothing_is_carried_out(benches: Benches) -> None:
    assert benches.again.code == 0, benches.again.said
    assert "start (seed 201): reused from the cache" in benches.again.said
    assert "trained in" not in benches.again.said
    assert "unlearned and measured" not in benches.again.said
    (npo,) = json.loads(benches.again.out)["methods"]
    assert npo == benches.kept["methods"][0]
