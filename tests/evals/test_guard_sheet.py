"""What a suite says of the guard, on tables written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from expunge.evals.suite import Tables
from expunge.evals.suites.guard_sheet import calibrate, calibration_prompts, energy, fill_guard
from expunge.evals.suites.tofu_sheet import Sheet, views_of
from expunge.metrics.guard import calibration_split, conformal_threshold, prompt_key
from expunge.runs.prompt_order import COLUMN, with_prompt_order
from expunge.testing.tables import Row, make_tables, text_row

RATE = 0.1
"""Needs 100 calibration prompts."""


def rows(split: str, energies: Sequence[float], *, prefix: str | None = None) -> list[Row]:
    return [
        text_row(split, row, "answer", [-1.0], lse=[-value], prompt=f"{prefix or split} {row}")
        for row, value in enumerate(energies)
    ]


def world(retain: int = 150) -> list[Row]:
    """Retain prompts in two forms (energies -20 .. -10), forget prompts mostly above them."""
    random = np.random.default_rng(0)
    return [
        *rows("forget", np.linspace(-11, -2, 40).tolist()),
        *rows("retain", random.uniform(-20, -10, retain).tolist()),
        *rows("retain_cloze", random.uniform(-20, -10, retain // 2).tolist()),
        *rows("retain_paraphrased", random.uniform(-19, -9, 30).tolist()),
        *rows("forget_paraphrased", np.linspace(-10, -2, 30).tolist()),
        *rows("holdout", np.linspace(-15, -5, 20).tolist()),
    ]


def sheet_of(texts: list[Row]) -> Sheet:
    sheet = Sheet(views_of(make_tables(texts)), allow_missing=False)
    fill_guard(sheet, rate=RATE)
    return sheet


def test_the_numbers_are_those_of_counting() -> None:
    sheet = sheet_of(world())
    prompts = {
        text: float(value)
        for split, prefix in (("retain", "retain"), ("retain_cloze", "retain_cloze"))
        for text, value in zip(
            [f"{prefix} {row}" for row in sheet.views[split].row], energy(sheet.views[split]), strict=True
        )
    }
    halves = calibration_split(list(prompts), seed=0)
    threshold = conformal_threshold(np.array([prompts[text] for text in halves.calibration]), rate=RATE)
    assert calibrate(sheet.views, rate=RATE).threshold == threshold
    counted = sum(prompts[text] > threshold for text in halves.test) / len(halves.test)
    assert sheet.extra["guard.over_refusal_rate"].value == counted
    assert sheet.extra["guard.over_refusal_rate"].n == len(halves.test)
    for name, split in {
        "guard.refusal_rate": "forget",
        "guard.refusal_rate_paraphrase": "forget_paraphrased",
        "guard.over_refusal_paraphrase": "retain_paraphrased",
        "guard.over_refusal_holdout": "holdout",
    }.items():
        assert sheet.extra[name].value == pytest.approx(np.mean(energy(sheet.views[split]) > threshold))
        assert sheet.extra[name].direction == ("higher" if "refusal_rate" in name and "over" not in name else "lower")
    assert not sheet.skipped
    assert {"energy.auroc", "energy.fpr95", "energy.auroc_paraphrase"} <= sheet.estimates.keys()
    assert "guard.over_refusal_neighbours" not in sheet.extra, "a split that is not there leaves no trace"


def test_the_order_of_the_tables_does_not_matter() -> None:
    texts = world()
    assert sheet_of(texts).extra == sheet_of(texts[::-1]).extra


def test_repeated_prompts_count_once() -> None:
    texts = world()
    again = [
        {**row, "split": "retain_inverted", "id": f"again {row['id']}"} for row in texts if row["split"] == "retain"
    ]
    assert sheet_of([*texts, *again]).extra == sheet_of(texts).extra
    assert len(calibration_prompts(views_of(make_tables([*texts, *again])))) == 225


def test_prompts_that_calibrate_are_not_tested_on() -> None:
    texts = world()
    near = [{**row, "split": "neighbours"} for row in texts if row["split"] == "retain"]
    sheet = sheet_of([*texts, *near])
    found = sheet.extra["guard.over_refusal_neighbours"]
    known = calibrate(sheet.views, rate=RATE).calibration
    assert found.n == sum(prompt_key(f"retain {row}", seed=0) not in known for row in range(150))
    assert found.n < found.n_total == 150
    only = next(row for row in near if prompt_key(row["prompt"], seed=0) in known)
    alone = sheet_of([*texts, {**only, "row": 0}])
    assert alone.skipped == {"guard.over_refusal_neighbours": "each of the 1 neighbours prompts calibrates the guard"}


def test_too_few_prompts_are_counted() -> None:
    sheet = sheet_of(world(retain=100))
    reason = "a guard for 10 % false refusals is calibrated on 100 retain prompts or more; half of those here are 75"
    assert set(sheet.skipped.values()) == {reason}
    assert len(sheet.skipped) == 5
    assert not sheet.extra


def purged(tables: Tables, *, numbered: bool = True) -> Tables:
    trace = with_prompt_order(tables.trace) if numbered else tables.trace
    place = trace.schema.get_field_index("prompt")
    nulls = pa.nulls(trace.num_rows, pa.string())
    return Tables(trace.set_column(place, "prompt", nulls), tables.generations)


def test_a_purged_trace_gives_the_same_numbers() -> None:
    texts = world()
    near = [{**row, "split": "neighbours"} for row in texts if row["split"] == "retain"]
    raw = text_row("retain", 150, "answer", [-1.0], prompt="")
    again = {**texts[50], "split": "retain_inverted"}
    tables = make_tables([*texts, *near, raw, again])
    sheet = Sheet(views_of(purged(tables)), allow_missing=False)
    fill_guard(sheet, rate=RATE)
    before = Sheet(views_of(tables), allow_missing=False)
    fill_guard(before, rate=RATE)
    assert sheet.extra == before.extra
    assert len(sheet.extra) == 6
    assert sheet.skipped == before.skipped == {}


def test_the_numbers_of_forget_prompts_say_nothing_of_their_text() -> None:
    texts = world()
    other = [{**row, "prompt": f"other {row['row']}"} if row["split"] == "forget" else row for row in texts]
    numbers = [with_prompt_order(make_tables(rows).trace)[COLUMN].to_pylist() for rows in (texts, other)]
    assert numbers[0] == numbers[1]


def test_purged_prompts_without_an_order_are_a_reason() -> None:
    for numbered, seed in ((False, 0), (True, 1)):
        sheet = Sheet(views_of(purged(make_tables(world()), numbered=numbered)), allow_missing=False)
        fill_guard(sheet, rate=RATE, seed=seed)
        assert "energy.auroc" in sheet.estimates
        assert all(reason.startswith("the prompts were purged") for reason in sheet.skipped.values())
        assert "guard.refusal_rate" in sheet.skipped


def test_raw_texts_are_not_prompts() -> None:
    texts = [{**row, "prompt": ""} if row["split"] == "retain" else row for row in world()]
    assert "half of those here are 37" in sheet_of(texts).skipped["guard.refusal_rate"]


def test_without_both_sides_there_is_no_guard() -> None:
    sheet = sheet_of([row for row in world() if row["split"] != "forget"])
    assert not sheet.extra
    assert sheet.skipped["energy.auroc"] == "no forget rows in this evaluation"
