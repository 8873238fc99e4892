"""What a suite is: the rows it needs traced and generated, and the metrics it reads off the tables. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa

from expunge.data.example import Example
from expunge.metrics.score import Score

Profile = Literal["canonical", "openunlearning", "tofu"]

TOTAL_LENGTH: Mapping[str, int] = {"tofu": 200}
"""Profile -> limit on the tokens of prompt and greedy answer together, where it has one."""


@dataclass(frozen=True)
class Split:
    """One set of rows of a suite and what is measured on it."""

    name: str
    """`forget`, `retain`, `real_authors`, `world_facts`, `holdout`, ...; the prefix of its metrics' names."""
    examples: tuple[Example, ...]
    variants: tuple[str, ...] = ("answer",)
    """What is traced for each row: `answer`, `paraphrase` (extra `paraphrased_answer`), `perturbed` (each of extra
    `perturbed_answer`, giving variants `perturbed_0`, `perturbed_1`, ...)."""
    generate: bool = False
    """Whether greedy answers are generated."""
    stats: bool = False
    """Whether rank, mu and var are stored for the `answer` variant (Min-K++)."""


class Tables(NamedTuple):
    """The stored passes of one model on one suite."""

    trace: pa.Table
    generations: pa.Table


class Measured(NamedTuple):
    """What a suite's metrics gave."""

    scores: dict[str, Score]
    skipped: dict[str, str]
    """Metric name -> why it is absent (`forget_quality`: no --reference given)."""


Measure = Callable[..., Measured]


@dataclass(frozen=True)
class Suite:
    """A benchmark: its splits and its metrics."""

    name: str
    splits: tuple[Split, ...]
    measure: Measure
    """`measure(tables, *, reference: Tables | None, profile, allow_missing: bool) -> Measured`; torch-free."""
    max_new_tokens: int = 200
    template: str | None = None
    """A template profile the suite insists on; None: the run's own."""
    options: Mapping[str, str] | None = None
    """Resolved settings, for the manifest and the cache key."""
