"""Events on stderr: rare plain lines without a terminal, bars in one."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from expunge.cli.live import LiveProgress
from expunge.cli.progress import PlainProgress, details, showing

STEP = {"event": "step", "step": 1, "total": 9, "epoch": 0, "lr": 1e-5, "loss": 1.5, "forget": 0.5, "grad_norm": 2.0}
SPEED = {"tokens": 900, "tokens_per_s": 1234.5, "eta_s": 3725.0, "memory_mb": 512.0, "seconds": 0.1}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number: int) -> dict[str, Any]:
    return {**STEP, "step": number}


def test_a_line_every_ten_seconds_and_at_the_ends() -> None:
    lines: list[str] = []
    clock = Clock()
    show = PlainProgress(lines.append, clock)
    for number in range(1, 10):
        clock.now = 4.0 * number
        show(step(number))
    assert [line.split()[1] for line in lines] == ["1/9", "4/9", "7/9", "9/9"]


def test_a_new_phase_has_its_own_first_line() -> None:
    lines: list[str] = []
    show = PlainProgress(lines.append, Clock())
    show({"event": "phase", "name": "trace", "done": 1, "total": 5})
    show({"event": "phase", "name": "trace", "done": 2, "total": 5})
    show({"event": "phase", "name": "generate", "done": 1, "total": 5})
    assert lines == ["trace 1/5", "generate 1/5"]


def test_notes_and_warnings_are_always_shown_and_other_events_never() -> None:
    lines: list[str] = []
    show = PlainProgress(lines.append, Clock())
    show(step(1))
    show({"event": "warning", "text": "careful"})
    show({"event": "note", "text": "resumed from step 3"})
    show({"event": "references", "forget": {"bytes": 3}})
    assert lines[1:] == ["warning: careful", "resumed from step 3"]


def test_what_a_line_says() -> None:
    lines: list[str] = []
    PlainProgress(lines.append, Clock())({**STEP, **SPEED})
    said = "step 1/9  loss 1.5  forget 0.5  1234 tokens/s  512.0 MB  lr 1e-05  grad_norm 2  1:02:05 left"
    assert lines == [said]


MEASURED = {
    "event": "eval",
    "step": 4,
    "total": 9,
    "metrics": {"forget.extraction_strength": 0.125, "retain.extraction_strength": 0.75, "model_utility": 0.5},
    "shown": ["forget.extraction_strength", "retain.extraction_strength"],
}
VALUES = "measured after step 4/9  forget.extraction_strength 0.125  retain.extraction_strength 0.75"


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ({}, VALUES),
        ({"best": True, "broken": []}, f"{VALUES}  best so far"),
        ({"best": False, "broken": []}, VALUES),
        (
            {"best": False, "broken": ["retain.extraction_strength >= 0.8"]},
            f"{VALUES}  not retain.extraction_strength >= 0.8",
        ),
    ],
)
def test_every_evaluation_has_a_line(judged: dict[str, Any], said: str) -> None:
    lines: list[str] = []
    show = PlainProgress(lines.append, Clock())
    show(step(1))
    show({**MEASURED, **judged})
    show({**MEASURED, **judged})
    assert lines[1:] == [said, said]


def test_an_evaluation_is_a_line_above_the_bars() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=140, color_system=None)
    with LiveProgress(console) as show:
        show({**STEP, **SPEED})
        show({**MEASURED, "best": True})
        show.refresh()
    assert f"{VALUES}  best so far" in screen.getvalue()


def test_phases_show_their_speed_too() -> None:
    assert details({"event": "phase", "name": "trace", "done": 1, "total": 2, "tokens_per_s": 99.6}) == "100 tokens/s"


def test_bars_in_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with LiveProgress(console) as show:
        show({"event": "phase", "name": "reference", "done": 40, "total": 40})
        show({**STEP, **SPEED})
        show({"event": "warning", "text": "[not markup]"})
        show.refresh()
    text = screen.getvalue()
    assert "reference" in text
    assert "1/9" in text
    assert "forget 0.5" in text
    assert "1:02:05" in text, "what the event says is left"
    assert "warning: [not markup]" in text


def test_without_a_terminal_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with showing() as show:
        show(step(1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("step 1/9")
