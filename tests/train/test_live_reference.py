"""Steps with the starting model's table are the steps with a second model in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from small_world import SMALL

from expunge.catalog import METHODS
from expunge.data.collate import Batch
from expunge.losses.eua import eua_margins
from expunge.models.reference import Reference, ReferenceValues
from expunge.models.score import Scored, score
from expunge.train.engine import Engine, TrainingData
from expunge.train.monitor import VOLATILE


class LiveReference(NamedTuple):
    """What a table stands for: the starting model, asked about every micro-batch anew."""

    model: Any
    references: tuple[Reference, ...]

    def values(self, batch: Batch) -> ReferenceValues:
        layer = next((item.layer for item in self.references if item.kind == "block"), None)
        with torch.no_grad():
            scored = score(self.model, batch, hidden=layer)
        return ReferenceValues(**dict(self._value(item, scored) for item in self.references))

    def _value(self, item: Reference, scored: Scored) -> tuple[str, Any]:
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


def with_live_reference(engine: Engine) -> Engine:
    start = copy.deepcopy(engine.model).requires_grad_(False)
    data = engine.data
    live: Any = {
        name: LiveReference(start, engine.needs.references[name])
        for name in data.tables
        if engine.needs.references.get(name)
    }
    engine.use(TrainingData(data.datasets, data.links, live, data.pad_id, data.constants))
    return engine


def steps(engine: Engine) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append)
    left_out = VOLATILE | {"event"}
    return [{key: value for key, value in event.items() if key not in left_out} for event in events]


CASES = (
    ("npo", {}, {"seq_logp"}),
    ("npo", {"retain": "kl"}, {"seq_logp", "hidden"}),
    ("tnpo", {}, {"token_logp"}),
    ("eua", {}, {"eua_margin"}),
    ("kl_min", {}, {"hidden"}),
    ("undial", {}, {"hidden"}),
    ("rmu", {}, {"block"}),
)


@pytest.mark.parametrize(("name", "keys", "kinds"), CASES)
def test_a_table_stands_for_a_second_model(
    make_engine: Callable[..., Engine], name: str, keys: dict[str, Any], kinds: set[str]
) -> None:
    method = METHODS.load(name)(**{**SMALL.get(name, {}), **keys})
    stored, live = make_engine(method, steps=4), with_live_reference(make_engine(method, steps=4))
    asked = {item.kind for role in live.data.tables for item in live.needs.references[role]}
    assert asked == kinds
    for one, two in zip(steps(stored), steps(live), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    for key, value in stored.model.state_dict().items():
        torch.testing.assert_close(value, live.model.state_dict()[key], atol=2e-5, rtol=1e-4)
