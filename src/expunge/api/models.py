"""What is done with a finished model: merge, push, guard, ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.config.schema import Recipe
from expunge.errors import UsageError

if TYPE_CHECKING:
    from expunge.guards.ask import Answer
    from expunge.guards.calibrate import Calibration
    from expunge.guards.record import Statistic
    from expunge.integrations.hub import Pushed

Progress = Callable[[dict[str, Any]], None]


def merge(target: str | Path, *, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write the model of a run that trained adapters (`model.use_peft`) as a plain Hugging Face folder, in float32.

    Args:
        target: the run, or an adapter's folder or Hub id.
        out: the folder; `RUN/merged` unless given.
        overwrite: replace what lies there.

    Returns:
        The folder; its guard, where the run has one, lies in it too, unless weights were quantised.

    Raises:
        ExpungeError: no adapter, a folder that exists, a model that cannot be loaded or written.
    """
    from expunge.guards.record import FILE
    from expunge.models.load import loading, pick_device
    from expunge.models.save import save_merged
    from expunge.runs.target import find_target

    found = find_target(target)
    if out is None and found.run is None:
        raise UsageError(f"{target} is no run, so it has no folder of its own", hint="say where to with --out FOLDER")
    folder = Path(out) if out is not None else Path(target) / "merged"
    section = loading((found.recipe or Recipe()).model, found.model)
    # Quantised weights are only read where they were made; a guard that was made in front of them is of no use after.
    quantised = section.load_in_4bit or section.load_in_8bit
    device = pick_device(None if quantised else "cpu")
    save_merged(section, folder, device=device, overwrite=overwrite, beside=() if quantised else (FILE,))
    return folder


def push(
    run: str | Path,
    repo_id: str | None = None,
    *,
    private: bool = True,
    revision: str | None = None,
    merged: bool = False,
    start: str | Path | None = None,
    reference: str | Path | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Upload a finished run's model and a redacted model card to the Hugging Face Hub, and nothing else of the run.

    Args:
        run: the run directory.
        repo_id: `organisation/name`, or `name` under the account that is logged in; the run's name unless given.
        private: of a repository that has to be made.
        revision: a branch instead of the main one.
        merged: upload the plain model that `merge` made instead of an adapter.
        start: the evaluated starting model, for the card; found from the manifest unless given.
        reference: the evaluated retrained model, likewise.
        progress: told what is uploaded.

    Raises:
        UsageError: a run without a finished model, no login, or a repository that is not ours to fill.
        StoppedError: the Hub cannot be reached; the run stays as it is.
    """
    from expunge.integrations.hub import push as upload

    return upload(
        Path(run),
        repo_id,
        private=private,
        revision=revision,
        merged=merged,
        start=None if start is None else Path(start),
        reference=None if reference is None else Path(reference),
        progress=progress,
    )


def calibrate_guard(
    target: str | Path,
    *,
    rate: float = 0.02,
    statistic: Statistic = "last",
    temperature: float = 1.0,
    prompts: str | Path | None = None,
    seed: int = 0,
    refusals: Sequence[str] = (),
    template: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrate an energy guard for a run, and save it beside the run's model.

    Args:
        target: a run directory, or a model folder (then with `prompts`).
        rate: share of prompts like the calibration prompts that it may refuse, in (0, 1).
        statistic: `last` (energy at the last prompt token), `prompt` (mean over the prompt), `generated` (mean over
            the first four tokens of a draft that is not shown).
        temperature: T > 0 of `E = -T logsumexp(z / T)`.
        prompts: a file of what the model should answer, instead of the run's retain rows.
        seed: of the split into a calibration and a test half.
        refusals: what is said instead of an answer, one of them for each prompt.
        template: named profile instead of the run's template.
        device: `cpu`, `cuda`, `mps`.
        progress: receives one dict per event.

    Returns:
        The threshold, the over-refusal on the test half and, where the target has forget rows, what it refuses.

    Raises:
        UsageError: a setting or a target that cannot be used.
        DataError: rows that cannot be read.
        MetricError: too few prompts for the rate, or an energy that is not a finite number.
    """
    from expunge.guards.calibrate import calibrate_guard as calibrate
    from expunge.guards.energy import DEFAULT_REFUSAL, Settings

    settings = Settings(rate, statistic, temperature, seed, tuple(refusals) or (DEFAULT_REFUSAL,))
    return calibrate(target, settings, prompts=prompts, template=template, device=device, progress=progress)


def ask(
    target: str | Path,
    question: str,
    *,
    guard: bool = False,
    max_new_tokens: int = 200,
    template: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Put one question to a run, a model folder or a Hub id.

    Args:
        target: which of them.
        question: what a user would type.
        guard: let the saved guard refuse; without it the answer is shown and the guard's opinion only stands beside.
        max_new_tokens: limit on the greedy answer.
        template: named profile instead of the run's template.
        device: `cpu`, `cuda`, `mps`.
        progress: receives one dict per event.

    Returns:
        The answer or refusal, the question's energy, and the threshold and decision of the saved guard.

    Raises:
        UsageError: an empty question, a target without a model, or `guard` without a calibrated guard.
        ModelError: `guard` with one that was calibrated for something else, or is unreadable.
        MetricError: an energy that is not a finite number.
    """
    from expunge.guards.ask import ask as put

    return put(
        target,
        question,
        guard=guard,
        max_new_tokens=max_new_tokens,
        template=template,
        device=device,
        progress=progress,
    )
