"""UnStar, WHP and fine-tuning that forgets: rounds, labels and parts against the plainest computation there is."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from writers_room import PEOPLE, PLACES, TEMPLATE, TOKENIZER, encode, logits, modelled, rows, texts, workshop

from expunge.data.example import Example, prompt_text
from expunge.errors import DataError, UsageError
from expunge.methods.anchors import align, translate, translated
from expunge.methods.forgetting_sft import POSITIVE, ForgettingSFT
from expunge.methods.generate import contains
from expunge.methods.unstar import LIVE, ROWS, UnStar, subject
from expunge.methods.whp import LABELS, WHP

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

    bench = workshop(speak)
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

    bench, method = workshop(speak), UnStar(max_rounds=2, epochs_per_round=3)
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

    bench = workshop(speak)
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
    bench = workshop(lambda prompts, temperature, seed: [example.answer for example in rows()])
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
    bench = workshop(lambda prompts, temperature, seed: [example.answer for example in rows()])
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


def centre(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(-1, keepdim=True)


def test_whp_labels_are_the_formula_row_by_row() -> None:
    bench = modelled()
    labels = WHP(strength=5).prepare(bench).tables["forget"][LABELS]
    expected = []
    for item in bench.datasets["forget"].encoded:
        base, reinforced = logits(bench.model, item), logits(bench.reinforced, item)
        generic = base - 5 * (centre(reinforced) - centre(base)).relu()
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
        raised = (centre(reinforced) - centre(base)).relu()
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
