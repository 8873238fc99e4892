"""What a foreign log says, row by row, on its way into the tables of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from expunge.data.benchmarks.tofu import ROWS_PER_AUTHOR
from expunge.evals.suite import Tables
from expunge.runs.tables import GENERATIONS, VALUES

ANSWER, PARAPHRASE, PERTURBED = "answer", "paraphrase", "perturbed_"
BY_AUTHOR = ("forget", "retain", "holdout")
"""Splits of TOFU whose rows come author by author."""
_PLACE = ["split", "row", "variant", "id", "group"]


class LogTables(NamedTuple):
    """A log as it is stored."""

    values: pa.Table
    """Rows of `expunge.runs.tables.VALUES`."""
    generations: pa.Table
    """Rows of `expunge.runs.tables.GENERATIONS`."""

    def texts(self) -> Tables:
        """What was asked, true and answered, in the columns of an evaluation; null where the log has no text."""
        said = {(row["split"], row["row"]): row for row in self.generations.to_pylist()}
        asked = self.values.filter(pc.equal(self.values["variant"], ANSWER)).select(_PLACE)
        found = [said.get((row["split"], row["row"]), {}) for row in asked.select(["split", "row"]).to_pylist()]
        for column, logged in (("prompt", "prompt"), ("target", "reference")):
            asked = asked.append_column(column, pa.array([row.get(logged) for row in found], pa.string()))
        return Tables(asked, self.generations)


class Generated(NamedTuple):
    """What a log says of one generated answer."""

    prompt: str | None
    reference: str | None
    output: str | None
    rouge: Mapping[str, float]
    """`rouge1_recall`, `rougeL_recall`, `rougeL_f1`, as far as they were logged."""


@dataclass
class LogRows:
    """Values by split, row and variant, in the order in which they were read."""

    authors: bool = False
    """Whether twenty rows in a row are about one author, as in TOFU; intervals then draw authors."""
    _losses: dict[tuple[str, int, str], float | None] = field(default_factory=dict)
    _scores: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    _answers: dict[tuple[str, int], Generated] = field(default_factory=dict)

    def loss(self, split: str, variant: str, values: Mapping[int, float]) -> None:
        """Average losses of one text of each row, in nats per token."""
        for row, value in values.items():
            self._row(split, row)
            self._losses[split, row, variant] = value

    def perturbed(self, split: str, values: Mapping[int, Sequence[float]]) -> None:
        """Average losses of the wrong answers of each row."""
        for row, losses in values.items():
            self._row(split, row)
            for number, value in enumerate(losses):
                self._losses[split, row, f"{PERTURBED}{number}"] = value

    def score(self, split: str, name: str, values: Mapping[int, float]) -> None:
        """A score of each row, under the log's own name."""
        for row, value in values.items():
            self._row(split, row)
            self._scores.setdefault((split, row), {})[name] = value

    def generated(self, split: str, answers: Mapping[int, Generated]) -> None:
        """What was generated for each row."""
        for row, answer in answers.items():
            self._row(split, row)
            self._answers[split, row] = answer

    def rows(self) -> dict[str, list[int]]:
        """The rows of each split."""
        found: dict[str, list[int]] = {}
        for split, row, variant in self._losses:
            if variant == ANSWER:
                found.setdefault(split, []).append(row)
        return {split: sorted(rows) for split, rows in found.items()}

    def unanswered(self, split: str) -> list[int]:
        """Rows without a generated answer in a split that has some for others."""
        rows = self.rows().get(split, [])
        lacking = [row for row in rows if (split, row) not in self._answers]
        return lacking if len(lacking) < len(rows) else []

    def tables(self) -> LogTables:
        """Both tables, every row once."""
        values = [
            self._place(split, row)
            | {
                "variant": variant,
                "loss": loss,
                "scores": list(self._scores.get((split, row), {}).items()) if variant == ANSWER else [],
            }
            for (split, row, variant), loss in self._losses.items()
        ]
        answers = [
            self._place(split, row)
            | {"prompt": answer.prompt, "reference": answer.reference, "output": answer.output}
            | dict(answer.rouge)
            for (split, row), answer in self._answers.items()
        ]
        return LogTables(pa.Table.from_pylist(values, schema=VALUES), pa.Table.from_pylist(answers, schema=GENERATIONS))

    def _row(self, split: str, row: int) -> None:
        """Every row has an answer, whether or not its loss was logged."""
        self._losses.setdefault((split, row, ANSWER), None)

    def _place(self, split: str, row: int) -> dict[str, Any]:
        author = self.authors and split in BY_AUTHOR
        group = f"{split} author {row // ROWS_PER_AUTHOR}" if author else None
        return {"split": split, "row": row, "id": f"{split}:{row}", "group": group}


@dataclass(frozen=True)
class Log:
    """One log, read."""

    suite: str
    profile: str
    """Whose definitions it was made with, and its metrics' names."""
    rows: LogRows
    summary: Mapping[str, float]
    """The log's own aggregates."""
    alone: Mapping[str, float] = field(default_factory=dict)
    """Aggregates whose rows the log does not hold: they can be reported, not computed again."""
    unread: tuple[str, ...] = ()
    """Metrics of the log that this version does not know how to aggregate."""
