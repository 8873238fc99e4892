"""One split of the two tables as arrays: rows in order, the texts of each row side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expunge.errors import MetricError
from expunge.metrics.bootstrap import draw_weights
from expunge.metrics.estimate import Column
from expunge.metrics.leak import tempered_logp
from expunge.metrics.leak_names import Cell
from expunge.metrics.probability import mean_loss
from expunge.metrics.ragged import Array, Ragged, Span, span_mask
from expunge.metrics.temperatures import lse_column, temperatures_of

PERTURBED = "perturbed_"


@dataclass(frozen=True)
class SplitView:
    """One split of a trace, of its generations and of what else was measured on it.

    Every `(R,)` result is in the order of `row`, whatever the order of the tables.
    """

    split: str
    trace: pa.Table
    """The split's T texts."""
    generations: pa.Table | None
    """The split's greedy answers in the order of `row`; None where none were generated."""
    row: Array
    """(R,) row numbers, increasing."""
    answer: Array
    """(R,) index of each row's answer in `trace`."""
    paraphrase: Array | None
    """(R,) index of each row's paraphrase, -1 where a row lacks one; None where every row does."""
    perturbed: Ragged
    """R rows of indices of the perturbed answers, in order of their number."""
    samples: pa.Table | None = None
    """The split's sampled answers in the order of `row`; None where none were sampled."""
    gradients: pa.Table | None = None
    """The split's gradient norms in the order of `row`; None where none were measured."""
    gibberish: pa.Table | None = None
    """What a classifier makes of the split's greedy answers, in the order of `row`; None where none was asked."""
    perplexity: pa.Table | None = None
    """What another language model makes of them, in the order of `row`; None where none was asked."""

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def groups(self) -> list[str | None]:
        """(R,) person, author or document of each row."""
        return list(self.trace["group"].take(pa.array(self.answer)).to_pylist())

    @cached_property
    def weights(self) -> Array | None:
        """(draws, R) bootstrap weights, shared by every metric of the split."""
        return draw_weights(self.groups, label=self.split)

    @cached_property
    def logp(self) -> Ragged:
        """T rows of token log-probabilities."""
        return self._numbers("logp")

    @cached_property
    def is_end(self) -> Ragged:
        """T rows: True on the end token."""
        return Ragged.from_arrow(self.trace["is_end"])

    @cached_property
    def losses(self) -> Array:
        """(T,) average loss of each text over all its tokens; NaN for a text without tokens."""
        return mean_loss(self.logp)

    @property
    def loss(self) -> Array:
        """(R,) average loss of the answers."""
        return np.asarray(self.losses[self.answer])

    @property
    def right_loss(self) -> Array:
        """(R,) average loss of the paraphrase, or of the answer in a split without paraphrases."""
        if self.paraphrase is None:
            return self.loss
        return np.where(self.paraphrase >= 0, self.losses[self.paraphrase], np.nan)

    @property
    def wrong_losses(self) -> Ragged:
        """R rows of the average losses of the perturbed answers."""
        return self.perturbed.with_values(self.losses[self.perturbed.values])

    def answers(self, column: str, span: Span) -> Ragged:
        """R rows of a per-token column of the answers, restricted to a span.

        Raises:
            MetricError: the column was not stored for this split, or holds a NaN.
        """
        entries = self._numbers(column) if column != "hit" else Ragged.from_arrow(self.trace["hit"])
        if (entries.lengths[self.answer] != self.is_end.lengths[self.answer]).any():
            raise MetricError(
                f"{self.split}: {column!r} was not stored for every answer token",
                hint="it is stored for splits that ask for membership statistics; evaluate again",
            )
        ends = self.is_end.take(self.answer)
        return entries.take(self.answer).select(span_mask(ends, span))

    def stores(self, column: str) -> bool:
        """Whether a per-token column was stored for the answers."""
        return bool(self.trace[column].take(pa.array(self.answer)).null_count == 0)

    @cached_property
    def temperatures(self) -> list[float]:
        """Those besides 1 at which log-sum-exps were stored, in the order of the table."""
        return temperatures_of(self.trace.column_names)

    def lse_at(self, temperature: float) -> Ragged:
        """R rows of `logsumexp(z / T)` at the answers' tokens, end token included; T is 1 or one of `temperatures`."""
        return self.answers("lse" if temperature == 1 else lse_column(temperature), "with_eos")

    def logp_at(self, temperature: float) -> Ragged:
        """R rows of token log-probabilities at a temperature, end token included; T is 1 or one of `temperatures`."""
        logp = self.answers("logp", "with_eos")
        if temperature == 1:
            return logp
        return tempered_logp(logp, self.lse_at(1), self.lse_at(temperature), temperature=temperature)

    @cached_property
    def characters(self) -> Array | None:
        """(T,) characters of each text; None where they were not stored."""
        column = self.trace["target_chars"] if "target_chars" in self.trace.column_names else None
        if column is None or column.null_count:
            return None
        return np.asarray(column.to_numpy(), dtype=np.float64)

    def zlib_bytes(self) -> Array:
        """(R,) compressed size of each answer."""
        return np.asarray(self.trace["target_zlib"].to_numpy()[self.answer], dtype=np.float64)

    @property
    def recorded(self) -> Mapping[str, Array] | None:
        """Scores that other software wrote down for each row; None for a trace, from which they are computed."""
        return None

    def generated(self, column: str) -> Array:
        """(R,) a number per greedy answer.

        Raises:
            MetricError: the split was not generated.
        """
        if self.generations is None:
            raise MetricError(f"{self.split}: no answers were generated", hint="evaluate again")
        return np.asarray(self.generations[column].to_numpy(zero_copy_only=False), dtype=np.float64)

    @cached_property
    def cells(self) -> list[Cell]:
        """The settings that answers were sampled with, in the order of the table."""
        if self.samples is None:
            return []
        found = zip(self.samples["temperature"].to_pylist(), self.samples["top_p"].to_pylist(), strict=True)
        return [Cell(*pair) for pair in dict.fromkeys(found)]

    def sampled(self, column: str, cell: Cell) -> Ragged:
        """R rows of a number per answer that was sampled with these settings.

        Raises:
            MetricError: none was, or the column is empty.
        """
        if self.samples is None or cell not in self.cells:
            raise MetricError(f"{self.split}: no answers were sampled", hint="evaluate with --samples N")
        mine = pc.and_(
            pc.equal(self.samples["temperature"], cell.temperature), pc.equal(self.samples["top_p"], cell.top_p)
        )
        table = self.samples.filter(mine)
        if table[column].null_count:
            raise MetricError(f"{self.split}: {column!r} was not stored for every sampled answer", hint="sample again")
        rows = table["row"].to_numpy()
        values = np.asarray(table[column].to_numpy(zero_copy_only=False), dtype=np.float64)
        return Ragged.from_lengths(values, np.searchsorted(rows, self.row, "right") - np.searchsorted(rows, self.row))

    def gradient(self, column: str) -> Array:
        """(R,) a norm of each answer's gradient; NaN where the answer has no token to measure.

        Raises:
            MetricError: none was measured.
        """
        if self.gradients is None:
            raise MetricError(f"{self.split}: no gradient norms were measured", hint="evaluate with --gradnorm")
        return np.asarray(self.gradients[column].to_numpy(), dtype=np.float64)

    def clean(self) -> Array:
        """(R,) probability of each greedy answer to be no gibberish; NaN for one without a token.

        Raises:
            MetricError: no classifier was asked.
        """
        if self.gibberish is None:
            raise MetricError(f"{self.split}: no classifier judged the answers", hint="evaluate with --gibberish MODEL")
        return np.asarray(self.gibberish["clean"].to_numpy(), dtype=np.float64)

    def judged_logp(self) -> Ragged:
        """R rows of the log-probabilities that another language model gives the tokens of each greedy answer.

        Raises:
            MetricError: none was asked.
        """
        if self.perplexity is None:
            raise MetricError(
                f"{self.split}: no model judged the answers", hint="evaluate with --perplexity-model MODEL"
            )
        return Ragged.from_arrow(self.perplexity["logp"])

    def answer_score(self, name: str) -> Array:
        """(R,) one of the numbers stored of each greedy answer beside ROUGE; NaN where there is nothing to measure.

        Raises:
            MetricError: the split was not generated, or that number not stored.
        """
        if self.generations is None:
            raise MetricError(f"{self.split}: no answers were generated", hint="evaluate again")
        if not self.stores_answer_score(name):
            raise MetricError(
                f"{self.split}: {name!r} was not stored for every answer", hint="evaluate again with --overwrite"
            )
        return np.array([scores[name] for scores in self._answer_scores], dtype=np.float64)

    def stores_answer_score(self, name: str) -> bool:
        """Whether one of those numbers was stored for every answer."""
        return len(self._answer_scores) == len(self) and all(name in scores for scores in self._answer_scores)

    @cached_property
    def _answer_scores(self) -> list[dict[str, float | None]]:
        """Those numbers of the answers that have any; None where an answer has nothing to measure."""
        if self.generations is None or "scores" not in self.generations.column_names:
            return []
        stored = self.generations["scores"].to_pylist()
        return [dict(scores) for scores in stored if scores is not None]

    def column(self, values: Array, *, valid: Array | None = None, intervals: bool = True) -> Column:
        """Per-row values with what is needed to summarise them; NaN marks a row without anything to measure."""
        keep = ~np.isnan(values) if valid is None else valid
        return Column(values, keep, self.weights if intervals else None, self.row.tolist())

    def _numbers(self, name: str) -> Ragged:
        """A float list column, every entry finite, so that a NaN downstream can only mean an empty span."""
        found = Ragged.from_arrow(self.trace[name])
        bad = np.unique(found.row[~np.isfinite(found.values)])
        if len(bad):
            rows = sorted(set(self.trace["row"].to_numpy()[bad].tolist()))
            raise MetricError(
                f"{self.split}: {name!r} is not finite in {len(rows)} of {len(self)} rows"
                f" (rows {', '.join(map(str, rows[:10]))}{', ...' if len(rows) > 10 else ''})",
                hint="the model gives NaN or infinite logits there; check its weights and dtype",
            )
        return found


def split_names(trace: pa.Table) -> list[str]:
    """The splits of a trace, in order of appearance."""
    return list(pc.unique(trace["split"]).to_pylist())


def view_split(
    trace: pa.Table,
    generations: pa.Table,
    split: str,
    *,
    first: int | None = None,
    samples: pa.Table | None = None,
    gradients: pa.Table | None = None,
    gibberish: pa.Table | None = None,
    perplexity: pa.Table | None = None,
) -> SplitView:
    """Lay out one split.

    Args:
        trace: rows of `expunge.runs.tables.TRACE`, in any order.
        generations: rows of `expunge.runs.tables.GENERATIONS`, in any order.
        split: which split.
        first: only rows numbered below this; None: all.
        samples: rows of `expunge.runs.tables.SAMPLES`, in any order; None: there are none.
        gradients: rows of `expunge.runs.tables.GRADIENTS`, in any order; None: there are none.
        gibberish: rows of `expunge.runs.tables.GIBBERISH`, in any order; None: there are none.
        perplexity: rows of `expunge.runs.tables.PERPLEXITY`, in any order; None: there are none.

    Raises:
        MetricError: the split is not in the trace, a text or an id is there twice, or a row lacks its answer or what
            another table holds of the rest: pairing rows by position would then compare different rows.
    """
    texts = _rows_of(trace, split, first)
    if texts.num_rows == 0:
        raise MetricError(f"the trace has no rows of split {split!r}", hint=f"it has: {', '.join(split_names(trace))}")
    variants = texts["variant"].to_pylist()
    rows = texts["row"].to_numpy()
    at = {key: index for index, key in enumerate(zip(rows.tolist(), variants, strict=True))}
    if len(at) < len(variants):
        raise MetricError(f"{split}: {len(variants) - len(at)} texts are in the trace twice", hint="evaluate again")
    row = np.unique(rows)
    if missing := [int(r) for r in row if (int(r), "answer") not in at]:
        raise MetricError(f"{split}: no answer was traced for rows {_list(missing)}", hint="evaluate again")
    answer = np.array([at[int(r), "answer"] for r in row])
    _check_ids(split, texts["id"].take(pa.array(answer)).to_pylist())
    paraphrase = np.array([at.get((int(r), "paraphrase"), -1) for r in row])
    return SplitView(
        split=split,
        trace=texts,
        generations=_beside(generations, split, first, row, made="generated"),
        row=row,
        answer=answer,
        paraphrase=paraphrase if (paraphrase >= 0).any() else None,
        perturbed=_perturbed(at, row),
        samples=_beside(samples, split, first, row, made="sampled"),
        gradients=_beside(gradients, split, first, row, made="differentiated"),
        gibberish=_beside(gibberish, split, first, row, made="judged"),
        perplexity=_beside(perplexity, split, first, row, made="judged"),
    )


def _rows_of(table: pa.Table, split: str, first: int | None) -> pa.Table:
    mask = pc.equal(table["split"], split)
    if first is not None:
        mask = pc.and_(mask, pc.less(table["row"], first))
    return table.filter(mask).combine_chunks()


def _perturbed(at: dict[tuple[int, str], int], row: Array) -> Ragged:
    position = {int(r): index for index, r in enumerate(row)}
    found = sorted(
        (position[r], int(variant.removeprefix(PERTURBED)), index)
        for (r, variant), index in at.items()
        if variant.startswith(PERTURBED)
    )
    lengths = np.bincount(np.array([entry[0] for entry in found], dtype=np.int64), minlength=len(row))
    return Ragged.from_lengths(np.array([entry[2] for entry in found], dtype=np.int64), lengths)


def _beside(table: pa.Table | None, split: str, first: int | None, row: Array, *, made: str) -> pa.Table | None:
    """A split's rows of another table, in order; None where it has none. `made` says what happened to each row."""
    found = None if table is None else _rows_of(table, split, first)
    if found is None or found.num_rows == 0:
        return None
    keys = [name for name in ("row", "temperature", "top_p", "sample") if name in found.column_names]
    if found.group_by(keys).aggregate([]).num_rows < found.num_rows:
        raise MetricError(f"{split}: a row was {made} twice", hint="evaluate again")
    found = found.sort_by([(name, "ascending") for name in keys])
    have = found["row"].to_numpy()
    if not np.array_equal(np.unique(have), row):
        odd = sorted(set(row.tolist()) ^ set(have.tolist()))
        raise MetricError(f"{split}: rows {_list(odd)} are in only one of the two tables", hint="evaluate again")
    return found


def _check_ids(split: str, ids: list[str]) -> None:
    if len(set(ids)) < len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})
        raise MetricError(f"{split}: {len(twice)} ids belong to several rows ({_list(twice)})", hint="make ids unique")


def _list(items: list[int] | list[str], *, most: int = 10) -> str:
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")
