"""A guard beside its model: written in one step, and refused in front of anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from asked import questions

from expunge.data.template import build_template
from expunge.errors import ModelError, UsageError
from expunge.guards.base import Subject
from expunge.guards.energy import EnergyGuard, Settings
from expunge.guards.record import FILE
from expunge.testing.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture
def saved(subject: Subject, tmp_path: Path) -> Path:
    settings = Settings(0.5, "prompt", 2.0, 3, ("No.", "I can't say."))
    EnergyGuard.calibrate(subject, questions(45), settings).save(tmp_path)
    return tmp_path


def changed(folder: Path, **values: Any) -> None:
    found = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(found | values))


def test_it_comes_back_as_it_was(subject: Subject, saved: Path) -> None:
    guard = EnergyGuard.load(saved, subject)
    record = guard.record
    assert (record.statistic, record.temperature, record.rate, record.seed) == ("prompt", 2.0, 0.5, 3)
    assert record.refusals == ["No.", "I can't say."]
    made = EnergyGuard.calibrate(subject, questions(45), Settings(0.5, "prompt", 2.0, 3, ("No.", "I can't say.")))
    assert guard.record == made.record
    assert guard.generate(questions(9), max_new_tokens=5) == made.generate(questions(9), max_new_tokens=5)
    assert [path.name for path in saved.iterdir()] == [FILE]
    written = json.loads((saved / FILE).read_text())
    assert written["schema"] == 1
    assert written["threshold"] == record.threshold
    assert written["template"] == {"name": "auto", "digest": subject.template.digest}


def test_it_survives_the_tokenizer_and_model_being_loaded_again(subject: Subject, saved: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    again = Subject(model, tokenizer, build_template("auto", tokenizer))
    assert EnergyGuard.load(saved, again).record.rate == 0.5


def test_nothing_else_may_stand_behind_it(subject: Subject, saved: Path) -> None:
    other = tiny_tokenizer(["quite another corpus, of other words"])
    subjects = {
        "another model": subject._replace(model=tiny_llama(len(subject.tokenizer), seed=1)),
        "another tokenizer": subject._replace(tokenizer=other),
        r"another template \(auto \w{8}, here plain \w{8}\)": subject._replace(
            template=build_template("plain", subject.tokenizer)
        ),
        r"another template \(auto \w{8}, here auto \w{8}\)": subject._replace(
            template=build_template("auto", subject.tokenizer, system_prompt="Be brief.")
        ),
    }
    for what, strange in subjects.items():
        with pytest.raises(ModelError, match=f"was calibrated for {what}") as caught:
            EnergyGuard.load(saved, strange)
        assert "expunge guard calibrate" in str(caught.value.hint)
    changed(saved, dtype="bfloat16")
    with pytest.raises(ModelError, match=r"another dtype \(bfloat16, here float32\)"):
        EnergyGuard.load(saved, subject)


def test_there_is_none(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no calibrated guard") as caught:
        EnergyGuard.load(tmp_path, subject)
    assert "--prompts FILE" in str(caught.value.hint)


@pytest.mark.parametrize("keep", [0, 1, 40, -5])
def test_a_file_that_is_cut(subject: Subject, saved: Path, keep: int) -> None:
    text = (saved / FILE).read_text()
    (saved / FILE).write_text(text[:keep])
    with pytest.raises(ModelError, match="is not an energy guard's file") as caught:
        EnergyGuard.load(saved, subject)
    assert "calibrate" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 2}, "it has schema 2, this version reads 1"),
        ({"threshold": "high"}, "threshold: "),
        ({"threshold": float("nan")}, "threshold: "),
        ({"refusals": []}, "refusals: "),
        ({"statistic": "middle"}, "statistic: "),
        ({"template": None}, "template: "),
        ({"extra": 1}, "extra: "),
    ],
)
def test_a_file_of_something_else(subject: Subject, saved: Path, values: dict[str, Any], message: str) -> None:
    changed(saved, **values)
    with pytest.raises(ModelError, match=message):
        EnergyGuard.load(saved, subject)


def test_bytes_that_are_not_text(subject: Subject, saved: Path) -> None:
    (saved / FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="cannot be read"):
        EnergyGuard.load(saved, subject)


def test_a_failed_write_leaves_the_old_guard(subject: Subject, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / FILE).read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Exception, match="no space left"):
        EnergyGuard.calibrate(subject, questions(45), Settings(0.5)).save(saved)
    monkeypatch.undo()
    assert (saved / FILE).read_bytes() == before
    assert [path.name for path in saved.iterdir()] == [FILE]
