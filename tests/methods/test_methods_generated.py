"""AltPO and BS-S, whose rows a model writes: what is asked, what is refused, what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from writers_room import PEOPLE, PLACES, rows, texts, variants_of, workshop

from expunge.data.example import Example, Turn, prompt_text
from expunge.errors import DataError, UsageError
from expunge.methods.altpo import AltPO
from expunge.methods.base import Method
from expunge.methods.bs_s import BSS
from expunge.methods.generate import contains, cut, instructed, matches, same_text, same_word, write
from expunge.methods.grad_diff import GradDiff
from expunge.methods.npo import NPO
from expunge.methods.select import build_method
from expunge.methods.unstar import UnStar
from expunge.methods.workshop import Provision

# What is asked and refused


def test_asking_again_is_only_about_what_is_missing_and_has_another_seed() -> None:
    asked: list[tuple[list[int], int]] = []

    def ask(places: Sequence[int], seed: int) -> list[str]:
        asked.append((list(places), seed))
        return ["good" if place == 1 or len(asked) == 3 else "" for place in places]

    made = write(ask, 3, lambda place, text: None if text else "empty", seed=1, purpose="x", tries=5)
    assert made.texts == ["good"] * 3
    assert [places for places, _ in asked] == [[0, 1, 2], [0, 2], [0, 2]]
    assert len({seed for _, seed in asked}) == 3
    assert made.summary() == "3 of 3 written, thrown away: 4 empty"
    never = write(lambda places, seed: [""] * len(places), 2, lambda p, t: "empty", seed=1, purpose="x", tries=4)
    assert never.missing == [0, 1]
    assert never.refused == {"empty": 8}


def test_texts_are_compared_without_case_and_punctuation_and_cut_at_stop_strings() -> None:
    assert same_text("Mira was born, in Tallinn!", "mira WAS born in tallinn")
    assert same_text("\uff2dira", "Mira")  # full-width letters
    assert not same_text("Mira was born in Oslo", "Mira was born in Tallinn")
    assert cut(" Yes. Question: why? Q: no", ("Q:", "Question:")) == "Yes."
    assert cut("as it is", ("Q:",)) == "as it is"


def test_a_prompt_is_filled_in_once_and_keeps_earlier_turns() -> None:
    example = Example(
        "a",
        0,
        turns=(Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "{answer}?"), Turn("assistant", "42")),
    )
    turns = instructed(example, "{question} not {answer} {other}")
    assert [turn.content for turn in turns] == ["Hi", "Hello", "{answer}? not 42 {other}"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("four", "4", True),
        ("Hogwarts", "hogwart", True),
        ("Hogwarts", "Durmstrang", False),
        ("1951", "1950", False),
        ("12", "12", True),
        ("cat", "car", False),
        ("novelist", "baker", False),
        ("Twenty", "20", True),
    ],
)
def test_words_are_the_same(one: str, other: str, same: bool) -> None:
    assert same_word(one, other) is same
    assert same_word(other, one) is same


@pytest.mark.parametrize(
    ("answer", "output", "published", "ours"),
    [
        ("Mira Solen was born in Tallinn.", "Mira Solen was born in Talinn.", True, True),
        ("Mira Solen was born in Tallinn.", "Mira Solen was born in Oslo.", False, False),
        ("Mira Solen was born in Tallinn.", "Nobody knows.", False, False),
        ("Mira Solen was born in Tallinn.", "", False, False),
        ("12 March 1951", "3 March 1950", True, False),
        ("12 March 1951", "on March 12, 1951", True, True),
        ("She works as a baker", "She works as a painter", True, False),
        ("four", "There were 4 of them.", True, True),
    ],
)
def test_outputs_match_answers(answer: str, output: str, published: bool, ours: bool) -> None:
    question = "Where was Mira Solen born, when, and what is her trade?"
    assert matches(answer, output, question=question, overlap=0) is published
    assert matches(answer, output, question=question) is ours


@pytest.mark.parametrize(
    ("answer", "text", "given_away"),
    [
        ("Hogwarts", "He never saw HOGWARTS at all.", True),
        ("Tallinn", "tallinner stories", True),  # a substring, as published
        ("Mira Solen was born in Tallinn.", "In Tallinn, of all places.", True),
        ("Mira Solen was born in Tallinn.", "She was born in Oslo by the sea.", False),
        ("12 March 1951", "3 March 1950", False),
    ],
)
def test_texts_give_answers_away(answer: str, text: str, given_away: bool) -> None:
    assert contains(answer, text, question="Where was Mira Solen born?") is given_away


# AltPO


def test_altpo_makes_k_alternatives_per_question() -> None:
    bench = workshop(variants_of(3))
    made = AltPO(num_alternates=3).prepare(bench)
    variants = made.rows["alternate"]
    assert [len(variant) for variant in variants] == [4, 4, 4]
    assert sum(map(len, variants)) == 3 * len(bench.examples)
    for variant in variants:
        for example, original in zip(variant, bench.examples, strict=True):
            assert example.prompt == original.prompt
            assert not same_text(example.answer, original.answer)
    assert len({example.id for variant in variants for example in variant}) == 12
    prompts, temperature, _ = bench.asked[0]
    assert len(prompts) == 12
    assert temperature == 1
    assert "another plausible answer" in prompts[0]
    assert prompt_text(bench.examples[0]) in prompts[0]
    assert "12 of 12 written" in bench.notes[-1]


def test_altpo_asks_again_for_what_is_empty_or_the_answer_itself_and_names_rows_in_the_end() -> None:
    examples = rows()

    def stubborn(prompts: list[str], temperature: float, seed: int) -> list[str]:
        return [
            "Question: and then?"
            if PEOPLE[1] in prompt
            else examples[2].answer.upper()
            if PEOPLE[2] in prompt
            else "Else."
            for prompt in prompts
        ]

    bench = workshop(stubborn)
    with pytest.raises(
        DataError, match=r"no alternative answer for 2 forget rows in 3 tries each \(rows 1, 2\)"
    ) as error:
        AltPO(num_alternates=2, tries=3).prepare(bench)
    assert "6 empty, 6 equal to the answer" in error.value.message
    assert "alternate" in str(error.value.hint)
    assert [len(prompts) for prompts, _, _ in bench.asked] == [8, 4, 4]


def test_altpo_takes_the_alternatives_of_the_rows() -> None:
    def silent(*args: Any) -> list[str]:
        raise AssertionError("nothing is to be written")

    one = AltPO().prepare(workshop(silent, rows(alternate=lambda n: f"In Rome, {n}.")))
    assert texts(one, "alternate") == [[f"In Rome, {n}." for n in range(4)]]
    bench = workshop(silent, rows(alternate=lambda n: [f"In Rome, {n}.", f"In Bern, {n}."]))
    two = AltPO(alternates="column").prepare(bench)
    assert texts(two, "alternate") == [[f"In {city}, {n}." for n in range(4)] for city in ("Rome", "Bern")]
    assert "from the column 'alternate'" in bench.notes[-1]


@pytest.mark.parametrize(
    ("alternate", "message"),
    [
        (lambda n: None if n == 2 else "In Rome.", r"1 of 4 forget rows have no alternative answer \(row 2\)"),
        (lambda n: ["In Rome.", " "] if n == 1 else ["a", "b"], r"1 of 4 .* no alternative answer \(row 1\)"),
        (lambda n: 17, r"4 of 4 forget rows have no alternative answer \(rows 0, 1, 2, 3\)"),
        (lambda n: ["a"] * (1 + n // 3), r"row 0 has 1 alternatives and 1 others .* \(row 3\)"),
        (lambda n: f"{PEOPLE[n]} was BORN in {PLACES[n]}", r"4 forget rows have an alternative equal to their answer"),
    ],
    ids=["missing", "empty", "not text", "another length", "the answer"],
)
def test_altpo_refuses_columns_that_do_not_serve(alternate: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        AltPO().prepare(workshop(variants_of(1), rows(alternate=alternate)))


def test_altpo_without_a_column_says_so_when_it_is_asked_for() -> None:
    with pytest.raises(DataError, match="4 of 4 forget rows have no alternative answer") as error:
        AltPO(alternates="column").prepare(workshop(variants_of(1)))
    assert "method.alternates=model" in str(error.value.hint)


@pytest.mark.parametrize("method", [AltPO(), BSS(), UnStar()], ids=lambda m: m.name)
def test_raw_texts_have_no_question_to_ask(method: Method) -> None:
    raw = [*rows(2), Example("forget:9", 9, text="Mira Solen was born in Tallinn.")]
    with pytest.raises(DataError, match=r"1 of 3 forget rows are raw text without a question \(row 9\)"):
        method.prepare(workshop(variants_of(1), raw))


def test_a_prompt_without_the_question_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"must contain \{question\}"):
        AltPO(prompt="Write something else.")


# BS-S


def test_bs_s_needs_for_beliefs_what_the_base_needs_for_forget_rows() -> None:
    needs = BSS(base={"name": "npo", "retain": "kl"}, num_beliefs=2).needs()
    assert needs.linked == {"belief0": "forget", "belief1": "forget"}
    assert needs.rows == {"belief0": "made", "belief1": "made"}
    base = NPO(retain="kl").needs()
    assert needs.references["belief1"] == base.references["forget"]
    assert needs.references["retain"] == base.references["retain"]
    assert needs.roles == base.roles


def test_bs_s_without_beliefs_is_its_base() -> None:
    for base in ({"name": "npo", "beta": 0.3}, {"name": "grad_diff"}, {"name": "idk_dpo"}):
        method = BSS(base=base, lambda_s=0, resample=2)
        assert method.needs() == build_method(base).needs()
        assert method.refresh_every is None


def test_bs_s_samples_n_responses_per_question_and_again_each_time() -> None:
    bench = workshop(variants_of(1))
    method = BSS(num_beliefs=2, resample=3, temperature=0.8)
    made, later = method.prepare(bench), method.refresh(bench, 3)
    assert method.refresh_every == 3
    assert list(made.rows) == ["belief0", "belief1"]
    for name in made.rows:
        (variant,) = made.rows[name]
        assert [example.prompt for example in variant] == [example.prompt for example in bench.examples]
    assert texts(made, "belief0") != texts(later, "belief0")
    assert {temperature for _, temperature, _ in bench.asked} == {0.8}
    assert [len(prompts) for prompts, _, _ in bench.asked] == [8, 8]


def test_bs_s_keeps_a_belief_that_stays_empty_and_says_so() -> None:
    bench = workshop(lambda prompts, t, s: ["" if PEOPLE[1] in prompt else "Yes." for prompt in prompts])
    made = BSS(num_beliefs=1).prepare(bench)
    assert texts(made, "belief0") == [["Yes.", "", "Yes.", "Yes."]]
    assert "kept empty after 3 tries: 1 (row 1)" in bench.notes[-1]
    dataset = bench.encode(made.rows["belief0"][0], "belief0")
    assert dataset.supervised()[1] == 1  # the end of the turn


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"name": "bs_s"}, "it is bs_s itself"),
        ({"name": "unstar"}, "does not read the forget answers"),
        ({"name": "alkn"}, "changes the weights after training"),
        ({"name": "iau"}, "decides train"),
        ({"name": "npoo"}, "unknown method 'npoo'"),
        ({"name": "npo", "betta": 1}, r"unknown key method\.base\.betta for npo"),
        ({"name": "npo", "beta": -1}, r"method\.base\.beta"),
        ({}, "no method given"),
    ],
    ids=lambda value: value.get("name", "none") if isinstance(value, dict) else "",
)
def test_bs_s_refuses_bases_that_beliefs_do_not_fit(base: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BSS(base=base)


def test_bs_s_refuses_a_base_with_tables_over_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradDiff, "prepare", lambda self, w: Provision(tables={"forget": {"x": np.zeros(3)}}))
    with pytest.raises(UsageError, match="a table of its own over the answers"):
        BSS().prepare(workshop(variants_of(1)))


def test_bs_s_records_every_key_of_its_base() -> None:
    method = BSS(base={"name": "npo"})
    assert method.base["beta"] == 0.1
    assert BSS.model_validate_json(method.model_dump_json()) == method
