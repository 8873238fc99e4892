"""Cards of what the suite pistol alone reports: how far up the right tokens stand."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import PISTOL, PISTOL_PAPER

_AFTER_THE_TRUE_BEGINNING = (
    "whether the model would say it: each token is ranked after the true ones before it, and in a free answer one wrong"
    " token changes all that follow. The release ranks against a free answer, token by place, so its numbers do not"
    " compare"
)

CARDS: dict[str, Card] = {
    "<split>.mrr": Card(
        "How far up the answer's tokens stand among all tokens, each given the true tokens before it (mean reciprocal"
        " rank). Mean over rows, in (0, 1]; 1: every token is the likeliest.",
        "mean of `1 / rank_t` over the tokens of `y`, rank_t being one plus the number of tokens that are likelier than"
        " the t-th; without the end token; suite pistol",
        _AFTER_THE_TRUE_BEGINNING,
        f"{PISTOL_PAPER}, with ranks under teacher forcing",
        {"pistol": (*PISTOL, "retain")},
    ),
    "<split>.thr": Card(
        "How many of the answer's tokens are among the hundred likeliest, each given the true tokens before it (top hit"
        " rate). Mean over rows, in [0, 1].",
        "share of the tokens of `y` whose rank is at most 100; without the end token; suite pistol",
        _AFTER_THE_TRUE_BEGINNING,
        f"{PISTOL_PAPER}, with ranks under teacher forcing",
        {"pistol": (*PISTOL, "retain")},
    ),
}
