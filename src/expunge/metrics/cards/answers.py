"""Cards of what is read off an answer: probability, ROUGE, truth ratio, memorisation."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import (
    ANSWERED,
    CUSTOM,
    LUME,
    MUSE,
    PII,
    PISTOL,
    PROBES,
    SIDES,
    TOFU,
    TOFU_PAPER,
    UTILITY,
    WORLD,
)

_LIKELIHOOD = (
    "whether the answer comes out in other words, or after a little fine-tuning; a model that is broken everywhere also"
    " scores low, so read the retain split next to it"
)
_WORDS = (
    "a long answer that happens to hold the words from a right one (there is no length penalty); text outside a-z and"
    " 0-9 counts as no words at all, and an accent splits a word"
)
_CLOSENESS = (
    "direction: it is about 0.5 for a model that knows the answer and higher for one that never saw it, but not"
    " monotone in between; compare it with the retrained model's only"
)
_STYLE = "anything, where paraphrases and wrong answers differ in length or style more than in truth"

_ELSEWHERE = {"muse": MUSE, "lume": LUME, "pistol": (*PISTOL, "retain"), "custom": CUSTOM}

CARDS: dict[str, Card] = {
    "<split>.probability": Card(
        "How likely the model finds the answer, per token: L = -(1/N) sum_t log p_t is the mean negative log-likelihood"
        " in nats of its N tokens, end token included. Mean over rows, in [0, 1].",
        "`exp(-L)`",
        _LIKELIHOOD,
        f"{TOFU_PAPER}, section 2.2.1",
        {"tofu": TOFU, "world": WORLD, **_ELSEWHERE, "rwku": PROBES, "unlearn-pii": PII, "knowundo": SIDES},
    ),
    "<split>.probability_normalised": Card(
        "The answer's share of the probability of all given options, each by its probability per token p = exp(-L)."
        " Mean over rows, in [0, 1]; with three wrong options 0.25 is indifferent.",
        "`p(y) / (p(y) + sum_i p(wrong_i))`; real_authors and world_facts",
        "knowledge from a preference for the style of the given wrong answers",
        f"{TOFU_PAPER}, section 2.2.1, with the probability per token of its code",
        {"tofu": UTILITY},
    ),
    "<split>.rougeL_recall": Card(
        "How much of the answer the model says by itself: the words of the answer that its greedy answer holds in the"
        " same order. Lower-cased, stemmed words of a-z and 0-9. Mean over rows, in [0, 1].",
        "longest common subsequence of the greedy answer and `y`, over the words of `y`",
        _WORDS,
        f"Lin (2004); settings of {TOFU_PAPER}",
        {**ANSWERED, "pistol": (*PISTOL, "retain"), "unlearn-pii": PII, "knowundo": SIDES},
    ),
    "<split>.rouge1_recall": Card(
        "How many of the answer's words the model says by itself, in any order. Lower-cased, stemmed words of a-z and"
        " 0-9. Mean over rows, in [0, 1].",
        "words of `y` that the greedy answer holds, over the words of `y`",
        _WORDS,
        f"Lin (2004); settings of {TOFU_PAPER}",
        {**ANSWERED, "pistol": (*PISTOL, "retain")},
    ),
    "<split>.truth_ratio": Card(
        "Whether wrong answers are as likely as the right one: R is the geometric mean of their probabilities per token"
        " over that of the paraphrased answer (of the answer where a split has no paraphrases). Mean over rows, in"
        " [0, 1]; 1: equally likely.",
        "`min(R, 1/R)`, `R = exp(mean_i log p(wrong_i)) / p(right)`",
        _CLOSENESS,
        f"{TOFU_PAPER}, section 2.2.1, with the geometric mean of its code",
        ANSWERED,
    ),
    "<split>.truth_ratio_prob_mean": Card(
        "The right answer's share of the probability of right and wrong, wrong being the geometric mean over the wrong"
        " answers. Mean over rows, in [0, 1]; 0.5 is indifferent, and it rises with knowledge.",
        "`p(right) / (p(right) + exp(mean_i log p(wrong_i)))`, which is `1 / (1 + R)`",
        _STYLE,
        "OpenUnlearning, arXiv 2506.12618, appendix C",
        ANSWERED,
    ),
    "<split>.truth_ratio_utility": Card(
        "How clearly the right answer beats the wrong ones, R being the truth ratio; a part of model utility. Mean over"
        " rows, in [0, 1]; 0: wrong answers are at least as likely.",
        "`max(0, 1 - R)`",
        _STYLE,
        f"{TOFU_PAPER}, model utility",
        ANSWERED,
    ),
    "<split>.extraction_strength": Card(
        "How much of the answer greedy decoding completes word for word, given its beginning: a run of greedy choices"
        " that reaches the end. Read off the teacher-forced trace. Mean over rows, in [0, 1].",
        "`1 - k/N`, k the shortest beginning of `y` after which every token is the greedy choice; without the end"
        " token; forget and retain",
        "knowledge that needs a hint in the middle: one changed token near the end brings it down although the fact"
        " stands before it",
        "Carlini et al., arXiv 2012.07805, by way of Wang et al., arXiv 2406.09179, section 3",
        {"tofu": SIDES, "world": WORLD, **_ELSEWHERE, "unlearn-pii": PII, "knowundo": SIDES},
    ),
    "<split>.exact_memorization": Card(
        "How many tokens of the answer the model would choose, each given the true tokens before it. Mean over rows, in"
        " [0, 1].",
        "share of the tokens of `y` that are the greedy choice; without the end token; forget and retain",
        "facts from grammar: a language model guesses many tokens of any answer",
        "Tirumala et al., arXiv 2205.10770, as in OpenUnlearning, arXiv 2506.12618",
        {"tofu": SIDES, "world": SIDES, **_ELSEWHERE, "unlearn-pii": SIDES, "knowundo": SIDES},
    ),
}
