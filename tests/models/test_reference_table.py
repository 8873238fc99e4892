"""A cached reference says what the live model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.data.collate import collate
from expunge.data.encode import Dataset, encode_all
from expunge.data.example import Example, Turn
from expunge.data.template import build_template
from expunge.models.fingerprint import model_digest
from expunge.models.reference import Reference
from expunge.models.reference_table import ReferenceTable, reference_table
from expunge.models.score import score
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

KINDS = (
    Reference("seq_logp"),
    Reference("token_logp"),
    Reference("eua_margin", ratio=0.2, temperature=1.5),
    Reference("hidden"),
)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Dataset]:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    examples = [
        Example(
            f"x:{i}", i, turns=(Turn("user", "who? " * (1 + i % 4)), Turn("assistant", "Mira Solen " * (1 + i % 3)))
        )
        for i in range(9)
    ]
    dataset = encode_all(
        examples,
        build_template("auto", tokenizer),
        role="forget",
        max_length=128,
        on_truncate="error",
        supervise="last",
    )
    return tiny_llama(len(tokenizer), seed=5), dataset


def table(world: tuple[Any, Dataset], *, budget: int = 128, key: str | None = None) -> ReferenceTable:
    model, dataset = world
    return reference_table(
        model,
        dataset,
        KINDS,
        model_key=key or model_digest(model),
        pad_id=0,
        positions="predict",
        token_budget=budget,
    )


def test_cached_equals_live(world: tuple[Any, Dataset]) -> None:
    from expunge.losses.eua import eua_margins

    model, dataset = world
    built = table(world)
    for rows in ([3], [8, 0, 5], list(range(9))):
        batch = collate(dataset, rows, pad_id=0)
        with torch.no_grad():
            live = score(model, batch)
        values = built.values(batch)
        assert values.seq_logp is not None
        assert torch.allclose(values.seq_logp, live.seq_logps, atol=1e-4)
        assert values.token_logp is not None
        assert torch.allclose(values.token_logp, live.logps, atol=1e-5)
        assert values.logits is not None
        assert torch.allclose(values.logits, live.logits, atol=1e-5)
        margins = eua_margins(live.logits, ratio=0.2, temperature=1.5, fill="zero")
        assert values.eua_margin is not None
        assert torch.allclose(values.eua_margin, margins, atol=1e-5)


def test_the_second_run_reads_what_the_first_one_wrote(world: tuple[Any, Dataset]) -> None:
    first, second = table(world), table(world, budget=64)
    assert (first.cached, second.cached) == (False, True)
    for name, array in first.arrays.items():
        assert (array == second.arrays[name]).all(), name


def test_other_weights_are_another_table(world: tuple[Any, Dataset]) -> None:
    table(world)
    with torch.no_grad():
        next(world[0].parameters()).add_(0.1)
    assert not table(world).cached


def test_the_frozen_head_is_not_the_trained_one(world: tuple[Any, Dataset]) -> None:
    model, dataset = world
    built = table(world)
    batch = collate(dataset, [1, 2], pad_id=0)
    before = built.values(batch).logits
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    after = built.values(batch).logits
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)


def test_padding_does_not_change_a_row(world: tuple[Any, Dataset]) -> None:
    model, dataset = world
    with torch.no_grad():
        alone = score(model, collate(dataset, [0], pad_id=0))
        padded = score(model, collate(dataset, [7, 0], pad_id=3))
    assert torch.allclose(alone.logits, padded.logits[padded.row == 1], atol=1e-5)
