"""What is prompt, what is answer and where an answer ends, for the kinds of templates in use."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import chat_templates as kinds
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from expunge.catalog import Entry
from expunge.data.encode import Encoded
from expunge.data.example import Example, Turn
from expunge.data.template import TEMPLATES, Template, build_template
from expunge.errors import DataError, ModelError, UsageError
from expunge.testing.tiny import tiny_tokenizer

ASK, REPLY = Turn("user", "Who wrote it?"), Turn("assistant", "Mira Solen wrote it.")
AGAIN, LAST = Turn("user", "When?"), Turn("assistant", "In 1987.")
TINY = build_template("auto", tiny_tokenizer())
PLAIN = build_template("plain", tiny_tokenizer())


def example(*turns: Turn, text: str = "") -> Example:
    return Example(id="x:0", row=0, turns=turns, text=text)


def parts(template: Template, row: Encoded) -> tuple[str, str]:
    """The unsupervised and the supervised text."""
    decode = template.tokenizer.decode
    return decode(row.input_ids[~row.supervised]), decode(row.input_ids[row.supervised])


CASES: dict[str, tuple[Any, str, str, str]] = {
    "tiny": (
        tiny_tokenizer(),
        "<|user|>Who wrote it?<|end|><|assistant|>",
        "Mira Solen wrote it.<|end|>",
        "<|end|>",
    ),
    "llama3": (
        kinds.llama3(),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWho wrote it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Mira Solen wrote it.<|eot_id|>",
        "<|eot_id|>",
    ),
    "chatml": (
        kinds.chatml(),
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nWho wrote it?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "Mira Solen wrote it.<|im_end|>",
        "<|im_end|>",
    ),
    "empty_thought": (
        kinds.chatml(kinds.EMPTY_THOUGHT),
        "<|im_start|>user\nWho wrote it?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nMira Solen wrote it.<|im_end|>",
        "<|im_end|>",
    ),
    "open_thought": (
        kinds.chatml(kinds.OPEN_THOUGHT),
        "<|im_start|>user\nWho wrote it?<|im_end|><|im_start|>assistant\n",
        "Mira Solen wrote it.<|im_end|>",
        "<|im_end|>",
    ),
    "spaced": (
        kinds.llama3(kinds.SPACED),
        "<|begin_of_text|>[INST] Who wrote it? [/INST]",
        " Mira Solen wrote it. <|eot_id|>",
        "<|eot_id|>",
    ),
    "unended": (
        kinds.chatml(kinds.UNENDED),
        "### user:\nWho wrote it?\n\n### assistant:\n",
        "Mira Solen wrote it.\n\n<|endoftext|>",
        "<|endoftext|>",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_answer_is_what_follows_the_prompt_up_to_one_end_token(kind: str) -> None:
    tokenizer, prompt, answer, end = CASES[kind]
    template = build_template("auto", tokenizer)
    row = template.encode(example(ASK, REPLY))
    assert parts(template, row) == (prompt, answer)
    assert row.is_end.tolist() == [False] * (len(row.is_end) - 1) + [True]
    assert row.input_ids[-1] == tokenizer.convert_tokens_to_ids(end)
    assert {tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id} == template.end_ids
    assert not row.truncated
    assert row.input_ids.dtype == np.int32


@pytest.mark.parametrize("kind", [kind for kind in CASES if kind != "open_thought"])
def test_training_and_generation_start_from_the_same_prompt(kind: str) -> None:
    template = build_template("auto", CASES[kind][0])
    row = template.encode(example(ASK, REPLY))
    assert row.input_ids[~row.supervised].tolist() == template.prompt_ids([ASK])


@pytest.mark.parametrize("kind", CASES)
def test_rows_do_not_depend_on_their_company(kind: str) -> None:
    template = build_template("auto", CASES[kind][0])
    rows = [example(ASK, REPLY), example(text="A raw text."), example(AGAIN, LAST), example(ASK, LAST)]
    for alone, together in zip([template.encode(row) for row in rows], template.encode_many(rows), strict=True):
        for one, other in zip(alone[:3], together[:3], strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["tiny", "llama3", "chatml", "empty_thought"])
def test_every_assistant_turn_can_be_supervised(kind: str) -> None:
    tokenizer, _, _, end = CASES[kind]
    template = build_template("auto", tokenizer)
    turns = (ASK, REPLY, AGAIN, LAST)
    last = template.encode(example(*turns))
    every = template.encode(example(*turns), supervise="all_assistant")
    assert np.array_equal(last.input_ids, every.input_ids)
    assert parts(template, last)[1].removeprefix("<think>\n\n</think>\n\n") == f"In 1987.{end}"
    text = parts(template, every)[1].replace("<think>\n\n</think>\n\n", "")
    assert text == f"Mira Solen wrote it.{end}In 1987.{end}"
    assert every.is_end.sum() == 2
    assert (every.input_ids[every.is_end] == tokenizer.convert_tokens_to_ids(end)).all()


def test_without_end_tokens_earlier_answers_have_none() -> None:
    template = build_template("auto", CASES["unended"][0])
    every = template.encode(example(ASK, REPLY, AGAIN, LAST), supervise="all_assistant")
    assert parts(template, every)[1] == "Mira Solen wrote it.In 1987.\n\n<|endoftext|>"
    assert every.is_end.sum() == 1


def test_trimmed_content_is_still_found() -> None:
    template = build_template("auto", kinds.llama3())
    row = template.encode(example(ASK, Turn("assistant", "  Mira Solen.\n")))
    assert parts(template, row)[1] == "Mira Solen.<|eot_id|>"


def test_a_system_prompt_opens_conversations_without_one() -> None:
    template = build_template("auto", tiny_tokenizer(), system_prompt="Be brief.")
    assert parts(template, template.encode(example(ASK, REPLY)))[0].startswith("<|system|>Be brief.<|end|><|user|>")
    own = example(Turn("system", "Be long."), ASK, REPLY)
    assert parts(template, template.encode(own))[0].startswith("<|system|>Be long.<|end|><|user|>")
    with pytest.raises(DataError, match=r"refuses a conversation .* no system role"):
        build_template("auto", kinds.chatml(kinds.NO_SYSTEM), system_prompt="Be brief.")


def test_the_date_is_fixed_and_part_of_the_digest() -> None:
    given_date = build_template("auto", kinds.llama3(), date_string="10 Apr 2025")
    assert "Today Date: 10 Apr 2025" in parts(given_date, given_date.encode(example(ASK, REPLY)))[0]
    free = build_template("auto", kinds.llama3())
    assert datetime.now().strftime("%d %b %Y") not in parts(free, free.encode(example(ASK, REPLY)))[0]
    digests = {
        build_template("auto", kinds.llama3(), **options).digest
        for options in ({}, {"date_string": "10 Apr 2025"}, {"date_string": "11 Apr 2025"}, {"system_prompt": "Hi."})
    }
    assert len(digests) == 4
    other_format = kinds.llama3(kinds.LLAMA3.replace("'%d %b %Y'", '"%Y-%m-%d"'))
    own = build_template("auto", other_format)
    assert "Today Date: 2024-07-26" in parts(own, own.encode(example(ASK, REPLY)))[0]
    with pytest.raises(ModelError, match="computed format"):
        build_template("auto", kinds.llama3(kinds.LLAMA3.replace("'%d %b %Y'", "'%d' ~ '%b'")))


def test_the_digest_ignores_padding_and_follows_the_template() -> None:
    one, other = tiny_tokenizer(), tiny_tokenizer()
    other.pad_token = other.eos_token
    assert build_template("auto", one).digest == build_template("auto", other).digest
    assert build_template("plain", one).digest != build_template("auto", one).digest
    row, same = build_template("auto", one).encode(example(ASK, REPLY)), build_template("auto", other)
    assert np.array_equal(row.supervised, same.encode(example(ASK, REPLY)).supervised)


def test_exactly_one_bos() -> None:
    tokenizer = kinds.llama3()
    silent = kinds.llama3(kinds.LLAMA3.replace("{{ bos_token }}", ""))
    for template in (
        build_template("auto", tokenizer),
        build_template("auto", silent),
        build_template("plain", tokenizer),
        build_template("ou/llama3", tokenizer),
    ):
        for ids in (
            template.encode(example(ASK, REPLY)).input_ids.tolist(),
            template.encode(example(text="Raw.")).input_ids.tolist(),
            template.prompt_ids([ASK]),
            template.prompt_ids([]),
        ):
            assert ids[0] == tokenizer.bos_token_id
            assert ids.count(tokenizer.bos_token_id) == 1


def test_raw_text_supervises_all_but_the_first_token_and_adds_no_end() -> None:
    for template in (TINY, build_template("auto", kinds.llama3())):
        row = template.encode(example(text="Mira Solen wrote it."))
        assert row.supervised.tolist() == [False] + [True] * (len(row.input_ids) - 1)
        assert not row.is_end.any()
        assert template.tokenizer.decode(row.input_ids, skip_special_tokens=True) == "Mira Solen wrote it."


def test_a_merge_over_the_seam_belongs_to_the_answer() -> None:
    tokenizer = tiny_tokenizer()
    prompt, answer = Turn("user", "Who wrote the "), Turn("assistant", "novel?")
    joint = tokenizer("Who wrote the novel?")["input_ids"]
    alone = tokenizer("Who wrote the ")["input_ids"]
    assert joint[: len(alone)] != alone
    row = PLAIN.encode(example(prompt, answer))
    assert row.input_ids.tolist() == [*joint, tokenizer.eos_token_id]
    assert parts(PLAIN, row) == ("Who wrote the", " novel?<|end|>")


def test_a_merge_over_the_seam_with_trimmed_offsets() -> None:
    template = build_template("plain", kinds.llama3())
    row = template.encode(example(Turn("user", "Who wrote the "), Turn("assistant", "novel?")))
    assert parts(template, row) == ("<|begin_of_text|>Who wrote the", " novel?<|eot_id|>")


def test_no_chat_template_is_an_error_only_where_one_is_needed() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template") as caught:
        build_template("auto", tokenizer)
    assert "plain, tofu/llama2, tofu/phi" in str(caught.value.hint)
    assert "ou/llama3" not in str(caught.value.hint)
    assert build_template("plain", tokenizer).encode(example(ASK, REPLY)).supervised.any()


def test_templates_that_cannot_be_used_say_so() -> None:
    with pytest.raises(UsageError, match="unknown template 'tofu/llama'") as caught:
        build_template("tofu/llama", tiny_tokenizer())
    assert caught.value.hint == "did you mean 'tofu/llama2'?"
    with pytest.raises(DataError, match="leaves out turn 1"):
        build_template("auto", tiny_tokenizer(chat_template="{% for m in messages[:1] %}{{ m.content }}{% endfor %}"))
    endless = tiny_tokenizer(chat_template=kinds.UNENDED)
    endless.eos_token = None
    with pytest.raises(ModelError, match="emits no end token"):
        build_template("auto", endless)
    with pytest.raises(UsageError, match="supervises the last answer only"):
        build_template("ou/llama3", tiny_tokenizer()).encode(example(ASK, REPLY), supervise="all_assistant")


def test_the_listing_is_complete() -> None:
    assert [entry.name for entry in TEMPLATES][:3] == ["auto", "plain", "tofu/llama2"]
    assert all(isinstance(entry, Entry) and entry.summary for entry in TEMPLATES)


WORDS = st.text(min_size=1, max_size=30).filter(lambda s: "<|" not in s)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(question=WORDS, answer=WORDS)
def test_the_supervised_span_decodes_to_the_answer(question: str, answer: str) -> None:
    row = TINY.encode(example(Turn("user", question), Turn("assistant", answer)))
    assert parts(TINY, row)[1] == f"{answer}<|end|>"


@settings(derandomize=True, deadline=None, max_examples=150)
@given(question=st.text(max_size=30).filter(lambda s: "<|" not in s), answer=WORDS)
def test_without_markup_the_span_covers_the_answer(question: str, answer: str) -> None:
    row = PLAIN.encode(example(Turn("user", question), Turn("assistant", answer)))
    assert PLAIN.tokenizer.decode(row.input_ids) == f"{question}{answer}<|end|>"
    first = int(np.argmax(row.supervised))
    before = PLAIN.tokenizer.decode(row.input_ids[:first])
    # Only a token that holds the prompt's end, or the very first token of a row, may differ from a clean cut.
    assert question.startswith(before.rstrip("�")) or first == 1
    assert row.supervised[first:].all()


def test_real_tokenizers_agree_with_the_plain_definition(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "tofu_tiny_full")
    template = build_template("auto", tokenizer)
    chat = [{"role": "user", "content": "What genre is it?"}, {"role": "assistant", "content": "Crime, mostly."}]
    row = template.encode(example(*(Turn(**message) for message in chat)))
    whole = tokenizer.apply_chat_template(chat, return_dict=False)
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    assert row.input_ids.tolist() == whole
    assert row.supervised.tolist() == [i >= len(prompt) for i in range(len(whole))]
    assert template.prompt_ids([Turn(**chat[0])]) == prompt


def test_a_tokenizer_that_prepends_a_blank_and_pads_with_its_eos(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    with pytest.raises(ModelError, match="no chat template"):
        build_template("auto", tokenizer)
    template = build_template("plain", tokenizer)
    row = template.encode(example(Turn("user", "Once upon a time"), Turn("assistant", " there was a girl.")))
    assert row.input_ids.tolist() == [*tokenizer("Once upon a time there was a girl.")["input_ids"], 2]
    assert tokenizer.decode(row.input_ids[row.supervised], skip_special_tokens=True).strip() == "there was a girl."
    assert row.input_ids[~row.supervised].tolist() == template.prompt_ids([Turn("user", "Once upon a time")])
