"""Operations on shapes become calls with numbers, of which the distinct ones are carried out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from expunge.testing.tiny import tiny_llama
from expunge.train.planning import stopwatch
from expunge.train.planning.shadow import OPTIMIZER, Ledger

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def operations_take_no_time() -> None:
    """Here they do."""


def step(ledger: Ledger) -> None:
    """One training step of a tiny model."""
    with torch.device("meta"):
        model: nn.Module = tiny_llama(300)
    ledger.adopt(model)
    ledger.vocab = 300
    ids = torch.arange(24).view(2, 12)
    optimizer = torch.optim.AdamW(model.parameters())
    with ledger:
        model(input_ids=ids, use_cache=False).logits.log_softmax(-1).mean().backward()
        ledger.label(OPTIMIZER)
        optimizer.step()
        ledger.label()


def test_every_operation_of_a_step_can_be_carried_out_on_numbers() -> None:
    ledger = Ledger()
    step(ledger)
    seconds = stopwatch.Stopwatch(CPU).seconds(ledger.operations)
    assert set(seconds) == {"activations", OPTIMIZER}
    assert 0 < seconds[OPTIMIZER] < seconds["activations"] < 1


def test_what_was_carried_out_twice_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def timed(work: Callable[[], Any], device: torch.device) -> float:
        asked.append(work())
        return 1.0

    monkeypatch.setattr(stopwatch, "_timed", timed)
    ledger = Ledger()
    with torch.device("meta"):
        layer = nn.Linear(8, 8)
    ledger.adopt(layer)
    with ledger, torch.no_grad():
        for _ in range(3):
            layer(layer(torch.zeros(4, 8)))
        layer(torch.zeros(5, 8))
    counts = ledger.operations.counts["activations"]
    products = {key: count for key, count in counts.items() if "addmm" in str(key)}
    assert sorted(products.values()) == [1, 6]
    watch = stopwatch.Stopwatch(CPU)
    for _ in range(2):
        assert watch.seconds(ledger.operations) == {"activations": sum(counts.values())}
        assert len(asked) == 2 + len(counts), "a product and a copy to estimate by, and each distinct operation once"


def test_what_takes_long_or_is_large_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "_pace", lambda device: stopwatch._Pace(flops=1e6, traffic=1e6))

    def refuse(*given: Any) -> None:
        raise AssertionError("carried out")

    found = stopwatch.Operations()
    found.add("x", stopwatch.Call(refuse, (torch.zeros(2),), {}, flops=2e6, traffic=500_000))
    found.add("x", stopwatch.Call(refuse, (torch.zeros(3),), {}, flops=0.0, traffic=3 << 30))
    assert stopwatch.Stopwatch(CPU).seconds(found) == {"x": pytest.approx(2.5 + (3 << 30) / 1e6)}


def test_what_cannot_be_carried_out_apart_from_its_step_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "_pace", lambda device: stopwatch._Pace(flops=1e9, traffic=1e9))
    found = stopwatch.Operations()
    places = torch.tensor([7])
    found.add("x", stopwatch.Call(torch.index_select, (torch.zeros(3), 0, places), {}, flops=0.0, traffic=2_000_000))
    assert stopwatch.Stopwatch(CPU).seconds(found) == {"x": 2e-3}


def test_numbers_stay_numbers_however_often_they_are_changed() -> None:
    shelf = stopwatch._Shelf(CPU)
    for dtype in (torch.float32, torch.bfloat16):
        like = stopwatch._Like((3, 4), (1, 3), dtype)
        first, second = shelf.take(like), shelf.take(like)
        assert (first.shape, first.stride(), first.dtype) == ((3, 4), (1, 3), dtype)
        assert first.data_ptr() != second.data_ptr()
        assert ((first > 0.85) & (first < 1.15)).all()
    assert not shelf.take(stopwatch._Like((5,), (1,), torch.int64)).any(), "places that every table has"
    spread = shelf.take(stopwatch._Like((4, 6), (0, 1), torch.float32))
    assert spread.stride() == (0, 1)
    whole = stopwatch._SHELF // 4
    assert shelf.take(stopwatch._Like((whole + 1,), (1,), torch.float32)).numel() == whole + 1
