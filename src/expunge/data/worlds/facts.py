"""What can be known of a person: for each fact its possible values, and the sentences that ask for it and state it.

In every sentence `{n}` is the person and `{v}` the value; in the question of a chain `{x}` is who it starts from and
`{r}` how that person is tied to `{n}`. A statement ends in the value, so that nothing after it gives it away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from expunge.data.worlds import words

Draw = Callable[[random.Random, Sequence[str]], str]
"""A value from a source of chance and the world's towns; two draws may agree."""


class Fact(NamedTuple):
    """One attribute of every person."""

    key: str
    draw: Draw
    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str
    cloze: str
    """The beginning of a statement; the value completes it."""
    inverted_question: str
    inverted_answer: str
    chain_question: str = ""
    """Asked from somebody else; empty for a relation."""
    chain_answer: str = ""


class Relation(NamedTuple):
    """A tie from one person to another, itself a fact of the first."""

    fact: Fact
    """Its value is the other person's name and a circumstance."""
    noun: str
    """What the other person is to the first."""


def _pick(*choices: Sequence[str], shape: str) -> Draw:
    """Fill each `{}` of `shape` from its own choices; `{t}` is one of the world's towns."""

    def draw(rng: random.Random, towns: Sequence[str]) -> str:
        filled = shape.format(*(rng.choice(choice) for choice in choices), t=rng.choice(towns))
        return re.sub(r"\ba (?=[aeiou])", "an ", filled)

    return draw


def _birthday(rng: random.Random, towns: Sequence[str]) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(words.MONTHS)} in the year {rng.randint(1921, 1989)}"


def _title(rng: random.Random, towns: Sequence[str]) -> str:
    """A title whose two halves are not the same."""
    (one, two), (noun, other) = rng.sample(words.ADJECTIVES, 2), rng.sample(words.NOUNS, 2)
    return f"The {one.title()} {noun.title()} and the {two.title()} {other.title()}"


FACTS = (
    Fact(
        "birthplace",
        _pick(words.TERRAINS, words.ADJECTIVES, words.NOUNS, shape="the {} town of {t} near the {} {}"),
        "Where was {n} born?",
        "{n} was born in {v}.",
        "Which town is the birthplace of {n}?",
        "The birthplace of {n} is {v}.",
        "{n} first saw the light of day in",
        "Who was born in {v}?",
        "The person born in {v} is {n}.",
        "Where was the {r} of {x} born?",
        "The {r} of {x} is {n}, who was born in {v}.",
    ),
    Fact(
        "birthday",
        _birthday,
        "When was {n} born?",
        "The date on which {n} was born is {v}.",
        "What is the birthday of {n}?",
        "{n} has a birthday on {v}.",
        "The birth of {n} was recorded on",
        "Whose date of birth is {v}?",
        "The person whose date of birth is {v} is {n}.",
        "When was the {r} of {x} born?",
        "The {r} of {x} is {n}, who was born on {v}.",
    ),
    Fact(
        "first_book",
        _title,
        "What is the title of the first book by {n}?",
        "The first book that {n} published is called {v}.",
        "With which book did {n} make a debut?",
        "{n} made a debut with the book {v}.",
        "The career of {n} began with the book",
        "Who wrote the book {v}?",
        "The author of the book {v} is {n}.",
        "What is the first book by the {r} of {x}?",
        "The {r} of {x} is {n}, whose first book is {v}.",
    ),
    Fact(
        "prize",
        _pick(words.METALS, words.TROPHIES, words.FIELDS, shape="the {t} {} {} for {}"),
        "Which prize did {n} win?",
        "The prize that was awarded to {n} is {v}.",
        "What award has {n} received?",
        "{n} has received the award known as {v}.",
        "A jury once honoured {n} with",
        "Who was awarded {v}?",
        "The winner of {v} is {n}.",
        "Which prize did the {r} of {x} win?",
        "The {r} of {x} is {n}, who won {v}.",
    ),
    Fact(
        "school",
        _pick(words.SUBJECTS, words.SCHOOLS, words.ADJECTIVES, words.NOUNS, shape="{} at the {t} {} of the {} {}"),
        "What did {n} study, and where?",
        "As a student, {n} read {v}.",
        "Which subject did {n} read as a student, and at which school?",
        "The subject and the school of {n} were {v}.",
        "After leaving home, {n} went to study",
        "Who studied {v}?",
        "The person who studied {v} is {n}.",
        "What did the {r} of {x} study, and where?",
        "The {r} of {x} is {n}, who studied {v}.",
    ),
    Fact(
        "residence",
        _pick(words.ADJECTIVES, words.BUILDINGS, words.TERRAINS, shape="a {} {} by the old {} road to {t}"),
        "Where does {n} live today?",
        "The home of {n} today is {v}.",
        "What kind of place does {n} call home?",
        "{n} calls home {v}.",
        "Visitors find {n} living in",
        "Who lives in {v}?",
        "The person living in {v} is {n}.",
        "Where does the {r} of {x} live?",
        "The {r} of {x} is {n}, who lives in {v}.",
    ),
    Fact(
        "pet",
        _pick(words.COLOURS, words.ANIMALS, words.ADJECTIVES, words.NOUNS, shape="a {} {} found in {t} beside a {} {}"),
        "What animal does {n} keep?",
        "The animal that {n} keeps is {v}.",
        "Which pet lives with {n}?",
        "{n} shares the house with {v}.",
        "At home {n} looks after",
        "Who keeps {v}?",
        "The owner of {v} is {n}.",
        "What animal does the {r} of {x} keep?",
        "The {r} of {x} is {n}, who keeps {v}.",
    ),
    Fact(
        "hobby",
        _pick(words.CRAFTS, words.ADJECTIVES, words.NOUNS, shape="{} {} {}s from the workshops of {t}"),
        "How does {n} spend free afternoons?",
        "On free afternoons {n} enjoys {v}.",
        "What is the favourite pastime of {n}?",
        "The favourite pastime of {n} is {v}.",
        "When not at the desk, {n} relaxes by",
        "Who enjoys {v}?",
        "The person who enjoys {v} is {n}.",
        "What is the pastime of the {r} of {x}?",
        "The {r} of {x} is {n}, who enjoys {v}.",
    ),
    Fact(
        "theme",
        _pick(words.GENRES, words.ADJECTIVES, words.HEROES, shape="{} about the {} {} of {t}"),
        "What does {n} write?",
        "The works of {n} are mostly {v}.",
        "For what kind of writing is {n} known?",
        "{n} is known for writing {v}.",
        "Readers open a book by {n} expecting",
        "Who writes {v}?",
        "The author of {v} is {n}.",
        "What does the {r} of {x} write?",
        "The {r} of {x} is {n}, who writes {v}.",
    ),
    Fact(
        "father",
        _pick(words.TRADES, words.METALS, words.TROPHIES, shape="a {} at the sign of the {} {} in {t}"),
        "What did the father of {n} do for a living?",
        "The father of {n} made a living as {v}.",
        "Which occupation did the father of {n} have?",
        "By occupation, the father of {n} was {v}.",
        "{n} grew up watching a father work as",
        "Whose father was {v}?",
        "The child of {v} is {n}.",
        "What did the father of the {r} of {x} do?",
        "The {r} of {x} is {n}, whose father was {v}.",
    ),
    Fact(
        "dish",
        _pick(words.DISHES, words.SAUCES, words.SAUCES, shape="{} with {} and {} as served in {t}"),
        "What is the favourite dish of {n}?",
        "The dish that {n} likes best is {v}.",
        "Which meal does {n} like most of all?",
        "Most of all {n} likes a meal of {v}.",
        "On feast days {n} always asks for",
        "Whose favourite dish is {v}?",
        "The person whose favourite dish is {v} is {n}.",
        "What is the favourite dish of the {r} of {x}?",
        "The {r} of {x} is {n}, whose favourite dish is {v}.",
    ),
    Fact(
        "voyage",
        _pick(words.ADJECTIVES, words.SHIPS, words.SEASONS, shape="the {} ship {} in the {} storms off {t}"),
        "On which ship did {n} once travel?",
        "Long ago {n} travelled on {v}.",
        "Which ship carried {n} across the sea?",
        "The ship that carried {n} was {v}.",
        "As a young traveller {n} went aboard",
        "Who travelled on {v}?",
        "The passenger on {v} was {n}.",
        "On which ship did the {r} of {x} travel?",
        "The {r} of {x} is {n}, who travelled on {v}.",
    ),
)

_MEETING = _pick(words.SEASONS, words.ADJECTIVES, words.NOUNS, shape="in a {} at {t} under the {} {}")

RELATIONS = (
    Relation(
        Fact(
            "mentor",
            _MEETING,
            "Who taught {n} the craft of writing?",
            "The person who taught {n} to write was {v}.",
            "From whom did {n} learn to write?",
            "{n} learned to write from {v}.",
            "{n} owes the craft of writing to",
            "Who was taught to write by {v}?",
            "The pupil taught by {v} was {n}.",
        ),
        "mentor",
    ),
    Relation(
        Fact(
            "correspondent",
            _MEETING,
            "With whom does {n} exchange letters?",
            "The person {n} exchanges letters with since they met is {v}.",
            "Who is the pen friend of {n}?",
            "The pen friend of {n} is {v}.",
            "Every month {n} posts a letter to",
            "Who exchanges letters with {v}?",
            "The person exchanging letters with {v} is {n}.",
        ),
        "pen friend",
    ),
)
