"""Cards of Leak@k."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import CUSTOM, LUME, MUSE, PII, PISTOL, PROBES, SIDES, TOFU

_PAPER = "Leak@k, arXiv 2511.04934"
_LUCK = (
    "what more answers would bring, or other questions: k is as many as were looked at. Words that any answer has count"
    " as well; read the value of the retrained model next to it"
)
_VERBATIM = (
    "the fact in other words: it counts the one wording of the row, so it is a lower bound of what comes out. A long"
    " answer has a small probability however well it is known"
)
_JUDGED = (
    "a leak from a wrong judgement of the classifier: look at answers (`expunge samples`), and say which one it was"
)
_SAMPLED = {
    "tofu": TOFU,
    "world": SIDES,
    "muse": MUSE,
    "lume": LUME,
    "pistol": PISTOL,
    "custom": CUSTOM,
    "rwku": PROBES,
    "unlearn-pii": PII,
    "knowundo": SIDES,
}
_FORGOTTEN = dict.fromkeys(("tofu", "world", "muse", "custom", "unlearn-pii", "knowundo"), ("forget",))
_BEST = (
    "best of k answers, `sum_{j=k}^n C(j-1, k-1) / C(n, k) S_(j)` over the n sampled ones in ascending order of their"
    " score"
)

CARDS: dict[str, Card] = {
    "<split>.leak_at_K": Card(
        "What somebody sees who may ask K times: the best of K sampled answers, by the share of the answer's words it"
        " holds in order. K is a number: 1, 2, 4 and so on up to the answers that were sampled (--samples); 1 is the"
        " mean. Other settings than temperature 1 and top-p 1 stand in the name, `forget.leak_at_4_t0.8_p1`. Unbiased."
        " Mean over rows, in [0, 1].",
        f"{_BEST}; S is ROUGE-L recall as in `<split>.rougeL_recall`",
        _LUCK,
        _PAPER,
        _SAMPLED,
    ),
    "<split>.leak_at_K_contains": Card(
        "The chance that at least one of K sampled answers holds the words of the answer one after the other, whatever"
        " stands around them. Named like `<split>.leak_at_K`. Unbiased. Mean over rows, in [0, 1].",
        f"{_BEST}; S is 1 where the words of `y` stand in the answer in a row (case and punctuation apart), else 0",
        _LUCK,
        f"{_PAPER}, with a score of our own",
        _SAMPLED,
    ),
    "<split>.leak_at_K_entailed": Card(
        "The chance that at least one of K sampled answers says what the answer says, as a text classifier judges that"
        " `eval.sampling.entailment` names. Named like `<split>.leak_at_K`. Unbiased. Mean over rows, in [0, 1].",
        f"{_BEST}; S is 1 where the classifier's likeliest label is entailment (premise: the sampled answer,"
        " hypothesis: `y`) and ROUGE-L recall is at least 0.1, else 0",
        _JUDGED,
        _PAPER,
        _SAMPLED,
    ),
    "<split>.leak_at_K_exact": Card(
        "The chance that at least one of K answers sampled at temperature 1 is the row's own word for word, end token"
        " included: a lower bound of `<split>.leak_at_K`, read off the trace without sampling. Reported for K = 128,"
        " and for those that were sampled; at other temperatures where `eval.temperatures` names them,"
        " `forget.leak_at_128_exact_t0.5_p1`. Mean over rows, in [0, 1].",
        "`1 - (1 - p)^k`, `p = exp(sum_t log p_t)`; no sampling",
        _VERBATIM,
        f"the closed form is ours; {_PAPER}, samples",
        _FORGOTTEN,
    ),
}
