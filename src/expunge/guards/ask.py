"""Put one question to a model, with the guard in front of it or with the guard's opinion beside the answer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from expunge.errors import ModelError, UsageError
from expunge.guards.base import Subject, as_turns, load_subject
from expunge.guards.energy import EnergyGuard, Progress, prompt_energies
from expunge.guards.record import EnergyRecord, calibrate_command, guard_file, read_record
from expunge.runs.target import find_target

MAX_NEW_TOKENS = 200


class Answer(NamedTuple):
    """What a model, or its guard, said."""

    question: str
    answer: str
    """What the model answers; the refusal where the guard stood in front of it and refused."""
    energy: float
    """Of the question, by the saved guard's statistic; at the last prompt token where none is saved."""
    threshold: float | None
    """The saved guard's; None where there is none that fits."""
    refused: bool | None
    """Whether the energy is above the threshold; None without one."""
    guarded: bool
    """Whether that decided what was shown."""


def ask(
    target: str | Path,
    question: str,
    *,
    guard: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    template: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Ask a run's model, a model folder or a Hub id.

    Args:
        target: which of them.
        question: what a user would type.
        guard: let the saved guard decide whether the answer is shown. Without it the answer is shown, and what the
            guard would do is only said; one that does not fit this model is then reported and left out.
        max_new_tokens: limit on the greedy answer.
        template: named profile instead of the run's template.
        device: in place of the run's.
        progress: receives one dict per event.

    Raises:
        UsageError: an empty question, a target without a model, or `guard` without a calibrated guard.
        ModelError: `guard` with one that is unreadable or does not fit.
        MetricError: an energy that is not a finite number.
    """
    as_turns([question])
    found = find_target(target)
    folder = Path(found.model)
    saved = guard_file(folder).exists()
    if guard and not saved:
        raise UsageError(f"{target} has no calibrated guard", hint=f"run `{calibrate_command(folder)}` first")
    if template is None and found.run is None and saved:
        template = _template(folder, needed=guard)
    subject = load_subject(found.model, found.recipe, template=template, device=device)
    standing = _standing(folder, subject, needed=guard, progress=progress) if saved else None
    if standing is None:
        (energy,) = prompt_energies(subject, [question])
        return Answer(question, _answer(subject, question, max_new_tokens), float(energy), None, None, False)
    threshold = standing.record.threshold
    if guard:
        (reply,) = standing.generate([question], max_new_tokens=max_new_tokens)
        return Answer(question, reply.text, reply.energy, threshold, reply.refused, True)
    ((score, refused),) = standing.decide([question])
    return Answer(question, _answer(subject, question, max_new_tokens), score, threshold, refused, False)


def _answer(subject: Subject, question: str, max_new_tokens: int) -> str:
    (made,) = subject.answer(subject.prompt_ids([question]), max_new_tokens=max_new_tokens)
    return subject.text(made.token)


def _template(folder: Path, *, needed: bool) -> str | None:
    """The template that the guard of a bare model folder was calibrated with."""
    try:
        record: EnergyRecord = read_record(folder)
    except ModelError:
        if needed:
            raise
        return None
    return record.template.name


def _standing(folder: Path, subject: Subject, *, needed: bool, progress: Progress | None) -> EnergyGuard | None:
    try:
        return EnergyGuard.load(folder, subject)
    except ModelError as error:
        if needed:
            raise
        if progress:
            progress({"event": "warning", "text": f"{error.message}; it is left out"})
        return None
