"""The length limit, windows of raw text, and the dataset digest."""

from __future__ import annotations

from pathlib import Path

import chat_templates as kinds
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from expunge.config.schema import SourceSpec
from expunge.data.encode import Dataset, encode_all, name_rows
from expunge.data.example import Example, Turn
from expunge.data.source import load_examples
from expunge.data.template import Template, build_template
from expunge.errors import DataError, UsageError
from expunge.testing.tiny import tiny_tokenizer

TINY = build_template("auto", tiny_tokenizer())
WITH_BOS = build_template("plain", kinds.llama3())
QUESTION = "Who wrote it?"


def qa(row: int, answer: str, question: str = QUESTION) -> Example:
    return Example(id=f"x:{row}", row=row, turns=(Turn("user", question), Turn("assistant", answer)))


def text(content: str) -> Example:
    return Example(id="t:0", row=0, text=content)


def encode(examples: list[Example], max_length: int, on_truncate: str = "error", **options: str) -> Dataset:
    return encode_all(
        examples,
        TINY,
        role="forget",
        max_length=max_length,
        on_truncate=on_truncate,
        **options,  # type: ignore[arg-type]
    )


def test_rows_that_do_not_fit_are_named_with_the_length_that_works() -> None:
    rows = [qa(n, "Ada." if n not in (3, 7) else "Ada wrote it a long time ago." + "!" * n) for n in range(10)]
    with pytest.raises(DataError) as caught:
        encode(rows, 20)
    assert caught.value.message == "2 of 10 forget examples lose answer tokens to truncation (rows 3, 7)"
    assert caught.value.hint is not None
    needed = int(caught.value.hint.removeprefix("set data.max_length="))
    assert encode(rows, needed).lengths().max() == needed
    with pytest.raises(DataError):
        encode(rows, needed - 1)


def test_a_row_needs_its_end_token() -> None:
    (length,) = encode([qa(0, "Ada.")], 99).lengths()
    assert encode([qa(0, "Ada.")], int(length)).encoded[0].is_end[-1]
    with pytest.raises(DataError, match=r"1 of 1 forget examples lose answer tokens to truncation \(row 0\)"):
        encode([qa(0, "Ada.")], int(length) - 1)


def test_drop_and_keep() -> None:
    rows = [qa(0, "Ada."), qa(1, "Ada wrote it a long time ago, as it seems."), qa(2, "Ben.")]
    dropped = encode(rows, 30, "drop")
    assert [e.row for e in dropped.examples] == [0, 2]
    assert dropped.dropped == (1,)
    kept = encode(rows, 30, "keep")
    assert [item.truncated for item in kept.encoded] == [False, True, False]
    assert len(kept.encoded[1].input_ids) == 30
    assert kept.encoded[1].supervised.any()
    assert not kept.encoded[1].is_end.any()
    with pytest.raises(DataError, match="all 3 forget examples are longer"):
        encode(rows, 3, "drop")
    with pytest.raises(
        DataError, match=r"3 of 3 forget examples have no answer token left within 3 tokens \(rows 0, 1, 2"
    ):
        encode(rows, 3, "keep")


def test_degenerate_requests() -> None:
    with pytest.raises(DataError, match="there are no forget examples"):
        encode([], 30)
    with pytest.raises(UsageError, match="max_length is 1"):
        encode([qa(0, "Ada.")], 1)
    with pytest.raises(DataError, match=r"1 of 1 forget examples have no answer token \(row 0\)"):
        encode([text("a")], 30)


def test_name_rows() -> None:
    assert name_rows([17]) == "row 17"
    assert name_rows([17, 211]) == "rows 17, 211"
    assert name_rows(range(14)) == "rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more"


def test_every_assistant_turn() -> None:
    turns = (Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye"), Turn("assistant", "Bye!"))
    (row,) = encode([Example(id="m", row=0, turns=turns)], 99, supervise="all_assistant").encoded
    assert TINY.tokenizer.decode(row.input_ids[row.supervised]) == "Hello<|end|>Bye!<|end|>"


@settings(derandomize=True, deadline=None, max_examples=80)
@given(content=st.text(min_size=2, max_size=120), max_length=st.integers(3, 40), with_bos=st.booleans())
def test_windows_supervise_each_token_once_and_add_up(content: str, max_length: int, with_bos: bool) -> None:
    template: Template = WITH_BOS if with_bos else TINY
    whole = template.encode(text(content))
    windows = template.windows(text(content), max_length=max_length)
    assert "".join(example.text for example, _ in windows) == content
    assert all(len(item.input_ids) <= max_length for _, item in windows)
    supervised = np.concatenate([item.input_ids[item.supervised] for _, item in windows])
    assert supervised.tolist() == whole.input_ids[1:].tolist()
    assert not any(item.is_end.any() or item.supervised[0] for _, item in windows)


def test_long_texts_become_windows_and_short_ones_do_not() -> None:
    rows = [text("Mira Solen wrote it. " * 9), Example(id="t:1", row=1, text="Mira Solen.")]
    dataset = encode(rows, 40)
    count = len(dataset.encoded) - 1
    assert count > 1
    assert [e.id for e in dataset.examples] == [*(f"t:0#{n}" for n in range(count)), "t:1"]
    assert (dataset.lengths() <= 40).all()


def test_the_digest_follows_ids_tokens_and_masks() -> None:
    base = encode([qa(0, "Ada."), qa(1, "Ben.")], 60).digest
    assert base == encode([qa(0, "Ada."), qa(1, "Ben.")], 90).digest
    assert base != encode([qa(1, "Ben."), qa(0, "Ada.")], 60).digest
    assert base != encode([qa(0, "Ada."), qa(2, "Ben.")], 60).digest
    assert base != encode([qa(0, "Ada."), qa(1, "Bea.")], 60).digest
    turns = (Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye"), Turn("assistant", "Bye!"))
    both = Example(id="m", row=0, turns=turns)
    assert encode([both], 99).digest != encode([both], 99, supervise="all_assistant").digest


def test_a_tofu_suite(shared: Path) -> None:
    """2800 texts of forget10 with paraphrases and wrong answers, on the tokenizer that ships with the models."""
    spec = SourceSpec(path="tofu:forget10_perturbed")
    examples = load_examples(spec, tofu=str(shared / "data" / "tofu"), role="forget").examples
    every = [
        Example(id=f"{e.id}/{n}", row=e.row, turns=(*e.prompt, Turn("assistant", answer)))
        for e in examples
        for n, answer in enumerate([e.answer, e.extra["paraphrased_answer"], *e.extra["perturbed_answer"]])
    ]
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "tofu_tiny_full")
    template = build_template("auto", tokenizer)
    dataset = encode_all(every, template, role="forget", max_length=512)
    for example, item in zip(dataset.examples[::97], dataset.encoded[::97], strict=True):
        assert tokenizer.decode(item.input_ids[item.supervised]) == f"{example.answer}<|end|>"
    assert [int(item.is_end.sum()) for item in dataset.encoded] == [1] * len(every)
