"""Answers that a prompt begins: written behind the generation prompt, and no part of what is supervised."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.example import LEAD, Example, Turn, prompt_text
from expunge.data.template import Template, build_template
from expunge.testing.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QUESTION = Turn("user", "Who wrote it?\n")


def led(answer: str, lead: str = "Answer:") -> Example:
    return Example("row", 0, (QUESTION, Turn(LEAD, lead), Turn("assistant", answer)))


def plain(answer: str) -> Example:
    return Example("row", 0, (QUESTION, Turn("assistant", answer)))


@pytest.fixture(params=["auto", "plain", "ou/llama2-chat"])
def template(request: pytest.FixtureRequest) -> Template:
    return build_template(request.param, TOKENIZER)


def test_the_prompt_ends_in_the_lead(template: Template) -> None:
    opened, without = (TOKENIZER.decode(template.prompt_ids(row.prompt)) for row in (led(" Sam"), plain("Sam")))
    assert opened == f"{without}Answer:"
    assert prompt_text(led(" Sam")) == "Who wrote it?\n\nAnswer:"


def test_what_follows_the_lead_is_supervised(template: Template) -> None:
    item = template.encode(led(" Mira Solen"))
    assert TOKENIZER.decode(item.input_ids[item.supervised & ~item.is_end]) == " Mira Solen"
    assert item.is_end.sum() == 1
    count = len(template.prompt_ids(led(" Mira Solen").prompt))
    assert item.input_ids[:count].tolist() == template.prompt_ids(led(" Mira Solen").prompt)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.text("abc Answer:", max_size=8), st.text("abc ", min_size=1, max_size=8))
def test_a_lead_and_its_answer_are_one_answer(lead: str, answer: str) -> None:
    for name in ("auto", "plain"):
        template = build_template(name, TOKENIZER)
        one, other = template.encode(led(answer, lead)), template.encode(plain(lead + answer))
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.supervised.sum() <= other.supervised.sum()


def test_a_template_s_identity_knows_nothing_of_leads() -> None:
    assert build_template("auto", TOKENIZER).digest == build_template("auto", tiny_tokenizer()).digest
