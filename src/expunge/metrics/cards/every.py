"""All cards."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards import (
    answers,
    fluency,
    leak,
    lume,
    membership,
    multiple_choice,
    muse,
    people,
    pistol,
    refusal,
    whole,
    world,
)

_MODULES = (answers, muse, lume, pistol, whole, membership, leak, world, refusal, multiple_choice, people, fluency)

CARDS: dict[str, Card] = {name: card for module in _MODULES for name, card in module.CARDS.items()}
"""Name in the registry -> card."""
