"""What a suite is: the rows it needs traced and generated, and the metrics it reads off the tables. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from expunge.data.example import Example
from expunge.metrics.ragged import Array
from expunge.metrics.score import Score

Profile = Literal["canonical", "openunlearning", "tofu"]

TOTAL_LENGTH: Mapping[str, int] = {"tofu": 200}
"""Profile -> limit on the tokens of prompt and greedy answer together, where it has one."""

PROFILES: tuple[Profile, ...] = ("canonical", "openunlearning", "tofu")

NO_START = "no --start given"
"""Why a metric that compares with the starting model is absent, where nothing more is known."""

Rows = Mapping[str, Sequence[Example]]
"""Split -> its rows."""


class SuiteData(NamedTuple):
    """Where a suite may take its rows from; a suite is declared by a function of this, and reads what it knows."""

    tofu: str = "locuslab/TOFU"
    """Where TOFU lies: a folder or a Hub id."""
    world: Path | None = None
    """A folder of `expunge world build`."""
    num_fewshot: int = 0
    """Answered questions before each one of a multiple choice."""
    forget_split: str = "forget10"
    """`forget01`, `forget05` or `forget10`: which of TOFU's rows were to be forgotten; of PISTOL edges, joined by
    commas."""
    splits: Rows | None = None
    """Rows that the settings name, in place of the benchmark's own."""
    trained: Rows | None = None
    """The forget and retain rows of the run itself, for a suite that has none of its own for it."""
    limit: int | None = None
    """Only the first rows of each split."""
    source: str | None = None
    """Where a benchmark other than TOFU lies: a folder or a Hub id; the published data set unless said."""
    profile: Profile = "canonical"
    """Whose definitions, for a suite that scores answers otherwise in each."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness."""
    tasks_path: Path | None = None
    """A folder of more of them."""


@dataclass(frozen=True)
class Scoring:
    """How greedy answers are compared with what should have been said (`expunge.metrics.rouge`)."""

    stem: bool = True
    """Whether ROUGE stems words."""
    stop: tuple[str, ...] = ()
    """An answer is cut before the first of these."""
    reference_tokens: int | None = None
    """What should have been said is cut to so many tokens, a BOS among them where the tokenizer puts one in front."""
    scores: tuple[str, ...] = ()
    """What else is stored of an answer, by name (`expunge.evals.answer_scores`)."""


@dataclass(frozen=True)
class Split:
    """One set of rows of a suite and what is measured on it."""

    name: str
    """`forget`, `retain`, `real_authors`, `world_facts`, `holdout`, ...; the prefix of its metrics' names."""
    examples: tuple[Example, ...]
    variants: tuple[str, ...] = ("answer",)
    """What is traced for each row: `answer`, `paraphrase` (extra `paraphrased_answer`), `perturbed` (each of extra
    `perturbed_answer`, giving variants `perturbed_0`, `perturbed_1`, ...), `options` (each of extra `options`: the one
    whose index is extra `gold` as `answer`, others whose index is in extra `right` as `right_1`, ..., the rest as
    `option_0`, `option_1`, ... by their own index)."""
    generate: bool = False
    """Whether greedy answers are generated."""
    stats: bool = False
    """Whether rank, mu and var are stored for the `answer` variant (Min-K++)."""
    max_new_tokens: int | None = None
    """Limit of a greedy answer; None: the suite's."""
    scoring: Scoring = Scoring()
    """How greedy answers are scored."""


@dataclass(frozen=True, eq=False)
class Tables:
    """The stored passes of one model on one suite; iterates over the two that every evaluation has."""

    trace: pa.Table
    generations: pa.Table
    samples: pa.Table | None = None
    """Sampled answers; None where none were asked for."""
    gradients: pa.Table | None = None
    """Gradient norms; None where none were asked for."""
    gibberish: pa.Table | None = None
    """What a classifier makes of greedy answers; None where none was asked."""
    perplexity: pa.Table | None = None
    """What another language model makes of them; None where none was asked."""
    harness: pa.Table | None = None
    """What lm-evaluation-harness found; None where it did not run."""

    def __iter__(self) -> Iterator[pa.Table]:
        """Trace and generations."""
        return iter((self.trace, self.generations))


@dataclass(frozen=True, eq=False)
class RowValues:
    """What a score is the mean of: one number per row of one split."""

    split: str
    row: Array
    """(R,) row numbers."""
    values: Array
    """(R,) in the order of `row`."""
    valid: Array
    """(R,) bool; False where the row has nothing to measure and did not enter the mean."""

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same rows with the same values."""
        if not isinstance(other, RowValues):
            return NotImplemented
        same = np.array_equal(self.row, other.row) and np.array_equal(self.valid, other.valid)
        return same and self.split == other.split and np.array_equal(self.values, other.values, equal_nan=True)

    def __hash__(self) -> int:
        """By its split and size; equal ones have both."""
        return hash((self.split, len(self.row)))


class Measured(NamedTuple):
    """What a suite's metrics gave."""

    scores: dict[str, Score]
    skipped: dict[str, str]
    """Metric name -> why it is absent (`forget_quality`: no --reference given)."""
    rows: Mapping[str, RowValues] = MappingProxyType({})
    """Metric name -> its rows, of each score that is a mean over the rows of one split. An AUC is one as well: of the
    share of the other split's rows that a row scores above. Of a perplexity, which is a mean of its tokens, the rows'
    own."""


Measure = Callable[..., Measured]
Passes = Callable[[Any, Callable[[dict[str, Any]], None]], Tables]
"""An `expunge.evals.passes.Subject`, and what receives one dict per event -> its tables."""


@dataclass(frozen=True)
class Suite:
    """A benchmark: its splits and its metrics."""

    name: str
    splits: tuple[Split, ...]
    measure: Measure
    """`measure(tables, *, reference: Tables | None, profile, allow_missing: bool) -> Measured`; torch-free. One that
    has a parameter `start: Tables | None` gets the passes of the starting model, which must be over the same rows."""
    max_new_tokens: int = 200
    template: str | None = None
    """A template the suite insists on unless the command names one; None: the run's own."""
    options: Mapping[str, str] | None = None
    """Resolved settings, for the manifest and the cache key."""
    profiles: tuple[Profile, ...] = PROFILES
    """Whose definitions `measure` knows."""
    membership: tuple[str, str] = ("forget", "holdout")
    """Splits that membership attacks compare: rows a model may have been trained on, and rows none was."""
    passes: Passes | None = None
    """Makes the tables by itself, in place of our trace and generations; in one process."""
