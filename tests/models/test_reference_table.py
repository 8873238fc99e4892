"""A cached reference says what the live model says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from expunge.data.collate import collate
from expunge.data.encode import Dataset, encode_all
from expunge.data.example import Example, Turn
from expunge.data.template import build_template
from expunge.errors import ModelError
from expunge.losses.eua import eua_margins
from expunge.models.chunks import LOGIT_BYTES
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
    Reference("block", layer=1),
)


class World(NamedTuple):
    model: Any
    dataset: Dataset


def encode(tokenizer: Any, *, template: str = "auto", answers: int = 3) -> Dataset:
    examples = [
        Example(
            f"x:{i}",
            i,
            turns=(Turn("user", "who? " * (1 + i % 4)), Turn("assistant", "Mira Solen " * (1 + i % answers))),
        )
        for i in range(9)
    ]
    return encode_all(
        examples,
        build_template(template, tokenizer),
        role="forget",
        max_length=128,
        on_truncate="error",
        supervise="last",
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    return World(tiny_llama(len(tokenizer), seed=5), encode(tokenizer))


def table(
    world: World,
    *,
    budget: int = 128,
    kinds: tuple[Reference, ...] = KINDS,
    positions: Any = "predict",
    skip_first: int = 0,
) -> ReferenceTable:
    return reference_table(
        world.model,
        world.dataset,
        kinds,
        model_key=model_digest(world.model),
        pad_id=0,
        positions=positions,
        skip_first=skip_first,
        token_budget=budget,
    )


@pytest.mark.parametrize(("positions", "skip_first"), [("predict", 0), ("predict", 2), ("attended", 0), ("held", 0)])
def test_cached_equals_live(world: World, positions: Any, skip_first: int) -> None:
    built = table(world, positions=positions, skip_first=skip_first)
    for rows in ([3], [8, 0, 5], list(range(9))):
        batch = collate(world.dataset, rows, pad_id=0, positions=positions, skip_first=skip_first)
        with torch.no_grad():
            live = score(world.model, batch, hidden=1)
        values = built.values(batch)
        margins = eua_margins(live.logits, ratio=0.2, temperature=1.5, fill="zero")
        pairs = [
            (values.seq_logp, live.seq_logps),
            (values.token_logp, live.logps),
            (values.logits, live.logits),
            (values.eua_margin, margins),
            (values.block, live.hidden),
        ]
        for stored, now in pairs:
            assert stored is not None
            assert now is not None
            torch.testing.assert_close(stored, now, atol=1e-4, rtol=1e-5)


def test_arrays_are_mapped_not_read(world: World) -> None:
    for built in (table(world), table(world)):
        for array in built.arrays.values():
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable


def test_the_second_run_reads_what_the_first_one_wrote(world: World) -> None:
    first, second = table(world), table(world, budget=64)
    assert (first.cached, second.cached) == (False, True)
    for name, array in first.arrays.items():
        assert (array == second.arrays[name]).all(), name


def test_a_key_says_all_that_numbers_depend_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = (Reference("token_logp"),)
    model, tokenizer = world.model, tiny_tokenizer()
    assert not table(world, kinds=one).cached
    assert table(world, kinds=one, budget=64).cached, "a budget moves rounding alone"
    assert table(world._replace(model=copy.deepcopy(model)), kinds=one).cached

    def new(changed: World = world, kinds: tuple[Reference, ...] = one, **settings: Any) -> bool:
        return not table(changed, kinds=kinds, **settings).cached

    weights, bent, eager = (copy.deepcopy(model) for _ in range(3))
    with torch.no_grad():
        next(weights.parameters()).add_(0.1)
    bent.config.rms_norm_eps = 0.5
    eager.set_attn_implementation("eager")
    buffered = copy.deepcopy(model)
    buffered.register_buffer("shift", torch.ones(1))
    others = {
        "weights": new(world._replace(model=weights)),
        "config": new(world._replace(model=bent)),
        "attention": new(world._replace(model=eager)),
        "buffers": new(world._replace(model=buffered)),
        "rows": new(world._replace(dataset=encode(tokenizer, answers=2))),
        "template": new(world._replace(dataset=encode(tokenizer, template="plain"))),
        "positions": new(positions="attended"),
        "start": new(skip_first=1),
        "kind": new(kinds=(Reference("seq_logp"),)),
        "ratio": new(kinds=(Reference("eua_margin", ratio=0.3),)) and new(kinds=(Reference("eua_margin", ratio=0.4),)),
        "layer": new(kinds=(Reference("block", layer=0),)) and new(kinds=(Reference("block", layer=1),)),
    }
    monkeypatch.setattr("expunge.models.reference_table.compute_dtype", lambda device: torch.bfloat16)
    others["dtype"] = new()
    assert [name for name, is_new in others.items() if not is_new] == []


def test_states_of_the_rows_and_not_of_an_examination(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where logits are large a model is first examined by a forward of its own."""
    plain = table(world, kinds=(Reference("hidden"),)).arrays["hidden"]
    monkeypatch.setitem(LOGIT_BYTES, "cpu", 4 * 384 * 5)
    monkeypatch.setenv("EXPUNGE_CACHE", str(Path(plain.filename).parents[3] / "other"))  # type: ignore[attr-defined]
    fresh = world._replace(model=copy.deepcopy(world.model))
    assert (table(fresh, kinds=(Reference("hidden"),)).arrays["hidden"] == plain).all()


def test_the_frozen_head_is_not_the_trained_one(world: World) -> None:
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


def test_padding_does_not_change_a_row(world: World) -> None:
    model, dataset = world
    with torch.no_grad():
        alone = score(model, collate(dataset, [0], pad_id=0))
        padded = score(model, collate(dataset, [7, 0], pad_id=3))
    assert torch.allclose(alone.logits, padded.logits[padded.row == 1], atol=1e-5)


def test_a_model_that_changes_its_logits_unsaid_is_refused(world: World) -> None:
    model = copy.deepcopy(world.model)
    model.get_output_embeddings().register_forward_hook(lambda module, args, logits: 2 * logits + 1)
    with pytest.raises(ModelError, match="changes its logits after the output head") as caught:
        table(world._replace(model=model), kinds=(Reference("hidden"),))
    assert "method.retain=nll" in str(caught.value)
    assert not table(world._replace(model=model), kinds=(Reference("token_logp"),)).cached
