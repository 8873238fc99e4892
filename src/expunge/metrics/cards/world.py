"""Cards of what the suite world alone reports."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import IN_A_WORLD

_SHARES = (
    "how much there was to lose: both are shares of what the starting model had. A model that is broken everywhere"
    " leaks nothing; read retention next to leakage"
)
_DEPTH = (
    "whether the forgetting went far: a model that lost a tenth of every form scores 0. Other forms of a forget set"
    " count although most of them were unlearned as well (in a world all but the paraphrased and multi-hop ones);"
    " probability of a form includes its fixed words, which any model guesses"
)

CARDS: dict[str, Card] = {
    "multi_hop.leakage": Card(
        "How much of a forgotten fact still comes out by a detour that starts at somebody kept: what is left of the"
        " starting model's extraction strength there. From 0; 1: all of it. Needs the starting run.",
        "mean `extraction_strength` of `forget_multi_hop` after unlearning, over that of the starting model",
        _SHARES,
        "ours; for detours see ORT, arXiv 2506.07795",
        IN_A_WORLD,
    ),
    "neighbours.retention": Card(
        "How much of what is known about kept people who are tied to a forgotten one is left: the share of the starting"
        " model's extraction strength. From 0; 1: all of it. Needs the starting run.",
        "mean `extraction_strength` of `neighbours` after unlearning, over that of the starting model",
        _SHARES,
        "ours",
        IN_A_WORLD,
        ideal=1.0,
    ),
    "forms.dependence_index": Card(
        "Whether forgetting depends on how a question is put: how much less the other five forms fell than the trained"
        " one. In [0, 1]; 0: every form fell as far. Needs the starting run.",
        "`1 - mean_f min(drop_f / drop_direct, 1)` over the five other forms f of forget questions; a form's drop is"
        " `1 - after / before` of its mean `probability`, before in the starting model, clipped to [0, 1]",
        _DEPTH,
        "the comparison of forms: ORT, arXiv 2506.07795; the index over them is ours",
        IN_A_WORLD,
    ),
}
