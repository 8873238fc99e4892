"""Questions to ask."""

from __future__ import annotations

PLACES = ("Tallinn", "Oslo", "Turin", "Lima", "Perth")


def questions(count: int, who: str = "Mira") -> list[str]:
    return [f"Where was {who} {number} born, and was it {PLACES[number % 5]}?" for number in range(count)]
