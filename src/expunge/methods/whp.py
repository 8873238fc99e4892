"""WHP (Who's Harry Potter): train on what a model would say of the text had it never read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.data.collate import pack
from expunge.data.encode import Dataset
from expunge.errors import DataError, UsageError
from expunge.losses.kl import kl_loss
from expunge.losses.whp import Difference, generic_logits, whp_loss
from expunge.methods.anchors import Aligned, align, translated
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import RetainingMethod
from expunge.methods.workshop import Provision, Workshop
from expunge.models.decode import lowest_argmax
from expunge.models.head import Projected
from expunge.models.reference import rows_of

LABELS, LOGITS = "whp_labels", "whp_logits"
_FLOAT32 = 4


class WHP(RetainingMethod):
    """`L = gamma TOKEN_MEAN_f(-log p_t(g_t)) + alpha L_retain`, g_t the token a model without the text would say.

    `g = argmax v_base(u') - strength relu(v_reinforced(u) - v_base(u))`, u' the text u with its anchors replaced by
    generic names, the reinforced model a copy of the starting one trained on the forget rows further. Labels are made
    once. Positions inside an anchor have none, and the mean is over those that have one.
    """

    name: ClassVar[str] = "whp"
    paper: ClassVar[str] = "Eldan and Russinovich, Who's Harry Potter?, arXiv 2310.02238"

    alpha: float = Field(default=0.0, ge=0)
    """Weight of the retain term (authors: none)."""
    strength: float = Field(default=5.0, ge=0)
    """How far what reinforcement raised is lowered (the authors' alpha: 5); 0: the starting model's own predictions."""
    difference: Difference = "centred"
    """Of what reinforcement raised: logits less their mean over the vocabulary (ours), log-probabilities, which hardly
    rise where the starting model is certain, or `raw` logits (the printed formula), which depend on a constant that
    changes nothing a model says."""
    labels: Literal["hard", "soft"] = "hard"
    """The likeliest generic token (authors), or the whole distribution by KL divergence, which is kept in a table."""
    reinforced_learning_rate: float = Field(default=3e-6, gt=0)
    """AdamW's, for the reinforced model (authors: 3e-6); a tiny model needs what it was trained with."""
    reinforced_epochs: float = Field(default=3, gt=0)
    """Passes over the forget rows for the reinforced model (authors: 3)."""
    reinforced_batch_size: int | None = Field(default=None, ge=1)
    """Rows per step for the reinforced model (authors: 8); the run's own unless said."""
    anchors: dict[str, str] = Field(default={})
    """Expression -> generic one: `{Mira Solen: Anna Berg}`, whole words. Without any, both texts are the same."""
    repeat_penalty: float = Field(default=5.0, ge=0)
    """Subtracted from a generic name's first token once its anchor has been named, so that nothing is renamed (another
    implementation: 5)."""
    max_table_gb: float = Field(default=2.0, gt=0)
    """For `soft` labels, 4 bytes per answer token and vocabulary entry: above this size it is refused."""

    @model_validator(mode="after")
    def _usable_anchors(self) -> Self:
        empty = [anchor for anchor in self.anchors if not anchor.strip()]
        same = [anchor for anchor, generic in self.anchors.items() if anchor == generic or not generic.strip()]
        if empty or same:
            raise ValueError(f"anchors: {(empty or same)[0]!r} has no generic expression that differs from it")
        return self

    def needs(self) -> Needs:
        """As any forget/retain method; with anchors, how many positions of the step have a label."""
        return replace(super().needs(), totals="reference" if self.anchors else None)

    def totals(self, ctx: Context) -> dict[str, Tensor]:
        """`labelled`: forget positions outside anchors."""
        if ctx.role != "forget":
            return {}
        return {"labelled": (ctx.ref.own[LABELS] >= 0).sum()}

    def forget_term(self, ctx: Context) -> Term:
        """Cross entropy with (or divergence from) the generic predictions."""
        labels = ctx.ref.own[LABELS]
        if self.labels == "hard":
            values = ctx.scored.per_position(lambda logits, _, label: whp_loss(logits, label), labels)
        else:
            generic = rows_of(ctx.ref.own, LOGITS)
            values = ctx.scored.per_position(lambda logits, _, said: kl_loss(logits, said), generic)
            values = torch.where(labels >= 0, values, 0.0)
        if not self.anchors:
            return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)
        share = values / max(ctx.totals["labelled"], 1)
        return Term(share, unit="token", reduction="sum", weight=self.gamma)

    def prepare(self, workshop: Workshop) -> Provision:
        """Train the reinforced model and make the labels.

        Raises:
            UsageError: soft labels larger than `max_table_gb`.
            DataError: no forget row has an anchor, or none of their positions is left.
        """
        dataset = workshop.datasets["forget"]
        width = int(workshop.model.get_output_embeddings().weight.shape[0])
        self._require_small(dataset, width)
        workshop.note("whp: a copy of the starting model is trained on the forget rows (the reinforced model)")
        reinforced = workshop.fine_tuned(
            dataset,
            learning_rate=self.reinforced_learning_rate,
            epochs=self.reinforced_epochs,
            batch_size=self.reinforced_batch_size,
        )
        made = self._tables(workshop, dataset, reinforced)
        self._say(workshop, made)
        tables = {LABELS: np.concatenate(made.labels)}
        if self.labels == "soft":
            tables[LOGITS] = np.concatenate(made.logits)
        return Provision(tables={"forget": tables})

    def _tables(self, workshop: Workshop, dataset: Dataset, reinforced: Any) -> _Made:
        generic = self._generic(workshop, dataset) if self.anchors else None
        size = len(dataset.encoded)
        made = _Made([np.zeros(0, np.int64)] * size, [np.zeros((0, 0), np.float32)] * size, [0] * size)
        for rows in pack(dataset.lengths(), workshop.token_budget):
            part = _some(dataset, rows)
            start, raised = _by_row(workshop, part, None), _by_row(workshop, part, reinforced)
            other = _by_row(workshop, _some(generic.dataset, rows), None, every=True) if generic else iter(())
            for row, base, theirs in zip(rows, start, raised, strict=True):
                predicts = np.flatnonzero(dataset.encoded[row].supervised) - 1
                kept = np.ones(len(predicts), dtype=bool)
                moved = None
                if generic:
                    aligned = generic.aligned[row]
                    at = [aligned.places[position] for position in predicts]
                    kept = np.array([where is not None for where in at])
                    moved = next(other)[[where or 0 for where in at]].to(torch.float32)
                    for line, position in enumerate(predicts):
                        moved[line, sorted(aligned.repeated[position])] -= self.repeat_penalty
                logits = generic_logits(
                    base, theirs, strength=self.strength, translated=moved, difference=self.difference
                )
                labels = lowest_argmax(logits)
                made.labels[row] = np.where(kept, labels.cpu().numpy(), -1)
                made.changed[row] = int(((labels != lowest_argmax(base)).cpu().numpy() & kept).sum())
                if self.labels == "soft":
                    made.logits[row] = logits.float().cpu().numpy()
        return made

    def _generic(self, workshop: Workshop, dataset: Dataset) -> _Generic:
        """The forget rows with their anchors replaced, aligned."""
        other = workshop.encode([translated(example, self.anchors) for example in dataset.examples], "generic")
        if len(other.encoded) != len(dataset.encoded):
            raise DataError(
                f"{len(dataset.encoded)} forget rows become {len(other.encoded)} when their anchors are replaced",
                hint="long raw texts are cut elsewhere then: split them into rows yourself, or raise data.max_length",
            )
        aligned = [
            align(workshop.tokenizer, one.input_ids.tolist(), two.input_ids.tolist(), self.anchors, row=example.row)
            for example, one, two in zip(dataset.examples, dataset.encoded, other.encoded, strict=True)
        ]
        if not any(None in each.places for each in aligned):
            raise DataError(
                f"no forget row mentions any of the {len(self.anchors)} anchors",
                hint="anchors are whole words, spelled as in the rows (upper and lower case too)",
            )
        return _Generic(other, aligned)

    def _say(self, workshop: Workshop, made: _Made) -> None:
        labels = np.concatenate(made.labels)
        kept, changed = int((labels >= 0).sum()), sum(made.changed)
        if not kept:
            raise DataError("every answer position lies inside an anchor", hint="use fewer or shorter anchors")
        advice = "" if changed else "; none: raise method.reinforced_learning_rate or method.strength"
        workshop.note(
            f"whp: {kept} labels for {len(labels)} answer positions ({len(labels) - kept} lie inside anchors); "
            f"{changed} are not what the starting model says{advice}"
        )

    def _require_small(self, dataset: Dataset, width: int) -> None:
        size = int(dataset.supervised().sum()) * width * _FLOAT32 / 1e9
        if self.labels == "soft" and size > self.max_table_gb:
            raise UsageError(
                f"whp keeps {size:.3g} GB of soft labels, and method.max_table_gb is {self.max_table_gb:g}",
                hint="use method.labels=hard, fewer rows, or raise the limit",
            )


class _Generic(NamedTuple):
    dataset: Dataset
    aligned: list[Aligned]


class _Made(NamedTuple):
    """Per row."""

    labels: list[np.ndarray]
    logits: list[np.ndarray]
    changed: list[int]


def _some(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    return replace(
        dataset,
        examples=tuple(dataset.examples[row] for row in rows),
        encoded=tuple(dataset.encoded[row] for row in rows),
    )


def _by_row(workshop: Workshop, dataset: Dataset, model: Any, *, every: bool = False) -> Iterator[Tensor]:
    """(positions, V) logits of each row in order: those that predict an answer token, or of every token.

    Where they are large, those of one row at a time are made.
    """
    found: dict[int, Tensor | Projected] = {}
    for batch, scored in workshop.passes(dataset, model=model, positions="attended" if every else "predict"):
        for place, row in enumerate(batch.rows.tolist()):
            own, held = scored.row == place, scored.distribution
            found[row] = held.at(own) if isinstance(held, Projected) else held[own]
    return (found.pop(row)[:] for row in range(len(dataset.encoded)))
