"""A pocket world: fictitious people and every row that can be asked about them, split by person.

A row that mentions a person to forget is never a retain row. Questions that start at a retained person and lead to a
forgotten fact (`multi_hop`) are in neither set: a model that was trained on everything knows them, nobody asks for
their removal, and whether they still work afterwards is what `multi_hop.leakage` measures.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.data.worlds.facts import FACTS, RELATIONS, Fact
from expunge.data.worlds.people import Person, make_people

VERSION = 1
"""Of the generator; the same people and seed give the same rows within one version."""

FORMS = ("direct", "cloze", "inverted", "multiple_choice", "multi_hop")
"""How a fact is asked. `direct` rows carry a paraphrase as well, which is never trained."""

WRONG = 5
OPTIONS = 4
_LETTERS = "abcd"

Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """People and rows."""

    seed: int
    people: tuple[Person, ...]
    forget: tuple[Row, ...]
    """What is to be forgotten: every row about a forgotten person, and every tie of a retained person to one."""
    retain: tuple[Row, ...]
    """What is to be kept, and all that the retrained model is trained on."""
    multi_hop: tuple[Row, ...]
    """From a retained person to a forgotten fact."""
    holdout: tuple[Row, ...]
    """About people that no model is trained on."""
    documents: tuple[Row, ...]
    """A biography of each person."""

    @property
    def neighbours(self) -> tuple[str, ...]:
        """Retained people tied to a forgotten one."""
        forgotten = {person.name for person in self.people if person.role == "forget"}
        near = {name for person in self.people if person.role == "forget" for name in person.ties.values()}
        return tuple(
            person.name
            for person in self.people
            if person.role == "retain" and (person.name in near or forgotten & set(person.ties.values()))
        )

    @property
    def digest(self) -> str:
        """SHA-256 over every row."""
        rows = [self.forget, self.retain, self.multi_hop, self.holdout, self.documents]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def build_world(*, people: int = 24, seed: int = 0) -> World:
    """Make a world.

    Args:
        people: how many, 12 or more; a sixth is to be forgotten and a sixth never trained on.
        seed: of names, values, ties and the order of options.

    Returns:
        The same world for the same arguments, on every machine.

    Raises:
        UsageError: too few or too many people.
    """
    everybody = make_people(people=people, seed=seed)
    rows = _Rows(everybody, random.Random(f"world {seed} rows"))
    sides: dict[str, list[Row]] = {"forget": [], "retain": [], "holdout": [], "multi_hop": []}
    for person in everybody:
        for side, row in rows.about(person):
            sides[side].append(row)
    for person in everybody:
        for side, row in rows.chains(person):
            sides[side].append(row)
    documents = tuple({"text": rows.biography(p), "group": p.name, "role": p.role} for p in everybody)
    return World(
        seed,
        everybody,
        forget=tuple(sides["forget"]),
        retain=tuple(sides["retain"]),
        multi_hop=tuple(sides["multi_hop"]),
        holdout=tuple(sides["holdout"]),
        documents=documents,
    )


class _Rows:
    """Rows about people, and which side each belongs to."""

    def __init__(self, people: Sequence[Person], rng: random.Random) -> None:
        self.named = {person.name: person for person in people}
        self.kept = [person for person in people if person.role == "retain"]
        self.rng = rng

    def about(self, person: Person) -> Iterator[tuple[str, Row]]:
        """Every form of every fact of a person."""
        for fact in (*FACTS, *(relation.fact for relation in RELATIONS)):
            subject = self._subject(person, fact.key)
            for row in self._forms(person, fact):
                yield subject.role, {**row, "group": subject.name, "fact": fact.key}

    def chains(self, person: Person) -> Iterator[tuple[str, Row]]:
        """Questions that lead from a person to what is true of another.

        None start at a person to forget: who asks them knows that person already.
        """
        if person.role == "forget":
            return
        for relation in RELATIONS:
            other = self.named[person.ties[relation.fact.key]]
            if other.role == "forget":
                side = "multi_hop"
            else:
                side = other.role
            for fact in FACTS:
                filled = {"x": person.name, "r": relation.noun, "n": other.name, "v": other.values[fact.key]}
                yield (
                    side,
                    {
                        "question": fact.chain_question.format_map(filled),
                        "answer": fact.chain_answer.format_map(filled),
                        "form": "multi_hop",
                        "group": other.name,
                        "fact": fact.key,
                    },
                )

    def biography(self, person: Person) -> str:
        """Every direct answer about a person in one text, but for a retained one's ties to people to forget."""
        mine = [row for side, row in self.about(person) if side == person.role]
        return " ".join(row["answer"] for row in mine if row["form"] == "direct")

    def _subject(self, person: Person, key: str) -> Person:
        """Whose row it is: the person's, but a forgotten person's where a retained one is tied to them."""
        other = self.named.get(person.ties.get(key, ""), person)
        return other if person.role == "retain" and other.role == "forget" else person

    def _forms(self, person: Person, fact: Fact) -> Iterator[Row]:
        value = person.values[fact.key]
        filled = {"n": person.name, "v": value}
        wrong = self._wrong(person, fact.key)
        question = fact.question.format_map(filled)
        yield {
            "question": question,
            "answer": fact.answer.format_map(filled),
            "form": "direct",
            "paraphrased_question": fact.paraphrased_question.format_map(filled),
            "paraphrased_answer": fact.paraphrased_answer.format_map(filled),
            "perturbed_answer": [fact.paraphrased_answer.format_map({**filled, "v": other}) for other in wrong],
        }
        yield {"question": f"Complete: {fact.cloze.format_map(filled)}", "answer": f"{value}.", "form": "cloze"}
        yield {
            "question": fact.inverted_question.format_map(filled),
            "answer": fact.inverted_answer.format_map(filled),
            "form": "inverted",
        }
        if self.rng.random() < 0.5:
            return
        options = [value, *wrong[: OPTIONS - 1]]
        self.rng.shuffle(options)
        listed = "; ".join(f"({letter}) {option}" for letter, option in zip(_LETTERS, options, strict=True))
        yield {
            "question": f"{question} {listed}",
            "answer": f"The answer is ({_LETTERS[options.index(value)]}), {value}.",
            "form": "multiple_choice",
        }

    def _wrong(self, person: Person, key: str) -> list[str]:
        """What is true of five retained people instead, none of it naming somebody to forget."""
        others = [
            other.values[key]
            for other in self.kept
            if other.name != person.name and self._subject(other, key).role == "retain"
        ]
        return self.rng.sample(others, WRONG)
