"""LUME's parts and the aggregate of SemEval-2025 task 4, against its published leaderboards."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.metrics.bootstrap import draw_weights
from expunge.metrics.estimate import Column, Estimate, auc_estimate
from expunge.metrics.lume import knowledge, lume_kind, lume_score, membership_score, task_aggregate

laws = settings(derandomize=True, deadline=None, max_examples=60)
TASKS = [f"Task{task} {kind}" for task in (1, 2, 3) for kind in ("regurgitation", "knowledge")]


def column(values: list[float], *, label: str = "x") -> Column:
    found = np.array(values, dtype=np.float64)
    return Column(found, ~np.isnan(found), draw_weights([None] * len(values), label=label))


def number(value: float, draws: list[float] | None = None) -> Estimate:
    return Estimate(value, None if draws is None else np.array(draws), 1, 1)


@pytest.mark.parametrize(
    ("row_id", "kind"),
    [("36307590sc1", "regurgitation"), ("36307590qa0", "knowledge"), ("6adb-c83qa12sc1", "regurgitation")],
)
def test_an_id_says_how_its_row_is_scored(row_id: str, kind: str) -> None:
    assert lume_kind(row_id) == kind


@pytest.mark.parametrize("row_id", ["", "36307590", "36307590sc", "36307590qa10", "qa1x"])
def test_another_id_is_refused(row_id: str) -> None:
    with pytest.raises(MetricError, match="does not say"):
        lume_kind(row_id)


def test_every_real_id_says_it(shared: Path) -> None:
    folder = shared / "data" / "lume"
    for name, total in (("retain.jsonl", 2734), ("forget_task2.jsonl", 1500)):
        rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        kinds = Counter((row["task"], lume_kind(row["id"])) for row in rows)
        assert sum(kinds.values()) == total
        assert {kind for _, kind in kinds} == {"regurgitation", "knowledge"}


def test_answers_must_be_equal_but_for_case_and_space() -> None:
    found = knowledge(["Hardy", "Hardy", "1984-12-31", ""], [" hardy\n", "Hardy.", "1984-12-30", " "])
    assert found.tolist() == [1, 0, 0, 1]
    with pytest.raises(MetricError, match="1 references and 0 outputs"):
        knowledge(["Hardy"], [])


def test_the_aggregate_by_hand() -> None:
    forget = {"Task1 regurgitation": column([0.2, 0.6]), "Task1 knowledge": column([0, 1, 0, 1])}
    retain = {"Task1 regurgitation": column([1, 0.5]), "Task1 knowledge": column([1])}
    found = task_aggregate(forget, retain)
    assert found.value == pytest.approx(4 / (1 / 0.6 + 1 / 0.5 + 1 / 0.75 + 1))
    assert (found.n, found.n_total) == (9, 9)
    assert found.draws is None, "one row cannot be resampled"


def test_nothing_forgotten_in_one_part_is_nothing_at_all() -> None:
    good = {part: column([0.0, 0.0]) for part in TASKS}
    kept = {part: column([1.0, 1.0]) for part in TASKS}
    assert task_aggregate(good, kept).value == 1
    assert task_aggregate(good | {TASKS[0]: column([1.0, 1.0])}, kept).value == 0
    assert task_aggregate(good, kept | {TASKS[0]: column([0.0, 0.0])}).value == 0


@laws
@given(st.lists(st.integers(0, 20).map(lambda share: share / 20), min_size=4, max_size=12), st.integers(0, 1000))
def test_the_aggregate_lies_between_its_worst_part_and_the_mean(values: list[float], seed: int) -> None:
    generator = np.random.default_rng(seed)
    forget = {part: column(generator.permutation(values).tolist(), label=part) for part in TASKS[:2]}
    retain = {part: column(generator.choice(values, len(values)).tolist(), label=part) for part in TASKS[:2]}
    parts = [1 - each.values.mean() for each in forget.values()] + [each.values.mean() for each in retain.values()]
    found = task_aggregate(forget, retain)
    assert min(parts) - 1e-12 <= found.value <= np.mean(parts) + 1e-12
    score = found.score("higher")
    assert score.low is not None
    assert score.high is not None
    assert -1e-12 <= score.low <= score.high <= 1 + 1e-12


def test_parts_must_be_the_same_on_both_sets() -> None:
    with pytest.raises(MetricError, match=r"different parts \(Task1 knowledge in only one\)"):
        task_aggregate({TASKS[0]: column([0.0]), "Task1 knowledge": column([0.0])}, {TASKS[0]: column([0.0])})
    with pytest.raises(MetricError, match="no parts"):
        task_aggregate({}, {})


def test_rows_without_words_are_named() -> None:
    parts = {TASKS[0]: column([0.5, float("nan")])}
    with pytest.raises(MetricError, match="retain Task1 regurgitation: only 1 of 2 rows"):
        task_aggregate({TASKS[0]: column([0.5])}, parts)
    assert task_aggregate({TASKS[0]: column([0.5])}, parts, allow_missing=True).n_total == 3


@pytest.mark.parametrize(("auc", "score"), [(0.5, 1), (1.0, 0), (0.0, 0), (0.75, 0.5), (0.25, 0.5)])
def test_membership_is_best_where_nothing_can_be_told(auc: float, score: float) -> None:
    assert membership_score(number(auc)).value == pytest.approx(score)
    assert membership_score(number(auc)).draws is None


def test_membership_of_losses() -> None:
    members, others = column([1.0, 2.0, 3.0], label="m"), column([2.0, 4.0, 5.0], label="n")
    auc = auc_estimate(members._replace(values=-members.values), others._replace(values=-others.values), name="mia")
    found = membership_score(auc)
    assert found.value == pytest.approx(1 / 3)
    assert found.draws is not None
    assert (found.draws[np.isfinite(found.draws)] <= 1).all()


@pytest.mark.parametrize(
    ("published", "tasks", "membership", "utility"),
    [
        (0.706, 0.827, 0.847, 0.443),
        (0.487, 0.944, 0.048, 0.471),
        (0.470, 0.834, 0.139, 0.436),
        (0.376, 0.387, 0.256, 0.485),
        (0.326, 0.496, 0.0, 0.481),
        (0.711, 0.964, 0.894, 0.275),
        (0.688, 0.964, 0.857, 0.242),
        (0.652, 0.973, 0.741, 0.243),
    ],
)
def test_the_published_leaderboards(published: float, tasks: float, membership: float, utility: float) -> None:
    found = lume_score(tasks=number(tasks), membership=number(membership), utility=number(utility))
    assert found.value == pytest.approx(published, abs=1.1e-3)


def test_the_score_resamples_its_parts() -> None:
    three = [number(0.3, [0.2, 0.4, 0.3]), number(0.6, [0.5, float("nan"), 0.7]), number(0.9, [0.9, 0.9, 0.9])]
    found = lume_score(tasks=three[0], membership=three[1], utility=three[2])
    assert found.value == pytest.approx(0.6)
    assert found.draws == pytest.approx([(0.2 + 0.5 + 0.9) / 3, (0.4 + 0.7 + 0.9) / 3])
    assert found.n == 3
    assert lume_score(tasks=three[0], membership=three[1], utility=number(0.5)).draws is None
