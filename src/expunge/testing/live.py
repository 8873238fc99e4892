"""The starting model asked anew about every micro-batch: what a reference table saves, and must agree with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch

from expunge.data.collate import Batch
from expunge.losses.eua import eua_margins
from expunge.models.load import autocast
from expunge.models.reference import Reference, ReferenceValues
from expunge.models.reference_table import ReferenceTable
from expunge.models.score import Scored, score
from expunge.train.engine import TrainingData


class LiveReference(NamedTuple):
    """A second model in memory, in the place of a table.

    Args:
        model: the starting model, which nobody trains.
        references: what is asked of it.
    """

    model: Any
    references: tuple[Reference, ...]

    def values(self, batch: Batch) -> ReferenceValues:
        """See `ReferenceTable.values`."""
        layer = next((item.layer for item in self.references if item.kind == "block"), None)
        with torch.no_grad(), autocast(batch.input_ids.device):
            scored = score(self.model, batch, hidden=layer)
            return ReferenceValues(**dict(_value(item, scored) for item in self.references))


def _value(item: Reference, scored: Scored) -> tuple[str, Any]:
    if item.kind == "seq_logp":
        return "seq_logp", scored.seq_logps
    if item.kind == "token_logp":
        return "token_logp", scored.logps
    if item.kind == "hidden":
        return "distribution", scored.logits
    if item.kind == "block":
        return "block", scored.hidden
    margins = eua_margins(
        scored.logits,
        ratio=item.ratio,
        temperature=item.temperature,
        fill=item.fill,
        leading_temperature=item.leading_temperature,
    )
    return "eua_margin", margins


def with_live_references(
    data: TrainingData, model: Any, references: Mapping[str, tuple[Reference, ...]]
) -> TrainingData:
    """The same rows, with `model` in the place of every table."""
    live = {name: LiveReference(model, references[name]) for name in data.tables if references.get(name)}
    return replace(data, tables=cast(Mapping[str, ReferenceTable], live))
