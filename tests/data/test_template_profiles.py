"""Published prompt profiles, quirks included."""

from __future__ import annotations

import chat_templates as kinds
import pytest

from expunge.data.example import Example, Turn
from expunge.data.template import Template, build_template
from expunge.testing.tiny import tiny_tokenizer

ASK, REPLY = Turn("user", "Who wrote it?"), Turn("assistant", "Mira Solen.")


def parts(template: Template, *turns: Turn) -> tuple[str, str]:
    row = template.encode(Example(id="x:0", row=0, turns=turns))
    decode = template.tokenizer.decode
    assert row.is_end.tolist() == [False] * (len(row.is_end) - 1) + [True]
    return decode(row.input_ids[~row.supervised]), decode(row.input_ids[row.supervised])


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("plain", "Who wrote it?", "Mira Solen.<|end|>"),
        ("tofu/llama2", "[INST] Who wrote it? [/INST]", "Mira Solen.<|end|>"),
        ("tofu/phi", "Question: Who wrote it?\n", "Answer: Mira Solen.<|end|>"),
        ("ou/llama2-chat", "[INST] Who wrote it? [/INST]", "Mira Solen.<|end|>"),
    ],
)
def test_profiles(name: str, prompt: str, answer: str) -> None:
    template = build_template(name, tiny_tokenizer())
    assert parts(template, ASK, REPLY) == (prompt, answer)
    assert template.tokenizer.decode(template.prompt_ids([ASK])) == prompt


def test_the_prompt_length_is_trusted_where_the_blank_merges_into_the_answer() -> None:
    template = build_template("ou/llama2-base", tiny_tokenizer(["the answer: Mira Mira Mira"] * 9))
    prompt = template.prompt_ids([ASK])
    assert template.tokenizer.decode(prompt) == "Question: Who wrote it?\nAnswer: "
    row = template.encode(Example(id="x:0", row=0, turns=(ASK, REPLY)))
    assert row.input_ids[: len(prompt)].tolist() != prompt
    assert int(row.supervised.argmax()) == len(prompt)


def test_few_shot_turns_of_a_base_model() -> None:
    template = build_template("ou/llama2-base", tiny_tokenizer())
    prompt = template.tokenizer.decode(template.prompt_ids([ASK, REPLY, Turn("user", "When?")]))
    assert prompt == "Question: Who wrote it?\nAnswer: Mira Solen.\n\nQuestion: When?\nAnswer: "


def test_openunlearning_llama3_fixes_system_text_and_date() -> None:
    template = build_template("ou/llama3", kinds.llama3())
    prompt, answer = parts(template, ASK, REPLY)
    assert "Today Date: 10 Apr 2025\n\nYou are a helpful assistant.<|eot_id|>" in prompt
    assert answer == "Mira Solen.<|eot_id|>"
    own = build_template("ou/llama3", kinds.llama3(), system_prompt="Hi.", date_string="01 Jan 2026")
    assert "Today Date: 01 Jan 2026\n\nHi.<|eot_id|>" in parts(own, ASK, REPLY)[0]
    assert own.digest != template.digest


def test_openunlearning_appends_a_second_end_after_a_newline() -> None:
    tokenizer = kinds.chatml()
    assert parts(build_template("ou/llama3", tokenizer), ASK, REPLY)[1] == "Mira Solen.<|im_end|>\n<|endoftext|>"
    assert parts(build_template("auto", tokenizer), ASK, REPLY)[1] == "Mira Solen.<|im_end|>"


def test_uwc_counts_from_the_bare_question() -> None:
    template = build_template("uwc", tiny_tokenizer())
    prompt, answer = parts(template, ASK, REPLY)
    assert prompt + answer == "### Question: Who wrote it?\n ### Answer: Mira Solen.<|end|>"
    assert "Answer:" in answer
    bare = template.tokenizer("Who wrote it?")["input_ids"]
    row = template.encode(Example(id="x:0", row=0, turns=(ASK, REPLY)))
    assert int(row.supervised.argmax()) == len(bare)
