"""The rows behind a score: what it is the mean of, the worst first, and nothing given away."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge import api
from expunge.errors import MetricError, UsageError
from expunge.evals.suite import Tables
from expunge.evals.suites.tofu import measure
from expunge.report.samples import NOT_GENERATED, pick_samples
from expunge.report.withheld import PURGED
from expunge.runs.purge import purge
from expunge.runs.redact import KEY_FILE
from expunge.runs.run import Run
from expunge.testing.tables import answer_row, make_tables, random_tables, text_row

laws = settings(derandomize=True, deadline=None, max_examples=8)
AREAS = ("membership.", "mia_", "energy.")
"""Metrics that compare two splits."""
ROUGES = (0.25, 1.0, 0.0, 0.25, 0.75)


def stored(path: Path, tables: Tables, *, profile: str = "canonical") -> Path:
    """A finished run with one evaluation of the suite `tofu`."""
    run = Run.create(path, kind="unlearn", given={}, resolved={})
    run.update(status="finished")
    folder = run.eval_dir("tofu", profile, "ab" * 32)
    folder.mkdir(parents=True)
    pq.write_table(tables.trace, folder / "trace.parquet")
    pq.write_table(tables.generations, folder / "generations.parquet")
    spec = {"schema": 1, "suite": "tofu", "profile": profile, "template": {"name": "plain", "digest": "ab" * 32}}
    (folder / "spec.json").write_text(json.dumps(spec | {"total_length": None}))
    return path


def small(rouges: Sequence[float] = ROUGES, **first: Any) -> Tables:
    """A forget and a retain split; `first` are columns of the first generated forget answer."""
    texts, answers = [], []
    for split in ("forget", "retain"):
        for row, rouge in enumerate(rouges):
            columns = first if split == "forget" and row == 0 else {}
            texts.append(text_row(split, row, "answer", [-0.1 * (row + 1)] * 3, group=f"{split} person {row // 2}"))
            answers.append(answer_row(split, row, rouge=rouge, group=f"{split} person {row // 2}") | columns)
    return make_tables(texts, answers)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return stored(tmp_path / "run", small())


@laws
@given(st.integers(0, 10_000), st.sampled_from(["canonical", "openunlearning", "tofu"]))
def test_a_score_is_the_mean_of_its_rows(seed: int, profile: Any) -> None:
    measured = measure(random_tables(seed=seed, rows=12, small=5), profile=profile)
    assert set(measured.rows) <= set(measured.scores)
    assert len(measured.rows) > 10
    for name, rows in measured.rows.items():
        score, mean = measured.scores[name], float(rows.values[rows.valid].mean())
        if name.startswith(AREAS):
            assert mean == pytest.approx(score.value, abs=1e-12), name
        else:
            assert mean == score.value, name
            assert (int(rows.valid.sum()), len(rows.row)) == (score.n, score.n_total)
        assert np.all(np.diff(rows.row) > 0)


def test_worst_of_forget_are_the_highest_and_of_retain_the_lowest(run: Path) -> None:
    worst = pick_samples(run, "forget.rougeL_recall")
    assert pick_samples(run, "forget.rouge") == worst
    assert [(sample.row, sample.value) for sample in worst.samples] == [
        (1, 1.0),
        (4, 0.75),
        (0, 0.25),
        (3, 0.25),
        (2, 0.0),
    ]
    assert worst.score.value == pytest.approx(sum(ROUGES) / len(ROUGES))
    kept = pick_samples(run, "retain.rougeL_recall", number=2)
    assert [sample.row for sample in kept.samples] == [2, 0]
    best = pick_samples(run, "forget.rougeL_recall", order="best", number=3)
    assert [sample.row for sample in best.samples] == [2, 0, 3], "equal values keep the order of the rows"
    first = worst.samples[0]
    assert (first.id, first.group.text, first.question.text) == ("forget:1", "forget person 0", "question 1")
    assert (first.answer.text, first.output.text) == ("answer 1", "answer 1")


def test_the_order_of_the_tables_does_not_matter(run: Path, tmp_path: Path) -> None:
    tables = small()
    order = np.random.default_rng(0).permutation(tables.trace.num_rows)
    other = stored(tmp_path / "other", Tables(tables.trace.take(order), tables.generations.take(order)))
    assert pick_samples(run, "forget.rougeL_recall").samples == pick_samples(other, "forget.rougeL_recall").samples


def test_what_is_to_be_matched_needs_the_retrained_model(tmp_path: Path) -> None:
    ours, theirs = (stored(tmp_path / name, random_tables(seed=seed, rows=12)) for name, seed in (("a", 0), ("b", 1)))
    with pytest.raises(UsageError, match="is to match") as caught:
        pick_samples(ours, "forget.truth_ratio")
    assert "--reference" in str(caught.value.hint)
    found = pick_samples(ours, "forget.truth_ratio", reference=theirs)
    assert found.score.ideal is not None
    distances = [abs(sample.value - found.score.ideal) for sample in found.samples]
    assert distances == sorted(distances, reverse=True)


def test_rows_without_anything_to_measure_are_left_out(tmp_path: Path) -> None:
    tables = small()
    texts = tables.trace.to_pylist()
    # Only the end token: its strength is that of an empty span.
    empty = text_row("forget", 2, "answer", [-0.1], group="forget person 1")
    texts = [empty if (text["split"], text["row"]) == ("forget", 2) else text for text in texts]
    run = stored(tmp_path / "run", make_tables(texts, tables.generations.to_pylist()))
    found = pick_samples(run, "forget.extraction_strength")
    assert sorted(sample.row for sample in found.samples) == [0, 1, 3, 4]
    assert (found.n, found.n_total) == (found.score.n, found.score.n_total) == (4, 5)


def test_names_of_another_profile(run: Path) -> None:
    found = pick_samples(run, "forget_Q_A_Prob", profile="openunlearning", number=1)
    assert (found.profile, found.split, found.samples[0].row) == ("openunlearning", "forget", 0)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        ("forget.rogueL_recall", UsageError, "did you mean 'forget.rougeL_recall'"),
        ("energy.fpr95", UsageError, "not a mean over the rows"),
        ("model_utility", MetricError, "not measured: needs"),
        ("forget_quality", MetricError, "no paraphrased answers in forget"),
    ],
)
def test_what_has_no_rows_is_refused(run: Path, metric: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pick_samples(run, metric)
    with pytest.raises(UsageError, match="0 rows"):
        pick_samples(run, "forget.probability", number=0)


def test_nothing_is_written(run: Path) -> None:
    before = sorted(path for path in run.rglob("*"))
    pick_samples(run, "forget.probability")
    assert sorted(path for path in run.rglob("*")) == before


def test_forgotten_text_is_withheld_where_asked(run: Path) -> None:
    found = pick_samples(run, "forget.rougeL_recall", redact=True)
    for sample in found.samples:
        for text in (sample.question, sample.answer, sample.output, sample.group):
            assert text.text is None
            assert re.fullmatch(r"withheld, HMAC [0-9a-f]{16}", str(text.note))
        assert sample.answer.note == sample.output.note, "it said the true answer, and that is all there is to see"
    assert (run / KEY_FILE).exists()


def test_answers_to_other_rows_are_withheld_unless_they_are_the_true_one(tmp_path: Path) -> None:
    tables = small()
    answers = tables.generations.to_pylist()
    for answer in answers:
        if (answer["split"], answer["row"]) == ("retain", 0):
            answer["output"] = "what was to be forgotten"
    run = stored(tmp_path / "run", Tables(tables.trace, make_tables([], answers).generations))
    shown = {sample.row: sample for sample in pick_samples(run, "retain.rougeL_recall", redact=True).samples}
    assert shown[0].output.text is None
    assert shown[0].answer.text == "answer 0"
    assert shown[1].output.text == "answer 1"


def test_a_purged_run_has_values_and_no_text(run: Path) -> None:
    before = pick_samples(run, "forget.rougeL_recall")
    purge(Run.open(run))
    after = pick_samples(run, "forget.rougeL_recall")
    assert [sample.value for sample in after.samples] == [sample.value for sample in before.samples]
    for sample in after.samples:
        assert {text.note for text in (sample.question, sample.answer, sample.output)} == {PURGED}


def test_a_split_without_generated_answers_says_so(tmp_path: Path) -> None:
    tables = small()
    run = stored(tmp_path / "run", Tables(tables.trace, tables.generations.slice(0, 0)))
    found = pick_samples(run, "forget.probability", number=1)
    assert found.samples[0].output == (None, NOT_GENERATED)


def test_an_evaluation_folder_will_do(run: Path) -> None:
    (folder,) = (run / "evals").iterdir()
    assert pick_samples(folder, "forget.probability", redact=True).path == folder
    assert (run / KEY_FILE).exists()


def test_an_area_is_the_mean_of_the_places_of_its_forget_rows(tmp_path: Path) -> None:
    texts = [
        text_row(split, row, "answer", [-value, -1.0], lse=[value, 0.0])
        for split, values in (("forget", (1.0, 3.0, 5.0)), ("retain", (2.0, 3.0, 4.0)))
        for row, value in enumerate(values)
    ]
    found = pick_samples(stored(tmp_path / "run", make_tables(texts)), "energy.auroc")
    # Energy is -lse: the first forget prompt has the highest one of all, the last the lowest.
    assert [(sample.row, sample.value) for sample in found.samples] == [(2, 0.0), (1, 0.5), (0, 1.0)]
    assert found.score.value == 0.5
    assert (found.n, found.score.n) == (3, 6)


def test_from_python(run: Path, tmp_path: Path) -> None:
    found = api.samples(str(run), "forget.rougeL_recall", order="best", number=2)
    assert [sample.value for sample in found.samples] == [0.0, 0.25]
    assert found == pick_samples(run, "forget.rougeL_recall", order="best", number=2)
    redacted = api.samples(run, "forget.rougeL_recall", number=1, redact=True).samples[0]
    assert redacted.question.text is None or "question" not in redacted.question.text
    with pytest.raises(UsageError, match="no finished evaluation"):
        api.samples(tmp_path / "nothing", "forget.rougeL_recall")


def test_explained_from_python() -> None:
    found = api.explain("forget.rougeL_recall")
    assert (found.name, found.direction) == ("forget.rougeL_recall", "lower")
    assert found.card.formula
    with pytest.raises(UsageError) as told:
        api.explain("forget.rougeL_recal")
    assert "forget.rougeL_recall" in str(told.value.hint)
