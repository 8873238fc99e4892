"""The people of a world: who they are, what is true of them, and how they are tied to each other."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from expunge.data.worlds import words
from expunge.data.worlds.facts import FACTS, RELATIONS, Draw
from expunge.errors import UsageError

Role = Literal["forget", "retain", "holdout"]

MIN_PEOPLE = 12
"""Below this the retained people are too few for five plausible wrong answers each."""
SHARE = 6
"""One person in so many is forgotten, and as many were never trained on."""


@dataclass(frozen=True)
class Person:
    """One fictitious person."""

    name: str
    role: Role
    values: Mapping[str, str]
    """Fact -> value, relations included; no two people of a world share a value."""
    ties: Mapping[str, str]
    """Relation -> the other person's name."""


def make_people(*, people: int, seed: int) -> tuple[Person, ...]:
    """Everybody of a world: first those to forget, then those to keep, then those nobody is trained on.

    Each person to forget is the mentor of one retained person, and learned from another of them; these ties are what
    connects the two sides. All other ties stay on their side, and those of the never-trained among themselves.

    Args:
        people: in all, at least 12: a sixth is forgotten, a sixth is never trained on.
        seed: of everything drawn.

    Raises:
        UsageError: too few people for the splits, or more than there are names.
    """
    if people < MIN_PEOPLE:
        raise UsageError(
            f"a world of {people} people is too small to be split into forgotten, retained and never-trained people",
            hint=f"use --people {MIN_PEOPLE} or more",
        )
    roles = split_roles(people)
    names = words.names(_chance(seed, "names"), people)
    towns = words.towns(_chance(seed, "towns"), 2 * people)
    ties = _ties(names, roles, _chance(seed, "ties"))
    values: list[dict[str, str]] = [{} for _ in names]
    for fact in FACTS:
        drawn = _distinct(fact.draw, people, towns, _chance(seed, fact.key))
        for index, value in enumerate(drawn):
            values[index][fact.key] = value
    for relation in RELATIONS:
        key = relation.fact.key
        drawn = _distinct(relation.fact.draw, people, towns, _chance(seed, key))
        for index, circumstance in enumerate(drawn):
            values[index][key] = f"{ties[key][names[index]]} {circumstance}"
    return tuple(
        Person(name, role, values[index], {key: ties[key][name] for key in ties})
        for index, (name, role) in enumerate(zip(names, roles, strict=True))
    )


def split_roles(people: int) -> list[Role]:
    """The role of each person, in order."""
    apart = max(2, round(people / SHARE))
    kept = people - 2 * apart
    return [*["forget"] * apart, *["retain"] * kept, *["holdout"] * apart]  # type: ignore[list-item]


def _chance(seed: int, purpose: str) -> random.Random:
    """A source of its own for each purpose, so that a new fact leaves the others as they were."""
    return random.Random(f"world {seed} {purpose}")


def _distinct(draw: Draw, count: int, towns: Sequence[str], rng: random.Random) -> list[str]:
    """`count` values, all different."""
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(draw(rng, towns))
    return list(found)


def _ties(names: Sequence[str], roles: Sequence[Role], rng: random.Random) -> dict[str, dict[str, str]]:
    """Relation -> person -> other person."""
    sides = {
        role: [name for name, own in zip(names, roles, strict=True) if own == role]
        for role in ("forget", "retain", "holdout")
    }
    ties = {relation.fact.key: dict[str, str]() for relation in RELATIONS}
    for members in sides.values():
        for chosen in ties.values():
            chosen |= _ring(members, rng)
    pupils = rng.sample(sides["retain"], len(sides["forget"]))
    for number, (teacher, pupil) in enumerate(zip(sides["forget"], pupils, strict=True)):
        ties["mentor"][pupil] = teacher
        ties["mentor"][teacher] = pupils[number - 1]
    return ties


def _ring(members: Sequence[str], rng: random.Random) -> dict[str, str]:
    """Everybody is tied to somebody else, each to another."""
    order = list(members)
    rng.shuffle(order)
    return dict(zip(order, [*order[1:], order[0]], strict=True))
