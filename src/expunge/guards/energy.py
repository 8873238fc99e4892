"""The energy guard: refuse a prompt that looks unknown to the model.

Energy is the negative log-sum-exp of the logits, low where a model is confident. After unlearning by energy the prompts
of the forget set lie above those of the retain set, and a threshold between them turns "does not know" into "does not
say". The threshold comes from retain prompts alone, so that it holds for what the model should answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from expunge.catalog import unknown
from expunge.data.example import turns_text
from expunge.errors import MetricError, UsageError
from expunge.guards.base import Decision, Prompt, Reply, Subject, as_turns
from expunge.guards.record import (
    STATISTICS,
    EnergyRecord,
    OverRefusal,
    Statistic,
    TemplateName,
    read_record,
    require_same,
    write_record,
)
from expunge.metrics.guard import calibration_split, conformal_threshold, refusal_rate
from expunge.metrics.ragged import Array
from expunge.models.lse import tail_lse

DEFAULT_RATE = 0.02
DEFAULT_REFUSAL = "I'm sorry, I can't help with that."
DRAFT_TOKENS = 4
"""Greedy tokens that the statistic `generated` looks at."""

Progress = Callable[[dict[str, Any]], None]


class Settings(NamedTuple):
    """How a guard is calibrated."""

    rate: float = DEFAULT_RATE
    """False-refusal rate in (0, 1)."""
    statistic: Statistic = "last"
    """`last`: the last prompt token; `prompt`: the mean over the prompt's tokens; `generated`: the mean over the
    first four greedy tokens, which are drafted and never shown where the guard refuses."""
    temperature: float = 1.0
    """T > 0 of `E = -T logsumexp(z / T)`."""
    seed: int = 0
    refusals: Sequence[str] = (DEFAULT_REFUSAL,)
    """One of them, chosen by a seeded hash of the prompt, replaces a refused answer."""

    def checked(self) -> Settings:
        """Itself.

        Raises:
            UsageError: a setting that cannot be used.
        """
        if self.statistic not in STATISTICS:
            raise unknown("statistic", self.statistic, list(STATISTICS))
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"the temperature is {self.temperature}", hint="give a number above 0")
        if not self.refusals or not all(text.strip() for text in self.refusals):
            raise UsageError("a refusal is empty", hint="give a text that people read instead of the answer")
        return self


def prompt_energies(
    subject: Subject,
    prompts: Sequence[Prompt],
    *,
    statistic: Statistic = "last",
    temperature: float = 1.0,
    progress: Progress | None = None,
) -> Array:  # (n,)
    """`E = -T logsumexp(z / T)` of each prompt, higher = unknown.

    Args:
        subject: the model and how prompts are written for it.
        prompts: in any order.
        statistic: which positions are averaged, see `Settings`.
        temperature: T > 0.
        progress: called with `{"event": "phase", "name": "energy", "done", "total"}` in prompts.

    Returns:
        (n,) not reduced. Adding a constant to all logits shifts every energy and changes no answer: compare them
        inside one model only.

    Raises:
        UsageError: an empty prompt, or one that fills the model's context.
        MetricError: an energy that is not a finite number.

    Source:
        Liu et al. (arXiv 2010.03759), equation 4; as a refusal at inference: Yang et al., Distinguishable Deletion
        (arXiv 2605.16776). Its statistic and threshold could not be read; last position and conformal threshold
        are ours.
    """
    rows = subject.prompt_ids(prompts)
    starts = [0 if statistic == "prompt" else len(row) - 1 for row in rows]
    if statistic == "generated":
        drafts = subject.answer(rows, max_new_tokens=DRAFT_TOKENS)
        # Position t predicts token t + 1, the end token too: what was drafted last predicts nothing that was drafted.
        rows = [
            [*row, *(draft.token if draft.ended else draft.token[:-1])] for row, draft in zip(rows, drafts, strict=True)
        ]

    def say(done: int) -> None:
        if progress:
            progress({"event": "phase", "name": "energy", "done": done, "total": len(rows)})

    lse = tail_lse(subject.model, rows, starts, pad_id=subject.pad_id, temperature=temperature, progress=say)
    energies = np.array([-temperature * float(values.mean(dtype=np.float64)) for values in lse])
    if bad := [number for number, value in enumerate(energies, start=1) if not np.isfinite(value)]:
        raise MetricError(
            f"the energy of {len(bad)} of {len(energies)} prompts is not a finite number (first: prompt {bad[0]})",
            hint="the model gives NaN or infinite logits there; check its weights and dtype",
        )
    return energies


class EnergyGuard:
    """Refuses prompts whose energy is above a calibrated threshold.

    Made by `calibrate` or `load`.

    Args:
        subject: what it stands in front of.
        record: what it decides by.
    """

    name: ClassVar[str] = "energy"

    def __init__(self, subject: Subject, record: EnergyRecord) -> None:
        self.subject = subject
        self.record = record

    @classmethod
    def calibrate(
        cls,
        subject: Subject,
        prompts: Sequence[Prompt],
        settings: Settings | None = None,
        *,
        progress: Progress | None = None,
    ) -> Self:
        """Set the threshold on half of the distinct prompts and measure the over-refusal on the other half.

        Args:
            subject: the model and how prompts are written for it.
            prompts: what it should answer; repeated ones count once.
            settings: rate, statistic, temperature, seed, refusals.
            progress: see `prompt_energies`.

        Raises:
            UsageError: a setting that cannot be used, or an empty prompt.
            MetricError: too few prompts for the rate, or an energy that is not a finite number.
        """
        asked = (settings or Settings()).checked()
        distinct = {turns_text(turns): turns for turns in as_turns(prompts)}
        values = prompt_energies(
            subject,
            list(distinct.values()),
            statistic=asked.statistic,
            temperature=asked.temperature,
            progress=progress,
        )
        return cls.from_energies(subject, dict(zip(distinct, values.tolist(), strict=True)), asked)

    @classmethod
    def from_energies(cls, subject: Subject, energies: Mapping[str, float], settings: Settings) -> Self:
        """`calibrate` on energies that were measured with the same settings.

        Args:
            subject: what they were measured on.
            energies: text of each distinct prompt -> its energy.
            settings: as `calibrate`.

        Raises:
            UsageError, MetricError: as `calibrate`.
        """
        asked = settings.checked()
        halves = calibration_split(list(energies), seed=asked.seed)
        threshold = conformal_threshold(np.array([energies[text] for text in halves.calibration]), rate=asked.rate)
        test = np.array([energies[text] for text in halves.test])
        refused = refusal_rate(test, threshold, direction="lower", ideal=0.0)
        identity = subject.identity()
        record = EnergyRecord(
            statistic=asked.statistic,
            temperature=float(asked.temperature),
            threshold=threshold,
            rate=asked.rate,
            seed=asked.seed,
            num_calibration=len(halves.calibration),
            over_refusal=OverRefusal(**{name: getattr(refused, name) for name in OverRefusal.model_fields}),
            refusals=list(asked.refusals),
            model_digest=identity.model,
            tokenizer_digest=identity.tokenizer,
            template=TemplateName(name=subject.template.name, digest=identity.template),
            dtype=identity.dtype,
        )
        return cls(subject, record)

    def decide(self, prompts: Sequence[Prompt]) -> list[Decision]:
        """Energy of each prompt and whether it is above the threshold; see `Guard.decide`.

        Raises:
            UsageError: an empty prompt, or one that fills the model's context.
            MetricError: an energy that is not a finite number.
        """
        energies = prompt_energies(
            self.subject, prompts, statistic=self.record.statistic, temperature=self.record.temperature
        )
        return [Decision(float(value), bool(value > self.record.threshold)) for value in energies]

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 200) -> list[Reply]:
        """Answer greedily what is not refused; a refused prompt gets a refusal and nothing that the model wrote.

        Args:
            prompts: in any order.
            max_new_tokens: limit on each answer.

        Raises:
            UsageError, MetricError: as `decide`.
        """
        decisions, turns = self.decide(prompts), as_turns(prompts)
        open_to = [i for i, decision in enumerate(decisions) if not decision.refused]
        made = self.subject.answer(self.subject.prompt_ids([turns[i] for i in open_to]), max_new_tokens=max_new_tokens)
        answers = dict(zip(open_to, made, strict=True))
        return [
            Reply(self.refusal(turns[i]) if refused else self.subject.text(answers[i].token), score, refused)
            for i, (score, refused) in enumerate(decisions)
        ]

    def refusal(self, prompt: Prompt) -> str:
        """What is said instead of an answer: always the same to the same prompt."""
        (turns,) = as_turns([prompt])
        word = hashlib.sha256(f"{self.record.seed}\n{turns_text(turns)}".encode()).digest()
        return self.record.refusals[int.from_bytes(word[:8], "big") % len(self.record.refusals)]

    def save(self, folder: Path) -> Path:
        """Write `energy_guard.json` into the model's folder, in one step.

        Raises:
            StoppedError: the disk is full.
            UsageError: the folder cannot be written to.
        """
        return write_record(self.record, folder)

    @classmethod
    def load(cls, folder: Path, subject: Subject) -> Self:
        """The guard that lies beside a model.

        Raises:
            UsageError: none was calibrated.
            ModelError: its file is cut or of another schema, or it was calibrated for another model, tokenizer,
                template or dtype.
        """
        record = read_record(folder)
        require_same(record, subject.identity(), template=subject.template.name, folder=folder)
        return cls(subject, record)
