"""Evaluations and metrics of what is missing, damaged, or made of other rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_result import DATA, MET, USAGE, Invoke, assert_refused

from expunge.evals import run as evaluation


def tables(run: Path) -> Path:
    """The only evaluation of a run."""
    (folder,) = (run / "evals").iterdir()
    return folder


@pytest.fixture
def no_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that starts its passes fails: a mistake must be found before them."""

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("the passes were run")

    monkeypatch.setattr(evaluation, "run_passes", fail)


@pytest.mark.usefixtures("no_passes")
def test_a_second_evaluation_reuses_the_tables(measured: Path, invoke: Invoke) -> None:
    result = invoke("eval", "run")
    assert result.code == 0
    assert "reusing them" in result.err
    assert result.out == invoke("metrics", "run").out


def test_limits_are_not_mixed_up(measured: Path, invoke: Invoke) -> None:
    for options, rows in ((("--limit", "1"), 1), ((), 3)):
        found = json.loads(invoke("eval", "run", "--json", *options).out)
        assert found["metrics"]["forget.probability"]["n_total"] == rows
        assert json.loads((Path(found["path"]) / "spec.json").read_text())["splits"]["forget"]["rows"] == rows
    assert json.loads(invoke("metrics", "run", "--json").out)["metrics"]["forget.probability"]["n_total"] == 3


def test_one_row_has_no_interval(measured: Path, invoke: Invoke) -> None:
    scores = json.loads(invoke("eval", "run", "--limit", "1", "--json").out)["metrics"]
    assert scores["forget.probability"]["low"] is None
    assert scores["forget.probability"]["value"] > 0
    assert scores["energy.auroc"]["n"] == 2


@pytest.mark.usefixtures("no_passes")
@pytest.mark.parametrize("command", [["metrics"], ["eval", "--overwrite"]])
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere", "no finished evaluation in nowhere: there is no such folder"),
        ("empty", "the reference empty has no evaluation of suite 'tofu'.*expunge eval empty"),
        ("unfinished", "the reference unfinished has no evaluation"),
    ],
)
def test_a_reference_without_tables(
    measured: Path, invoke: Invoke, command: list[str], reference: str, message: str
) -> None:
    (measured / "empty").mkdir()
    shutil.copytree(measured / "run", measured / "unfinished", ignore=shutil.ignore_patterns("spec.json"))
    assert_refused(invoke(command[0], "run", *command[1:], "--reference", reference), USAGE, message)


def test_a_reference_of_other_rows(measured: Path, invoke: Invoke) -> None:
    shutil.rmtree(tables(measured / "retrained"))
    assert invoke("eval", "retrained", "--limit", "2").code == 0
    result = invoke("metrics", "run", "--reference", "retrained")
    assert_refused(result, DATA, r"forget: .*other rows .*\(3 rows against 2\)", "--limit")


def test_a_reference_of_another_template(measured: Path, invoke: Invoke) -> None:
    shutil.rmtree(tables(measured / "retrained"))
    assert invoke("eval", "retrained", "--template", "plain").code == 0
    result = invoke("metrics", "run", "--reference", "retrained")
    assert_refused(result, DATA, r"another template \(plain \w+; ours is auto", "--template")


def test_forget_quality_without_and_with_a_reference(measured: Path, invoke: Invoke) -> None:
    assert_refused_after_scores(invoke, "forget_quality>0.05", DATA, "was not measured: no --reference given")
    result = invoke("metrics", "run", "--reference", "retrained", "--json")
    assert 0 < json.loads(result.out)["metrics"]["forget_quality"]["value"] <= 1


def assert_refused_after_scores(invoke: Invoke, condition: str, code: int, message: str) -> None:
    """The scores are printed, then the condition is refused."""
    result = invoke("metrics", "run", "--fail-if", condition)
    assert result.out.startswith("metric")
    assert_refused(result._replace(out=""), code, message)


def test_conditions(measured: Path, invoke: Invoke) -> None:
    assert invoke("metrics", "run", "--fail-if", "forget.probability>0").code == MET
    assert_refused_after_scores(invoke, "forget.probabilty>0", USAGE, "unknown metric .*did you mean 'forget.prob")
    assert_refused_after_scores(invoke, "membership.loss_auc>0.5", DATA, "no holdout rows")
    for text in ("forget.probability", "forget.probability>", "forget.probability==0.1", ">0.1", "a>b>c"):
        assert_refused(invoke("eval", "nowhere", "--fail-if", text), USAGE, "is not a condition", "METRIC")


@pytest.mark.parametrize("run", ["nowhere", "empty", "run/model"])
def test_metrics_of_what_is_no_evaluation(measured: Path, invoke: Invoke, run: str) -> None:
    (measured / "empty").mkdir()
    assert_refused(invoke("metrics", run), USAGE, "no finished evaluation")


@pytest.mark.parametrize("command", [["unknown"], ["--suite", "toofu"], ["--profile", "canonicle"]])
def test_names_that_are_unknown(measured: Path, invoke: Invoke, command: list[str]) -> None:
    assert_refused(invoke("metrics", "run", *command), USAGE, "toofu|canonicle|unknown")
    assert_refused(invoke("eval", "run", *command), USAGE, "toofu|canonicle|unknown")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda folder: (folder / "trace.parquet").write_bytes((folder / "trace.parquet").read_bytes()[:300]),
    "empty": lambda folder: (folder / "trace.parquet").write_bytes(b""),
    "gone": lambda folder: (folder / "generations.parquet").unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tables(measured: Path, invoke: Invoke, name: str) -> None:
    DAMAGES[name](tables(measured / "run"))
    for command in ("metrics", "eval"):
        assert_refused(invoke(command, "run"), DATA, r"\.parquet cannot be read", "again with --overwrite")
    if name != "gone":
        assert_refused(invoke("purge", "run"), DATA, "cannot be read, so its text cannot be emptied", "delete")
        assert list((measured / "run" / "checkpoints").iterdir()), "nothing was removed"


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1, "suite": "tofu", "profile": "tofu", "template": 3}'])
def test_a_damaged_spec(measured: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    folder = tables(measured / "run")
    whole = (folder / "spec.json").read_text()
    (folder / "spec.json").write_text(content)
    assert_refused(invoke("metrics", "run"), DATA, r"spec\.json", "again with --overwrite")
    again: list[Path] = []

    def write(place: Path, *given: object, **options: object) -> None:
        again.append(place)
        (place / "spec.json").write_text(whole)

    monkeypatch.setattr(evaluation, "run_passes", write)
    assert invoke("eval", "run").code == 0
    assert again == [folder.relative_to(measured)], "nobody can say what such tables hold"


def test_after_a_purge_the_numbers_stay(measured: Path, invoke: Invoke) -> None:
    before = json.loads(invoke("metrics", "run", "--reference", "retrained", "--json").out)
    leftover = tables(measured / "run") / ".trace.parquet.1-ab.tmp"
    leftover.write_text("what was to be forgotten")
    assert "half-written file" in invoke("purge", "run").out
    assert not leftover.exists()
    assert "nothing left to remove" in invoke("purge", "run").err
    after = json.loads(invoke("metrics", "run", "--reference", "retrained", "--json").out)
    assert after == before
    assert "reusing them" in invoke("eval", "run").err


def test_a_model_that_is_gone(measured: Path, invoke: Invoke) -> None:
    shutil.rmtree(measured / "run" / "model")
    assert_refused(invoke("eval", "run"), USAGE, "is finished and has no model", "put it back")


def test_a_model_cut_short(measured: Path, invoke: Invoke) -> None:
    (measured / "run" / "model" / "model.safetensors").write_bytes(b"123")
    assert_refused(invoke("eval", "run"), USAGE, "cannot load model")


@pytest.mark.parametrize("target", ["nowhere", "./nowhere", "empty", "forget.jsonl"])
def test_targets_that_are_nothing(measured: Path, invoke: Invoke, target: str) -> None:
    (measured / "empty").mkdir()
    assert_refused(invoke("eval", target), USAGE, f"cannot load model '{target}'")
    assert not (measured / "runs").exists()


def test_a_foreign_folder_is_not_written_to(measured: Path, invoke: Invoke, no_passes: None) -> None:
    before = sorted(path.name for path in (measured / "model").iterdir())
    recipe = measured / "run.yaml"
    result = invoke("eval", "model", "--recipe", recipe, "--out", "model")
    assert_refused(result, USAGE, "not empty and is not a run", "choose another")
    assert sorted(path.name for path in (measured / "model").iterdir()) == before


def test_options_that_do_not_exist_here(measured: Path, invoke: Invoke, no_passes: None) -> None:
    assert_refused(invoke("eval", "run", "--device", "gpu"), USAGE, "no device 'gpu'")
    assert_refused(invoke("eval", "run", "--template", "plai"), USAGE, "did you mean 'plain'")
    assert_refused(invoke("eval", "run", "--limit", "0"), USAGE, "--limit")


def test_a_damaged_cache(measured: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(measured / "cache"))
    again = ("unlearn", measured / "run.yaml", f"output_dir={measured / 'again'}")
    for path in (measured / "cache").rglob("seq_logp.npy"):
        path.write_bytes(path.read_bytes()[:20])
    assert_refused(invoke(*again), DATA, "the cached table .* is damaged", r"expunge cache rm [0-9a-f]{12}")
    for path in (measured / "cache").rglob("meta.json"):
        path.write_text("{")
    assert "incomplete" in invoke("cache", "ls").out
    assert invoke(*again, "--overwrite").code == 0, "an entry that does not say what it is is made again"
