"""Methods whose rows or labels a model makes: what is asked, what is refused, what comes of it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from expunge.data.encode import Dataset, encode_all
from expunge.data.example import Example, Turn, prompt_text
from expunge.data.template import build_template
from expunge.errors import DataError, UsageError
from expunge.methods.altpo import AltPO
from expunge.methods.anchors import align, translate, translated
from expunge.methods.base import Method
from expunge.methods.bs_s import BSS
from expunge.methods.forgetting_sft import POSITIVE, ForgettingSFT
from expunge.methods.generate import contains, cut, instructed, matches, same_text, same_word, write
from expunge.methods.grad_diff import GradDiff
from expunge.methods.npo import NPO
from expunge.methods.select import build_method
from expunge.methods.unstar import LIVE, ROWS, UnStar, subject
from expunge.methods.whp import LABELS, WHP
from expunge.methods.workshop import Provision
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEMPLATE = build_template("auto", TOKENIZER)
PLACES = ("Tallinn", "Lisbon", "Oslo", "Quito", "Hanoi", "Accra")
PEOPLE = ("Mira Solen", "Idris Vane", "Ada Harbour", "Noel North", "Ines Quiet", "Otto Light")


def rows(count: int = 4, **extra: Any) -> list[Example]:
    return [
        Example(
            f"forget:{n}",
            n,
            turns=(
                Turn("user", f"Where was {PEOPLE[n]} born?"),
                Turn("assistant", f"{PEOPLE[n]} was born in {PLACES[n]}."),
            ),
            group=PEOPLE[n],
            extra={key: value(n) if callable(value) else value for key, value in extra.items()},
        )
        for n in range(count)
    ]


def encode(examples: Sequence[Example], role: str) -> Dataset:
    return encode_all(examples, TEMPLATE, role=role, max_length=256, on_truncate="keep", supervise="last")


Speaker = Callable[[list[str], float, int], list[str]]


@dataclass
class Bench:
    """A workshop whose model says what a function says."""

    speak: Speaker
    examples: list[Example] = field(default_factory=rows)
    seed: int = 7
    notes: list[str] = field(default_factory=list)
    asked: list[tuple[list[str], float, int]] = field(default_factory=list)
    tokenizer: Any = TOKENIZER
    token_budget: int = 128
    model: Any = None
    reinforced: Any = None

    def __post_init__(self) -> None:
        self.datasets = {"forget": encode(self.examples, "forget")}

    def sample(self, prompts: Any, *, temperature: float, max_new_tokens: int, seed: int, model: Any = None) -> Any:
        texts = [turns[-1].content for turns in prompts]
        self.asked.append((texts, temperature, seed))
        return self.speak(texts, temperature, seed)

    def encode(self, examples: Sequence[Example], role: str) -> Dataset:
        return encode(examples, role)

    def note(self, text: str) -> None:
        self.notes.append(text)


def texts(provision: Provision, name: str) -> list[list[str]]:
    return [[example.answer for example in variant] for variant in provision.rows[name]]


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


def variants_of(count: int) -> Speaker:
    return lambda prompts, temperature, seed: [f"In {PLACES[(seed + n) % 6]}, {seed}." for n in range(len(prompts))]


def test_altpo_makes_k_alternatives_per_question() -> None:
    bench = Bench(variants_of(3))
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

    bench = Bench(stubborn)
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

    one = AltPO().prepare(Bench(silent, rows(alternate=lambda n: f"In Rome, {n}.")))
    assert texts(one, "alternate") == [[f"In Rome, {n}." for n in range(4)]]
    bench = Bench(silent, rows(alternate=lambda n: [f"In Rome, {n}.", f"In Bern, {n}."]))
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
        AltPO().prepare(Bench(variants_of(1), rows(alternate=alternate)))


def test_altpo_without_a_column_says_so_when_it_is_asked_for() -> None:
    with pytest.raises(DataError, match="4 of 4 forget rows have no alternative answer") as error:
        AltPO(alternates="column").prepare(Bench(variants_of(1)))
    assert "method.alternates=model" in str(error.value.hint)


@pytest.mark.parametrize("method", [AltPO(), BSS(), UnStar()], ids=lambda m: m.name)
def test_raw_texts_have_no_question_to_ask(method: Method) -> None:
    raw = [*rows(2), Example("forget:9", 9, text="Mira Solen was born in Tallinn.")]
    with pytest.raises(DataError, match=r"1 of 3 forget rows are raw text without a question \(row 9\)"):
        method.prepare(Bench(variants_of(1), raw))


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
    bench = Bench(variants_of(1))
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
    bench = Bench(lambda prompts, t, s: ["" if PEOPLE[1] in prompt else "Yes." for prompt in prompts])
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
        BSS().prepare(Bench(variants_of(1)))


def test_bs_s_records_every_key_of_its_base() -> None:
    method = BSS(base={"name": "npo"})
    assert method.base["beta"] == 0.1
    assert BSS.model_validate_json(method.model_dump_json()) == method


# UnStar


@dataclass
class Pupil:
    """Answers rightly until it has been taught wrong `rounds` times."""

    rounds: int
    taught: int = 0

    def __call__(self, examples: Sequence[Example]) -> list[str]:
        return [example.answer if self.taught < self.rounds else "It was in Rome." for example in examples]


def liar(prompts: Sequence[str], *, temperature: float, max_new_tokens: int, seed: int) -> list[str]:
    return [f"Because the ship sailed to Rome, {seed}." for _ in prompts]


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_unstar_ends_when_every_answer_is_gone(rounds: int) -> None:
    method, pupil, examples = UnStar(max_rounds=9), Pupil(rounds), rows()
    done = 0
    for number in range(method.max_rounds):
        result = method.work(examples, range(len(examples)), pupil, liar, seed=number)
        unlearned = set(range(4)) - set(result.pending)
        assert len(result.pending) == len(set(result.pending))
        assert not unlearned & set(result.pending)
        assert {place for place, text in enumerate(result.anti) if text is not None} == set(result.pending)
        if not result.pending:
            break
        pupil.taught += 1
        done += 1
    assert done == rounds


def test_unstar_trains_only_questions_that_are_still_answered() -> None:
    examples = rows()

    def speak(prompts: list[str], temperature: float, seed: int) -> list[str]:
        if temperature == 0:
            return [examples[n].answer if n in (0, 3) else "In Rome." for n in range(4)]
        return [f"They say Rome, number {seed}." for _ in prompts]

    bench = Bench(speak)
    made = UnStar().prepare(bench)
    (anti,) = texts(made, ROWS)
    assert [text.startswith("They say Rome") for text in anti] == [True, False, False, True]
    dataset = bench.encode(made.rows[ROWS][0], ROWS)
    live = np.split(made.tables[ROWS][LIVE], np.cumsum(dataset.supervised())[:-1])
    assert [bool(part.all()) for part in live] == [True, False, False, True]
    assert not live[1].any()
    assert "2 of 4 questions are still answered; 2 anti-samples" in bench.notes[-1]


def test_no_anti_sample_gives_the_right_answer_away() -> None:
    examples = rows()

    def honest(prompts: Sequence[str], *, temperature: float, max_new_tokens: int, seed: int) -> list[str]:
        # Half of what it writes says the truth, in capitals.
        return [PLACES[n % 4].upper() if (seed + n) % 2 else "Rome, as everybody knows." for n in range(len(prompts))]

    for seed in range(12):
        result = UnStar(tries=2).work(examples, range(4), Pupil(9), honest, seed=seed)
        assert result.pending == [0, 1, 2, 3]
        for example, text in zip(examples, result.anti, strict=True):
            assert text is None or not contains(example.answer, text, question=prompt_text(example))
    never = UnStar(tries=2).work(
        examples, range(4), Pupil(9), lambda prompts, **keys: [", ".join(PLACES)] * len(prompts), seed=1
    )
    assert never.anti == [None] * 4
    assert never.wrong.refused == {"with the right answer": 8}


def test_unstar_stops_after_its_last_round() -> None:
    examples = rows()

    def speak(prompts: list[str], temperature: float, seed: int) -> list[str]:
        return [example.answer for example in examples] if temperature == 0 else ["Rome."] * len(prompts)

    bench, method = Bench(speak), UnStar(max_rounds=2, epochs_per_round=3)
    assert method.prepare(bench).tables[ROWS][LIVE].all()
    assert method.refresh(bench, 3).tables[ROWS][LIVE].all()
    writing = len([temperature for _, temperature, _ in bench.asked if temperature > 0])
    assert not method.refresh(bench, 6).tables[ROWS][LIVE].any()
    assert len([temperature for _, temperature, _ in bench.asked if temperature > 0]) == writing
    assert "4 of 4 questions are still answered; max_rounds=2 is over" in bench.notes[-1]


def test_paraphrases_are_new_and_name_what_the_question_is_about() -> None:
    def speak(prompts: list[str], temperature: float, seed: int) -> list[str]:
        if temperature == 0:
            return ["nothing"] * len(prompts)
        names = [next(name for name in PEOPLE if name in prompt) for prompt in prompts]
        answers = {
            PEOPLE[0]: f"In which city was {PEOPLE[0]} born?",
            PEOPLE[1]: "In which city was he born?",
            PEOPLE[2]: f"where was {PEOPLE[2]} BORN",
            PEOPLE[3]: "",
        }
        return [answers[name] for name in names]

    bench = Bench(speak)
    made = UnStar(paraphrases=2, tries=2).prepare(bench)
    prompts = [[prompt_text(example) for example in variant] for variant in made.rows[ROWS]]
    assert prompts[1][0] == f"In which city was {PEOPLE[0]} born?"
    asked = next(prompts for prompts, temperature, _ in bench.asked if temperature == 0)
    assert len(asked) == len(set(asked)) == 5
    assert all(any(name in text for name in PEOPLE) for text in asked)
    assert bench.notes[0].endswith("1 of 4 written, thrown away: 2 asked already, 2 empty, 2 without the subject")
    assert bench.notes[1].startswith("unstar, round 1: paraphrases 2 of 2: 0 of 4 written")


def test_what_a_question_is_about() -> None:
    (example,) = rows(1)
    assert subject(example) == "Mira Solen"
    assert subject(replace(example, extra={"subject": "Solen"})) == "Solen"
    assert subject(replace(example, group="17")) is None


@pytest.fixture
def writers() -> Iterator[types.ModuleType]:
    module = types.ModuleType("some_writers")
    module.liar = liar  # type: ignore[attr-defined]
    module.few = lambda prompts, **keys: ["one"]  # type: ignore[attr-defined]
    module.constant = 3  # type: ignore[attr-defined]
    sys.modules["some_writers"] = module
    yield module
    del sys.modules["some_writers"]


def test_another_generator_writes(writers: types.ModuleType) -> None:
    bench = Bench(lambda prompts, temperature, seed: [example.answer for example in rows()])
    made = UnStar(generator="some_writers:liar").prepare(bench)
    assert all("the ship sailed to Rome" in text for text in texts(made, ROWS)[0])
    assert {temperature for _, temperature, _ in bench.asked} == {0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some_writers:few", "gave 1 texts for 4 prompts"),
        ("some_writers:constant", "is not callable"),
        ("some_writers:nobody", "cannot be imported"),
        ("no_such_module:liar", "cannot be imported"),
    ],
)
def test_a_generator_that_does_not_serve_is_said(name: str, message: str, writers: types.ModuleType) -> None:
    bench = Bench(lambda prompts, temperature, seed: [example.answer for example in rows()])
    with pytest.raises(UsageError, match=message):
        UnStar(generator=name).prepare(bench)


def test_a_generator_has_a_module_and_a_name() -> None:
    for wrong in ("liar", ":liar", "module:"):
        with pytest.raises(ValidationError, match="module:callable"):
            UnStar(generator=wrong)


# WHP


ANCHORS = {"Mira Solen": "Ann", "Tallinn": "the capital of a country far away"}


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def test_anchors_are_whole_words_and_the_longest_wins() -> None:
    anchors = {"Ann": "Bea", "Ann Lee": "Cleo"}
    assert translate("Ann Lee met Ann, Annabel and Ann.", anchors).text == "Cleo met Bea, Annabel and Bea."
    assert translate("nobody", {}).spans == ()


def test_every_token_outside_anchors_is_aligned_with_the_one_that_ends_where_it_does() -> None:
    text = "Where was Mira Solen born? Mira Solen was born in Tallinn, not in Oslo."
    one, two = ids(text), ids(translate(text, ANCHORS).text)
    found = align(TOKENIZER, one, two, ANCHORS, row=0)
    assert len(one) != len(two)
    decode = TOKENIZER.decode
    inside = 0
    for place, other in enumerate(found.places):
        prefix = decode(one[: place + 1])
        if other is None:
            inside += 1
            assert any(anchor.startswith(tail) for anchor in ANCHORS for tail in tails(prefix))
            continue
        assert translate(prefix, ANCHORS).text == decode(two[: other + 1])
    assert inside > 0
    assert found.places[-1] == len(two) - 1


def tails(text: str) -> list[str]:
    return [text[-n:] for n in range(1, min(len(text), 12) + 1)]


def test_a_generic_name_is_penalised_after_the_first_mention_only() -> None:
    text = "Mira Solen and Mira Solen again"
    one, two = ids(text), ids(translate(text, ANCHORS).text)
    found = align(TOKENIZER, one, two, ANCHORS, row=0)
    first = len("Mira Solen")
    starts = {two[0], ids(" Ann")[0]}
    for place in range(len(one)):
        before = len(TOKENIZER.decode(one[: place + 1])) < first
        assert found.repeated[place] == (frozenset() if before else frozenset(starts))


def test_texts_that_do_not_survive_their_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="forget row 5: with its anchors replaced"):
        align(TOKENIZER, ids("Mira Solen"), ids("Somebody else"), ANCHORS, row=5)


class Modelled(Bench):
    """A workshop with real tiny models."""

    def fine_tuned(self, dataset: Any, **keys: Any) -> Any:
        self.trained_on = dataset
        return self.reinforced

    def passes(self, dataset: Dataset, *, model: Any = None, positions: Any = "predict", hidden: Any = None) -> Any:
        from expunge.data.collate import collate, pack
        from expunge.models.score import score

        for members in pack(dataset.lengths(), self.token_budget):
            batch = collate(dataset, members, pad_id=0, positions=positions)
            with torch.no_grad():
                yield batch, score(model or self.model, batch)

    def per_position(self, dataset: Dataset, parts: Any, *, positions: Any = "predict") -> np.ndarray:
        from expunge.models.reference_table import empty_table, scatter

        offsets = empty_table(dataset, positions=positions).offsets
        sink = np.zeros(int(offsets[-1]), dtype=np.float32)
        for batch, values in parts:
            scatter(sink, values.numpy(), batch.rows.tolist(), offsets)
        return sink


def modelled(examples: list[Example] | None = None, **keys: Any) -> Modelled:
    model, reinforced = tiny_llama(len(TOKENIZER), seed=1), tiny_llama(len(TOKENIZER), seed=2)
    return Modelled(variants_of(1), examples or rows(), model=model, reinforced=reinforced, **keys)


def logits(model: Any, encoded: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor(encoded.input_ids[None].astype(np.int64))).logits[0]
    return found


def test_whp_labels_are_the_formula_row_by_row() -> None:
    bench = modelled()
    labels = WHP(strength=5).prepare(bench).tables["forget"][LABELS]
    expected = []
    for item in bench.datasets["forget"].encoded:
        base, reinforced = logits(bench.model, item), logits(bench.reinforced, item)
        generic = base - 5 * (reinforced.log_softmax(-1) - base.log_softmax(-1)).relu()
        expected += generic[np.flatnonzero(item.supervised) - 1].argmax(-1).tolist()
    assert labels.tolist() == expected
    assert bench.trained_on is bench.datasets["forget"]
    assert WHP(strength=5).prepare(modelled(token_budget=9999)).tables["forget"][LABELS].tolist() == expected


def test_whp_without_strength_or_reinforcement_keeps_the_starting_models_predictions() -> None:
    bench = modelled()
    own = WHP(strength=0).prepare(bench).tables["forget"][LABELS]
    expected = [
        value
        for item in bench.datasets["forget"].encoded
        for value in logits(bench.model, item)[np.flatnonzero(item.supervised) - 1].argmax(-1).tolist()
    ]
    assert own.tolist() == expected
    assert "0 are not what the starting model says; none: raise" in bench.notes[-1]
    bench.reinforced = bench.model
    assert WHP(strength=5).prepare(bench).tables["forget"][LABELS].tolist() == expected


def test_whp_labels_come_from_the_translation_at_aligned_positions() -> None:
    bench = modelled()
    method = WHP(strength=5, anchors=ANCHORS, repeat_penalty=5)
    labels = method.prepare(bench).tables["forget"][LABELS]
    expected: list[int] = []
    for example, item in zip(bench.examples, bench.datasets["forget"].encoded, strict=True):
        other = TEMPLATE.encode(translated(example, ANCHORS))
        aligned = align(TOKENIZER, item.input_ids.tolist(), other.input_ids.tolist(), ANCHORS, row=0)
        base, reinforced, moved = logits(bench.model, item), logits(bench.reinforced, item), logits(bench.model, other)
        raised = (reinforced.log_softmax(-1) - base.log_softmax(-1)).relu()
        for position in np.flatnonzero(item.supervised) - 1:
            place = aligned.places[position]
            if place is None:
                expected.append(-1)
                continue
            generic = moved[place] - 5 * raised[position]
            for token in aligned.repeated[position]:
                generic[token] -= 5
            expected.append(int(generic.argmax()))
    assert labels.tolist() == expected
    assert -1 in expected
    assert f"{expected.count(-1)} lie inside anchors" in bench.notes[-1]


def test_whp_says_which_anchors_and_tables_do_not_serve() -> None:
    with pytest.raises(DataError, match="no forget row mentions any of the 1 anchors"):
        WHP(anchors={"Nobody": "Somebody"}).prepare(modelled())
    for wrong in ({"Mira": "Mira"}, {"Mira": " "}, {"": "x"}):
        with pytest.raises(ValidationError, match="has no generic expression"):
            WHP(anchors=wrong)
    with pytest.raises(UsageError, match="GB of soft labels"):
        WHP(labels="soft", max_table_gb=1e-6).prepare(modelled())


# Fine-tuning that forgets


def test_forgetting_parts_the_tokens_of_both_sets_by_what_the_reference_improved() -> None:
    bench = modelled()
    bench.datasets["retain"] = encode([replace(example, id=f"r{example.row}") for example in rows(6)[4:]], "retain")
    method = ForgettingSFT(rho=0.6, reference_share=0.5)
    tables = method.prepare(bench).tables
    assert len(bench.trained_on.encoded) == 1
    quality = []
    for role in ("forget", "retain"):
        for item in bench.datasets[role].encoded:
            at = np.flatnonzero(item.supervised)
            gain = logits(bench.reinforced, item).log_softmax(-1) - logits(bench.model, item).log_softmax(-1)
            quality += gain[at - 1, item.input_ids[at].astype(np.int64)].tolist()
    positive = np.concatenate([tables[role][POSITIVE] for role in ("forget", "retain")])
    assert len(positive) == len(quality)
    assert positive.sum() == int(0.6 * len(quality))
    best = np.argsort(-np.array(quality))[: positive.sum()]
    assert set(np.flatnonzero(positive)) == set(best)
    assert "negative are" in bench.notes[-1]


def test_a_ramp_that_would_learn_what_it_unlearns_is_refused() -> None:
    with pytest.raises(ValidationError, match="t_min must not be above t_max"):
        ForgettingSFT(t_min=0.5)
