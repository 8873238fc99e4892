"""Steps with the starting model's table are the steps with a second model in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_world import SMALL

from expunge.catalog import METHODS
from expunge.testing.live import with_live_references
from expunge.train.engine import Engine
from expunge.train.monitor import VOLATILE

CASES = (
    ("npo", {}, {"seq_logp"}),
    ("npo", {"retain": "kl"}, {"seq_logp", "hidden"}),
    ("tnpo", {}, {"token_logp"}),
    ("eua", {}, {"eua_margin"}),
    ("kl_min", {}, {"hidden"}),
    ("undial", {}, {"hidden"}),
    ("rmu", {}, {"block"}),
)


def steps(engine: Engine) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append)
    left_out = VOLATILE | {"event"}
    return [{key: value for key, value in event.items() if key not in left_out} for event in events]


@pytest.mark.parametrize(("name", "keys", "kinds"), CASES)
def test_a_table_stands_for_a_second_model(
    make_engine: Callable[..., Engine], name: str, keys: dict[str, Any], kinds: set[str]
) -> None:
    method = METHODS.load(name)(**{**SMALL.get(name, {}), **keys})
    stored, live = make_engine(method, steps=4), make_engine(method, steps=4)
    start = copy.deepcopy(live.model).requires_grad_(False)
    assert {item.kind for role in live.data.tables for item in live.needs.references[role]} == kinds
    live.use(with_live_references(live.data, start, live.needs.references))
    for one, two in zip(steps(stored), steps(live), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    for key, value in stored.model.state_dict().items():
        torch.testing.assert_close(value, live.model.state_dict()[key], atol=2e-5, rtol=1e-4)
