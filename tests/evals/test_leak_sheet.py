"""Leak@k from tables that nobody sampled: names, values, what is skipped, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.evals.suite import Tables
from expunge.evals.suites.leak_sheet import NOT_SAMPLED
from expunge.evals.suites.tofu import measure
from expunge.metrics.leak import leak_at_k
from expunge.metrics.leak_names import Cell, leak_name, listed_name, read_leak_name
from expunge.metrics.ragged import Ragged
from expunge.runs.tables import SAMPLES
from expunge.testing.tables import make_tables, text_row

ROWS = 3
cells = st.builds(Cell, st.floats(0, 10), st.floats(0, 1))


def drawn(row: int, number: int, rouge: float, **columns: Any) -> dict[str, Any]:
    made = {
        "split": "forget",
        "row": row,
        "id": f"forget:{row}",
        "temperature": 1.0,
        "top_p": 1.0,
        "sample": number,
        "output": "said",
        "token": [3],
        "num_tokens": 1,
        "ended": True,
        "logp": -1.0,
        "rougeL_recall": rouge,
        "contains": rouge == 1,
        "entailed": None,
    }
    return made | columns


def tables(samples: list[dict[str, Any]] | None) -> Tables:
    texts = [text_row(split, row, "answer", [-0.5, -0.25]) for split in ("forget", "retain") for row in range(ROWS)]
    found = make_tables(texts)
    return Tables(
        found.trace, found.generations, None if samples is None else pa.Table.from_pylist(samples, schema=SAMPLES)
    )


def everything(n: int, **columns: Any) -> list[dict[str, Any]]:
    return [drawn(row, number, (row + number) / (ROWS + n), **columns) for row in range(ROWS) for number in range(n)]


def leaks(given: Tables) -> dict[str, float]:
    return {name: score.value for name, score in measure(given).scores.items() if "leak_at" in name}


def test_values_are_those_of_the_estimator_in_any_order_of_the_table() -> None:
    n = 5
    values = Ragged.from_rows([[(row + number) / (ROWS + n) for number in range(n)] for row in range(ROWS)])
    found = leaks(tables(everything(n)))
    for k in (1, 2, 4):
        assert found[f"forget.leak_at_{k}"] == pytest.approx(leak_at_k(values, k=k).mean())
    assert set(found) == {f"forget.leak_at_{k}{score}" for k in (1, 2, 4) for score in ("", "_contains", "_exact")} | {
        "forget.leak_at_128_exact"
    }
    assert found["forget.leak_at_1"] == pytest.approx(values.values.mean())
    assert found["forget.leak_at_4_exact"] == pytest.approx(1 - (1 - np.exp(-0.75)) ** 4)
    assert leaks(tables(everything(n)[::-1])) == found


def test_a_row_is_what_the_mean_was_taken_over() -> None:
    measured = measure(tables(everything(2)))
    assert measured.rows["forget.leak_at_2"].values == pytest.approx([(row + 1) / (ROWS + 2) for row in range(ROWS)])
    assert measured.scores["forget.leak_at_2"].low is not None
    assert (measured.scores["forget.leak_at_2"].direction, measured.scores["forget.leak_at_2"].ideal) == ("lower", None)
    theirs = tables([each | {"rougeL_recall": 0.125} for each in everything(2)])
    assert measure(tables(everything(2)), reference=theirs).scores["forget.leak_at_2"].ideal == 0.125


def test_other_settings_and_a_classifier_stand_in_the_names() -> None:
    found = leaks(tables(everything(2, temperature=0.8, top_p=0.95, entailed=True)))
    kinds = ("", "_contains", "_entailed")
    assert set(found) == {f"forget.leak_at_{k}{kind}_t0.8_p0.95" for k in (1, 2) for kind in kinds} | {
        f"forget.leak_at_{k}_exact" for k in (1, 2, 128)
    }
    assert found["forget.leak_at_2_entailed_t0.8_p0.95"] == 1


def test_k_goes_as_far_as_every_row_has_answers() -> None:
    fewer = [each for each in everything(4) if (each["row"], each["sample"]) != (1, 3)]
    assert {name for name in leaks(tables(fewer)) if name.startswith("forget.leak_at_4")} == set()


def test_nothing_sampled_leaves_the_bound_alone() -> None:
    measured = measure(tables(None))
    assert measured.skipped["forget.leak_at_K"] == NOT_SAMPLED
    assert leaks(tables(None)) == {"forget.leak_at_128_exact": pytest.approx(1 - (1 - np.exp(-0.75)) ** 128)}


def test_tables_that_do_not_belong_together_are_refused() -> None:
    twice = [*everything(2), drawn(1, 1, 0.5)]
    with pytest.raises(MetricError, match="forget: a row was sampled twice"):
        measure(tables(twice))
    with pytest.raises(MetricError, match=r"forget: rows 1 are in only one of the two tables"):
        measure(tables([each for each in everything(2) if each["row"] != 1]))
    half = [each | {"entailed": True if each["row"] else None} for each in everything(2)]
    with pytest.raises(MetricError, match="'entailed' was not stored for every sampled answer"):
        measure(tables(half))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.sampled_from(["forget", "retain"]), st.integers(1, 9999), st.sampled_from(["", "contains", "entailed"]), cells
)
def test_a_name_says_what_it_was_made_of(split: str, k: int, score: str, cell: Cell) -> None:
    name = leak_name(split, k, score=score, cell=cell)
    found = read_leak_name(name)
    assert found is not None
    assert found[:3] == (split, k, score)
    assert found.cell == pytest.approx(cell, rel=1e-5)
    assert listed_name(name) == f"{split}.leak_at_K{score and '_' + score}"


@pytest.mark.parametrize(
    "name", ["forget.probability", "leak_at_4", "forget.leak_at_K", "forget.leak_at_4_t1", "model_utility"]
)
def test_other_names_say_nothing(name: str) -> None:
    assert read_leak_name(name) is None
    assert listed_name(name) == ("leak_at_K" if name == "leak_at_4" else name)
