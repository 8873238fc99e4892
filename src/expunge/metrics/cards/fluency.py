"""Cards of what is measured of greedy answers whatever they say."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import CUSTOM, SIDES

_ALIVE = (
    "sense from nonsense: varied wrong text scores high, a short right answer low. It depends on how long answers may"
    " be, so compare outputs of one limit"
)
_LOOPS = (
    "a loop from a list, or sense from nonsense without loops; short answers hardly repeat themselves. It depends on"
    " how long answers may be, so compare outputs of one limit"
)
_JUDGED = (
    "sense from nonsense that reads well, and a wrong judgement of the classifier, which reads the beginning alone:"
    " look at answers (`expunge samples`), and say which classifier it was"
)
_ODD = (
    "a fluent answer from a loop: both are easy to guess; a right answer full of names that the judging model never saw"
    " looks odd. It depends on that model, so say which one it was; the model that wrote an answer finds it likely"
    " whatever it says"
)
_SPLITS = {"tofu": SIDES, "world": SIDES, "custom": CUSTOM}

CARDS: dict[str, Card] = {
    "<split>.ngram_entropy": Card(
        "Whether what the model writes is still varied. Mean over answers, in bits; 0: one word, over and over, or"
        " nothing.",
        "`(2/3 H_2 + 4/3 H_3) / 2`, H_n the entropy of the greedy answer's n-grams of words in bits; forget and retain,"
        " every split of questions in custom, in rwku the instructions of fluency (256 tokens)",
        _ALIVE,
        "Meng et al., ROME, arXiv 2202.05262; RWKU, arXiv 2406.10890",
        {**_SPLITS, "rwku": ("fluency",)},
    ),
    "<split>.repetition": Card(
        "How much of what the model writes it has written before, in the same answer. Mean over the answers of four"
        " words or more, in [0, 1): n says how many they are.",
        "`1 - u / m` of the greedy answer's m runs of four words, u of them distinct; forget and retain, every split of"
        " questions in custom",
        _LOOPS,
        "Welleck et al., seq-rep-4, arXiv 1908.04319, by words",
        _SPLITS,
    ),
    "<split>.gibberish": Card(
        "How likely a text classifier that you name (--gibberish) finds it that an answer is clean: the higher, the"
        " less gibberish. Mean over answers, in [0, 1].",
        "probability of the class `clean` by the first 32 tokens of the greedy answer (--gibberish); forget and retain,"
        " every split of questions in custom",
        _JUDGED,
        "OpenUnlearning, arXiv 2506.12618, in its code",
        _SPLITS,
    ),
    "<split>.perplexity": Card(
        "How odd what the model writes is to another language model that you name (--perplexity-model), which reads"
        " each answer by itself, without its question. Over all tokens of the split's answers, at least 1.",
        "`exp(-sum log q_t / T)` over the T tokens of all greedy answers, q of another model (--perplexity-model); an"
        " answer's first token is left out unless a BOS stands before it; forget and retain, every split of questions"
        " in custom",
        _ODD,
        "as in ECO, arXiv 2406.07933, and ReLearn, arXiv 2502.11190, whose judging models differ",
        _SPLITS,
    ),
}
