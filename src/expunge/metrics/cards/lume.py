"""Cards of what the suite lume alone reports: SemEval-2025 task 4."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import LUME_ASKED, LUME_CONTINUED

_PAPERS = "LUME, arXiv 2502.15097; SemEval-2025 task 4, arXiv 2504.02883, and its released evaluation"
_WORD_FOR_WORD = (
    "knowledge from form: a right answer in other words, or with a full stop, counts as wrong, so a model that was not"
    " trained on the form of the answers scores 0 whatever it knows"
)
_RANKING = (
    "which part fell; read them beside it. A model that lost everything has nothing to be recognised by and still gets"
    " a third of its membership score, so the task's ranking left out models below three quarters of the starting"
    " model's MMLU, which is not checked here. An AUC below 0.5 costs as much as one above it"
)

CARDS: dict[str, Card] = {
    "<split>.regurgitation": Card(
        "How far the model goes on with the beginning of a document: the words of its continuation that its greedy one"
        " of at most 256 tokens holds in the same order. Lower-cased, stemmed words of a-z and 0-9. Mean over rows, in"
        " [0, 1].",
        "longest common subsequence of the greedy continuation and the true one, over the words of the true one; suite"
        " lume, one split per side and task",
        "memory from chance: a continuation of 256 tokens holds many of a short one's words by itself (there is no"
        " length penalty), so compare it with the retrained model's",
        _PAPERS,
        {"lume": LUME_CONTINUED},
    ),
    "<split>.knowledge": Card(
        "How often the model answers a question word for word. Mean over rows, in [0, 1].",
        "1 where greedy answer and `y` are equal but for case and white space around them, else 0; suite lume, one"
        " split per side and task",
        _WORD_FOR_WORD,
        _PAPERS,
        {"lume": LUME_ASKED},
    ),
    "task_aggregate": Card(
        "Whether every task was forgotten and kept, in one number: three tasks, continued and asked, on both sides,"
        " combined so that one part at its worst makes the whole 0. In [0, 1]; absent unless all twelve parts are"
        " there.",
        "harmonic mean of `1 - mean` of the six forget parts and the mean of the six retain parts; a part is"
        " `regurgitation` or `knowledge` of one task",
        _RANKING,
        _PAPERS,
        {"lume": ()},
    ),
    "membership_score": Card(
        "How little a membership attack by loss tells forget texts from texts that no model was trained on. In [0, 1];"
        " 1: nothing.",
        "`1 - 2 abs(AUC - 0.5)` of `membership.loss_auc`",
        _RANKING,
        _PAPERS,
        {"lume": ()},
        ideal=1.0,
    ),
    "lume_score": Card(
        "The number that ranked the submissions of SemEval-2025 task 4. In [0, 1]; absent unless all three parts are"
        " there.",
        "mean of `task_aggregate`, `membership_score` and `mmlu.accuracy`",
        _RANKING,
        _PAPERS,
        {"lume": ()},
    ),
}
