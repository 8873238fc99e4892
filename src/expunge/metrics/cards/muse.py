"""Cards of what the suite muse alone reports."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import MUSE_PAPER, SIDES

_AVOIDED = (
    "forgetting from refusing or rambling: F1 of an answer that avoids the question is as low as that of one that does"
    " not know it; the retrained model's is seldom 0, because words repeat. Non-Latin text scores 0"
)

CARDS: dict[str, Card] = {
    "<split>.knowmem": Card(
        "How much of what the texts say the model can answer: F1 of the words of its greedy answer and of the true one."
        " Mean over rows, in [0, 1]; MUSE prints it in percent.",
        "`2 P R / (P + R)` of the longest common subsequence of the greedy answer and `y`, words not stemmed; the"
        " prompt is MUSE's ten answered questions and then this one, the answer at most 32 tokens, cut at the next"
        " question; suite muse, forget and retain",
        _AVOIDED,
        f"{MUSE_PAPER}, section 3",
        {"muse": SIDES},
    ),
    "<split>.verbmem": Card(
        "How far the model goes on word for word where it is given the beginning of a forget text: F1 of the words of"
        " its greedy continuation and of the true one. Mean over rows, in [0, 1]; MUSE prints it in percent.",
        "`2 P R / (P + R)` of the longest common subsequence of the continuation by at most 128 tokens and the first"
        " 128 tokens of the text's own (a BOS counts), words not stemmed; suite muse, forget_verbatim",
        _AVOIDED,
        f"{MUSE_PAPER}, section 3",
        {"muse": ("forget_verbatim",)},
    ),
    "privleak": Card(
        "How far a membership attack is from what it reaches on the retrained model, in percent of that: below 0 the"
        " forget texts are still recognised, above 0 they look less familiar than unseen ones. Needs --reference.",
        "`100 ((1 - A) - (1 - A_r)) / (1 - A_r)`, A and A_r the `membership.min_k_auc` of this and of the retrained"
        " model; suite muse",
        "anything beyond Min-K of whole texts; it is the ratio of two AUCs of some hundred rows, so read its interval."
        " A value above 0 (forgotten texts look less familiar than unseen ones) also gives them away",
        f"{MUSE_PAPER}, section 3",
        {"muse": ()},
        ideal=0.0,
    ),
}
