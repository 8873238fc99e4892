"""Flat positions against a plain definition, padding, and packing under a budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.collate import Positions, collate, pack
from expunge.data.encode import Dataset, Encoded, encode_all
from expunge.data.example import Example, Turn
from expunge.data.template import build_template
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

PAD = 9


def dataset(*rows: tuple[list[int], list[int]]) -> Dataset:
    """Rows of (ids, supervised flags); the last supervised token is the end token."""
    encoded = []
    for ids, flags in rows:
        is_end = np.zeros(len(ids), dtype=bool)
        is_end[max(np.nonzero(flags)[0])] = True
        encoded.append(Encoded(np.array(ids, np.int32), np.array(flags, bool), is_end))
    examples = tuple(Example(id=str(n), row=n, text="x") for n in range(len(rows)))
    return Dataset("forget", examples, tuple(encoded), "digest")


ROWS = dataset(([1, 2, 3, 4], [0, 0, 1, 1]), ([5, 6], [0, 1]), ([7, 8, PAD], [0, 1, 1]))


def test_predict() -> None:
    batch = collate(ROWS, [2, 0, 1], pad_id=PAD)
    assert batch.rows.tolist() == [2, 0, 1]
    assert batch.input_ids.tolist() == [[7, 8, PAD, PAD], [1, 2, 3, 4], [5, 6, PAD, PAD]]
    # The real token 9 is attended although it equals the padding id.
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.predict_mask.int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]]
    assert batch.targets.tolist() == [8, 9, 3, 4, 6]
    assert batch.row.tolist() == [0, 0, 1, 1, 2]
    assert batch.is_end.int().tolist() == [0, 1, 0, 1, 1]
    assert batch.num_tokens == 12
    assert {t.dtype for t in (batch.rows, batch.input_ids, batch.attention_mask, batch.targets, batch.row)} == {
        torch.int64
    }
    assert batch.predict_mask.dtype == batch.is_end.dtype == torch.bool


def test_attended_and_all() -> None:
    batch = collate(ROWS, [0, 1], pad_id=PAD, positions="attended")
    assert batch.predict_mask.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.targets.tolist() == [2, 3, 4, 0, 6, 0]
    assert batch.row.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.is_end.int().tolist() == [0, 0, 1, 0, 1, 0]
    batch = collate(ROWS, [0, 1], pad_id=PAD, positions="all")
    assert batch.predict_mask.all()
    assert batch.targets.tolist() == [2, 3, 4, 0, 6, 0, 0, 0]
    assert batch.row.tolist() == [0] * 4 + [1] * 4


def test_held_positions_hold_a_supervised_token() -> None:
    batch = collate(ROWS, [0, 1], pad_id=PAD, positions="held")
    assert batch.predict_mask.int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert batch.targets.tolist() == [4, 0, 0]
    assert batch.row.tolist() == [0, 0, 1]
    # Those whose next token is an answer token as well.
    assert batch.answer.int().tolist() == [1, 0, 0]


@pytest.mark.parametrize("positions", ["predict", "attended", "all", "held"])
def test_answer_positions_are_those_of_predict(positions: Positions) -> None:
    batch = collate(ROWS, [2, 0, 1], pad_id=PAD, positions=positions)
    predicted = collate(ROWS, [2, 0, 1], pad_id=PAD).predict_mask
    assert batch.answer.equal(predicted[batch.predict_mask])
    assert not batch.answer[batch.targets == 0].any()


@pytest.mark.parametrize(("skip_first", "targets", "row"), [(1, [9, 4], [0, 1]), (2, [], []), (5, [], [])])
def test_the_first_tokens_of_each_answer_are_left_out(skip_first: int, targets: list[int], row: list[int]) -> None:
    batch = collate(ROWS, [2, 0, 1], pad_id=PAD, skip_first=skip_first)
    assert (batch.targets.tolist(), batch.row.tolist()) == (targets, row)
    assert len(batch.rows) == 3
    assert batch.answer.all()
    everywhere = collate(ROWS, [2, 0, 1], pad_id=PAD, positions="attended", skip_first=skip_first)
    assert everywhere.predict_mask.equal(collate(ROWS, [2, 0, 1], pad_id=PAD, positions="attended").predict_mask)


def test_to_moves_everything_but_the_row_indices() -> None:
    batch = collate(ROWS, [0, 1], pad_id=PAD).to("meta")
    moved = ("input_ids", "attention_mask", "predict_mask", "targets", "row", "is_end")
    assert {getattr(batch, name).device.type for name in moved} == {"meta"}
    assert batch.rows.tolist() == [0, 1]


@pytest.mark.parametrize("pad", ["pad", "eos"])
def test_a_row_scores_the_same_in_company(pad: str) -> None:
    tokenizer = tiny_tokenizer()
    template, model = build_template("auto", tokenizer), tiny_llama(len(tokenizer))
    answers = ["Ada.", "Mira Solen wrote it.", "In 1987, in Tallinn, as far as is known."]
    rows = [Example(id=a, row=0, turns=(Turn("user", "Who?"), Turn("assistant", a))) for a in answers]
    data = encode_all(rows, template, role="forget", max_length=99)
    pad_id = tokenizer.pad_token_id if pad == "pad" else tokenizer.eos_token_id

    def logps(indices: list[int]) -> torch.Tensor:
        batch = collate(data, indices, pad_id=pad_id)
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[batch.predict_mask]
        return logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]

    together = logps([0, 1, 2])
    assert len(together) == sum(int(item.supervised.sum()) for item in data.encoded)
    torch.testing.assert_close(together, torch.cat([logps([n]) for n in range(3)]), rtol=1e-5, atol=1e-5)


@settings(derandomize=True, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), max_size=60), budget=st.integers(1, 200))
def test_pack_covers_each_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = pack(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget
    order = [lengths[index] for group in groups for index in group]
    assert order == sorted(lengths, reverse=True)
    assert groups == pack(np.array(lengths, dtype=np.int64), budget)


def test_pack_keeps_the_order_of_equals_and_leaves_the_long_alone() -> None:
    assert pack([3, 5, 3, 3, 90], 9) == [[4], [1], [0, 2, 3]]
    assert pack([], 9) == []
