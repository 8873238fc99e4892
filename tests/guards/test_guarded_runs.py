"""Calibrating a guard for a run and asking through it, from Python."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked import questions
from safetensors.torch import load_file, save_file

from expunge import api
from expunge.errors import DataError, ExpungeError, MetricError, ModelError, UsageError
from expunge.guards.base import load_subject
from expunge.guards.energy import DEFAULT_REFUSAL, prompt_energies
from expunge.guards.record import FILE
from expunge.testing.runs import tiny_run


def test_a_run_is_calibrated_on_its_own_rows(run: Path) -> None:
    events: list[dict[str, Any]] = []
    made = api.calibrate_guard(run, rate=0.5, progress=events.append)
    assert made.path == run / "model" / FILE
    assert (made.num_calibration, made.over_refusal.n, made.rate, made.statistic) == (25, 25, 0.5, "last")
    assert made.forget is not None
    subject = load_subject(str(run / "model"), None, device="cpu")
    retain, forget = (prompt_energies(subject, questions(n, who)) for n, who in ((50, "Mira"), (12, "Vane")))
    assert made.threshold in retain.tolist()
    assert made.forget.refusal_rate.value == np.mean(forget > made.threshold)
    wins = (forget[:, None] > retain).mean()
    assert made.forget.auroc.value == pytest.approx(wins)
    assert made.forget.auroc.low is not None
    assert made.forget.fpr95.value == np.mean(forget <= np.sort(retain)[math.ceil(0.95 * 50) - 1])
    assert {event["total"] for event in events} == {50, 12}


def test_prompts_of_a_file_take_the_place_of_retain_rows(run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(questions(60, "Idris")) + "\n")
    made = api.calibrate_guard(run, rate=0.4, prompts=tmp_path / "prompts.txt", refusals=["No."])
    assert made.num_calibration == 30
    bare = api.calibrate_guard(
        run / "model", rate=0.4, prompts=tmp_path / "prompts.txt", template="plain", device="cpu"
    )
    assert bare.num_calibration == 30
    assert bare.forget is None


def test_asking_without_a_guard_says_the_energy_alone(run: Path) -> None:
    answer = api.ask(run, "Who?", max_new_tokens=5)
    assert answer[3:] == (None, None, False)
    with pytest.raises(UsageError, match="has no calibrated guard"):
        api.ask(run, "Who?", guard=True)
    assert answer.energy == pytest.approx(
        prompt_energies(load_subject(str(run / "model"), None, device="cpu"), ["Who?"])[0]
    )


def test_the_guard_decides_only_where_it_is_asked_to(run: Path) -> None:
    made = api.calibrate_guard(run, rate=0.5, refusals=["No."])
    seen = set()
    for question in questions(12, "Vane"):
        open_ = api.ask(run, question, max_new_tokens=5)
        guarded = api.ask(run, question, max_new_tokens=5, guard=True)
        assert open_.refused == guarded.refused == (open_.energy > made.threshold)
        assert (open_.guarded, guarded.guarded) == (False, True)
        assert guarded.answer == ("No." if guarded.refused else open_.answer)
        seen.add(guarded.refused)
    assert seen == {True, False}


def test_a_bare_folder_is_asked_in_its_guard_s_words(run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(questions(60, "Idris")) + "\n")
    model = run / "model"
    api.calibrate_guard(model, rate=0.4, prompts=tmp_path / "prompts.txt", template="plain")
    assert api.ask(model, "Who?", guard=True, max_new_tokens=3).guarded
    with pytest.raises(ModelError, match=r"another template \(plain \w+, here auto"):
        api.ask(model, "Who?", guard=True, template="auto")


def test_a_guard_that_does_not_fit_is_left_out_aloud(run: Path) -> None:
    api.calibrate_guard(run, rate=0.5)
    path = run / "model" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    events: list[dict[str, Any]] = []
    answer = api.ask(run, "Who?", max_new_tokens=3, progress=events.append)
    assert answer.threshold is None
    assert any("another model" in event.get("text", "") for event in events)
    with pytest.raises(ModelError, match="another model") as caught:
        api.ask(run, "Who?", guard=True)
    assert str(caught.value.hint).endswith(f"run `expunge guard calibrate {run}`")
    api.calibrate_guard(run, rate=0.5)
    assert api.ask(run, "Who?", guard=True, max_new_tokens=3).guarded


# Bad input


def test_too_few_retain_prompts_say_how_many(run: Path) -> None:
    with pytest.raises(MetricError, match="1000 distinct retain prompts, there are 50") as caught:
        api.calibrate_guard(run)
    assert "--prompts FILE" in str(caught.value.hint)
    assert not (run / "model" / FILE).exists()


def test_rows_that_cannot_calibrate(tmp_path: Path) -> None:
    forget = [{"question": "Who?", "answer": "She."}]
    run = tiny_run(tmp_path / "none", forget=forget, retain=[])
    with pytest.raises(UsageError, match="names no retain rows"):
        api.calibrate_guard(run)
    run = tiny_run(tmp_path / "texts", forget=forget, retain=[{"text": f"A document {i}."} for i in range(60)])
    with pytest.raises(DataError, match="holds raw text"):
        api.calibrate_guard(run, rate=0.5)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        api.calibrate_guard(run, rate=0.5, prompts=tmp_path / "empty.txt")


def test_an_empty_prompt_names_its_row(run: Path, tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": "Yes."} for text in [*questions(3), " "]]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ExpungeError, match="row 3"):
        api.calibrate_guard(run, rate=0.5, prompts=tmp_path / "p.jsonl")


def test_a_model_that_gives_nan(run: Path) -> None:
    path = run / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], math.nan)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ExpungeError, match="not a finite number"):
        api.calibrate_guard(run, rate=0.5)
    with pytest.raises(ExpungeError, match="not a finite number"):
        api.ask(run, "Who?")


def test_no_folder_to_save_in() -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        api.calibrate_guard("org/name", prompts="p.txt")


def test_the_default_refusal_admits_nothing() -> None:
    assert DEFAULT_REFUSAL == "I'm sorry, I can't help with that."
