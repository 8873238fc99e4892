"""The cards of the metrics in the registry; a test compares their formulas and limits with `docs/metrics.md`."""

from __future__ import annotations

from expunge.metrics.card import Card

_TOFU = ("forget", "retain", "real_authors", "world_facts")
_UTILITY = ("real_authors", "world_facts")
_SIDES = ("forget", "retain")
_FORMS = ("paraphrased", "cloze", "inverted", "multi_hop", "multiple_choice")
_WORLD = (*_SIDES, "holdout", "neighbours", *(f"{side}_{form}" for side in _SIDES for form in _FORMS))

_MUSE = (*_SIDES, "forget_verbatim")
_BOTH: dict[str, tuple[str, ...]] = {"tofu": (), "world": ()}
_IN_A_WORLD: dict[str, tuple[str, ...]] = {"world": ()}
_ANSWERED = {"tofu": _TOFU, "world": _SIDES}
_ANY_SPLIT = {"tofu": (*_TOFU, "holdout"), "world": _WORLD}

_TOFU_PAPER = "TOFU, arXiv 2401.06121"
_ENERGIES = "Liu et al., arXiv 2010.03759 (energy); Yang et al., arXiv 2605.16776 (of an unlearned model)"
_CONFORMAL = "Vovk et al., Algorithmic Learning in a Random World (2005), inductive conformal prediction"
_GEORGIEV = "Georgiev et al., arXiv 2410.23232"

_MUSE_PAPER = "MUSE, arXiv 2407.06460"
_AVOIDED = (
    "forgetting from refusing or rambling: F1 of an answer that avoids the question is as low as that of one that does"
    " not know it; the retrained model's is seldom 0, because words repeat. Non-Latin text scores 0"
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
_WHOLE = (
    "which part fell: one part near 0 pulls the whole down. A tiny model that knows no real authors scores near 0"
    " whatever was done to it; read `retain_utility` and the parts"
)
_SAMPLE = (
    "that two models are the same: a high p-value means that this sample cannot tell them apart, and few rows never"
    " can. It saturates: compare D where p is tiny. It looks at truth ratios only"
)
_ATTACKER = (
    "what an attacker with more queries, reference models or fine-tuning could tell; 0.5 with a wide interval means"
    " that it was not measured well. Below 0.5 the forget rows look less familiar than unseen ones, which also gives"
    " them away"
)
_FAMILIARITY = (
    "knowledge: a constant added to all logits shifts every energy and changes no answer. It compares prompts inside"
    " one model, never two models, and says whether forgotten prompts could be refused, not whether they were forgotten"
)
_SHARES = (
    "how much there was to lose: both are shares of what the starting model had. A model that is broken everywhere"
    " leaks nothing; read retention next to leakage"
)
_DEPTH = (
    "whether the forgetting went far: a model that lost a tenth of every form scores 0. Other forms of a forget set"
    " count although most of them were unlearned as well (in a world all but the paraphrased and multi-hop ones);"
    " probability of a form includes its fixed words, which any model guesses"
)
_FEW_MODELS = (
    "how alike single models are, and with few models anything: two samples of three from the same distribution score"
    " far above 0. Bins follow the range of the models at hand, so two evaluations with other models are not on one"
    " scale"
)
_HIDING = (
    "what a question in other words would do, beyond the paraphrases measured: the 2 % hold for prompts like those that"
    " calibrated it. It hides answers and erases nothing"
)

_THRESHOLD = (
    "the threshold t: the `ceil((n + 1)(1 - 0.02))`-th smallest energy of n calibration prompts, half of the distinct"
    " retain prompts (all forms, no paraphrases), at least 500"
)


def _refused(definition: str, share: str, *, ideal: float, where: dict[str, tuple[str, ...]]) -> Card:
    """A share of prompts above the guard's threshold."""
    return Card(f"{definition} In [0, 1], of distinct prompts.", share, _HIDING, _CONFORMAL, where, ideal)


def _attack(score: str, formula: str, source: str) -> Card:
    """An AUC of forget rows against holdout rows."""
    definition = (
        "Membership inference: how well a score tells forget rows from holdout rows of the same kind that no model was"
        f" trained on. {score} Area under the ROC curve over both splits, in [0, 1]; 1: every forget row is recognised,"
        " 0.5: they cannot be told apart."
    )
    return Card(definition, formula, _ATTACKER, source, {**_BOTH, "muse": ()}, chance=0.5)


_OF_SPLITS: dict[str, Card] = {
    "<split>.probability": Card(
        "How likely the model finds the answer, per token: L = -(1/N) sum_t log p_t is the mean negative log-likelihood"
        " in nats of its N tokens, end token included. Mean over rows, in [0, 1].",
        "`exp(-L)`",
        _LIKELIHOOD,
        f"{_TOFU_PAPER}, section 2.2.1",
        {"tofu": _TOFU, "world": _WORLD, "muse": _MUSE},
    ),
    "<split>.probability_normalised": Card(
        "The answer's share of the probability of all given options, each by its probability per token p = exp(-L)."
        " Mean over rows, in [0, 1]; with three wrong options 0.25 is indifferent.",
        "`p(y) / (p(y) + sum_i p(wrong_i))`; real_authors and world_facts",
        "knowledge from a preference for the style of the given wrong answers",
        f"{_TOFU_PAPER}, section 2.2.1, with the probability per token of its code",
        {"tofu": _UTILITY},
    ),
    "<split>.rougeL_recall": Card(
        "How much of the answer the model says by itself: the words of the answer that its greedy answer holds in the"
        " same order. Lower-cased, stemmed words of a-z and 0-9. Mean over rows, in [0, 1].",
        "longest common subsequence of the greedy answer and `y`, over the words of `y`",
        _WORDS,
        f"Lin (2004); settings of {_TOFU_PAPER}",
        _ANSWERED,
    ),
    "<split>.rouge1_recall": Card(
        "How many of the answer's words the model says by itself, in any order. Lower-cased, stemmed words of a-z and"
        " 0-9. Mean over rows, in [0, 1].",
        "words of `y` that the greedy answer holds, over the words of `y`",
        _WORDS,
        f"Lin (2004); settings of {_TOFU_PAPER}",
        _ANSWERED,
    ),
    "<split>.truth_ratio": Card(
        "Whether wrong answers are as likely as the right one: R is the geometric mean of their probabilities per token"
        " over that of the paraphrased answer (of the answer where a split has no paraphrases). Mean over rows, in"
        " [0, 1]; 1: equally likely.",
        "`min(R, 1/R)`, `R = exp(mean_i log p(wrong_i)) / p(right)`",
        _CLOSENESS,
        f"{_TOFU_PAPER}, section 2.2.1, with the geometric mean of its code",
        _ANSWERED,
    ),
    "<split>.truth_ratio_prob_mean": Card(
        "The right answer's share of the probability of right and wrong, wrong being the geometric mean over the wrong"
        " answers. Mean over rows, in [0, 1]; 0.5 is indifferent, and it rises with knowledge.",
        "`p(right) / (p(right) + exp(mean_i log p(wrong_i)))`, which is `1 / (1 + R)`",
        _STYLE,
        "OpenUnlearning, arXiv 2506.12618, appendix C",
        _ANSWERED,
    ),
    "<split>.truth_ratio_utility": Card(
        "How clearly the right answer beats the wrong ones, R being the truth ratio; a part of model utility. Mean over"
        " rows, in [0, 1]; 0: wrong answers are at least as likely.",
        "`max(0, 1 - R)`",
        _STYLE,
        f"{_TOFU_PAPER}, model utility",
        _ANSWERED,
    ),
    "<split>.extraction_strength": Card(
        "How much of the answer greedy decoding completes word for word, given its beginning: a run of greedy choices"
        " that reaches the end. Read off the teacher-forced trace. Mean over rows, in [0, 1].",
        "`1 - k/N`, k the shortest beginning of `y` after which every token is the greedy choice; without the end"
        " token; forget and retain",
        "knowledge that needs a hint in the middle: one changed token near the end brings it down although the fact"
        " stands before it",
        "Carlini et al., arXiv 2012.07805, by way of Wang et al., arXiv 2406.09179, section 3",
        {"tofu": _SIDES, "world": _WORLD, "muse": _MUSE},
    ),
    "<split>.exact_memorization": Card(
        "How many tokens of the answer the model would choose, each given the true tokens before it. Mean over rows, in"
        " [0, 1].",
        "share of the tokens of `y` that are the greedy choice; without the end token; forget and retain",
        "facts from grammar: a language model guesses many tokens of any answer",
        "Tirumala et al., arXiv 2205.10770, as in OpenUnlearning, arXiv 2506.12618",
        {"tofu": _SIDES, "world": _SIDES, "muse": _MUSE},
    ),
    "<split>.knowmem": Card(
        "How much of what the texts say the model can answer: F1 of the words of its greedy answer and of the true one."
        " Mean over rows, in [0, 1]; MUSE prints it in percent.",
        "`2 P R / (P + R)` of the longest common subsequence of the greedy answer and `y`, words not stemmed; the"
        " prompt is MUSE's ten answered questions and then this one, the answer at most 32 tokens, cut at the next"
        " question; suite muse, forget and retain",
        _AVOIDED,
        f"{_MUSE_PAPER}, section 3",
        {"muse": _SIDES},
    ),
    "<split>.verbmem": Card(
        "How far the model goes on word for word where it is given the beginning of a forget text: F1 of the words of"
        " its greedy continuation and of the true one. Mean over rows, in [0, 1]; MUSE prints it in percent.",
        "`2 P R / (P + R)` of the longest common subsequence of the continuation by at most 128 tokens and the first"
        " 128 tokens of the text's own (a BOS counts), words not stemmed; suite muse, forget_verbatim",
        _AVOIDED,
        f"{_MUSE_PAPER}, section 3",
        {"muse": ("forget_verbatim",)},
    ),
    "<split>.klom": Card(
        "Whether several unlearned models answer like several retrained ones: per row, the divergence between the"
        " histograms of their margins. `expunge metrics RUN RUN... --reference RUN --reference RUN...`. Mean over rows,"
        " in nats; 0: alike, 11.5: disjoint.",
        "`sum_b p_b log(p_b / max(q_b, 1e-5))`: p and q are the shares of several unlearned and several retrained"
        " models whose margin of this row lies in bin b, of 20 equal bins over both; the margin is the mean of"
        " `log p_t - log(1 - p_t)` over the answer, clipped to 100; any split, several runs",
        _FEW_MODELS,
        _GEORGIEV,
        _ANY_SPLIT,
        ideal=0.0,
    ),
    "<split>.klom_p95": Card(
        "The rows on which unlearned and retrained models differ most: the value of `<split>.klom` that 95 % of the"
        " rows stay below. In nats.",
        "the 95 % quantile of the rows' klom",
        _FEW_MODELS,
        _GEORGIEV,
        _ANY_SPLIT,
        ideal=0.0,
    ),
}

_WHOLE_MODEL: dict[str, Card] = {
    "model_utility": Card(
        "What the model is still good for, in one number: nine means over rows of retain, real authors and world facts,"
        " combined so that one weak part pulls the whole down. In [0, 1].",
        "harmonic mean of nine means: probability (normalised on real_authors and world_facts), `rougeL_recall` and"
        " `truth_ratio_utility` on retain, real_authors and world_facts",
        _WHOLE,
        f"{_TOFU_PAPER}, model utility",
        {"tofu": ()},
    ),
    "retain_utility": Card(
        "The three parts of model utility on the retain rows alone, for models that know nothing but the rows they were"
        " trained on. In [0, 1].",
        "harmonic mean of the means of probability, `rougeL_recall` and `truth_ratio_utility` on retain",
        _WHOLE,
        f"{_TOFU_PAPER}, model utility, of which it is a third",
        _BOTH,
    ),
    "forget_quality": Card(
        "Whether the forget rows' truth ratios R could come from the retrained model: the p-value of a test that they"
        " have one distribution, counted exactly. In [0, 1]; needs --reference.",
        "p-value of the exact two-sample Kolmogorov-Smirnov test between the forget rows' R and those of the retrained"
        " model",
        _SAMPLE,
        f"{_TOFU_PAPER}, section 2.2.2; Hodges (1958) for the exact count",
        _BOTH,
        ideal=1.0,
    ),
    "forget_quality_statistic": Card(
        "How far the forget rows' truth ratios R are from the retrained model's. In [0, 1]; needs --reference.",
        "D, the largest gap between the two distribution functions of R",
        _SAMPLE,
        f"{_TOFU_PAPER}, section 2.2.2",
        _BOTH,
        ideal=0.0,
    ),
    "membership.loss_auc": _attack(
        "The score is the negative loss L of the answer.",
        "P(a forget row scores above a holdout row), ties half; score `-L`",
        "Yeom et al., arXiv 1709.01604",
    ),
    "membership.min_k_auc": _attack(
        "The score is the mean log-probability of the 40 % least likely tokens.",
        "P(a forget row scores above a holdout row), ties half; score: mean of the `max(1, int(0.4 N))` lowest"
        " `log p_t`, without the end token",
        "Shi et al., Min-K % Prob, arXiv 2310.16789",
    ),
    "membership.min_k_plus_plus_auc": _attack(
        "The score is that of Min-K, each token measured against what the model expected at its place.",
        "P(a forget row scores above a holdout row), ties half; score: mean of the `max(1, int(0.4 N))` lowest"
        " `(log p_t - mu_t) / sqrt(max(var_t, 1e-6))`, mean and variance of the model's own log-probabilities at t,"
        " without the end token",
        "Zhang et al., Min-K%++, arXiv 2404.02936, equation 3",
    ),
    "membership.zlib_auc": _attack(
        "The score is the negative loss over the size of the compressed answer.",
        "P(a forget row scores above a holdout row), ties half; score `-L / len(zlib(y))`",
        "Carlini et al., arXiv 2012.07805",
    ),
    "privleak": Card(
        "How far a membership attack is from what it reaches on the retrained model, in percent of that: below 0 the"
        " forget texts are still recognised, above 0 they look less familiar than unseen ones. Needs --reference.",
        "`100 ((1 - A) - (1 - A_r)) / (1 - A_r)`, A and A_r the `membership.min_k_auc` of this and of the retrained"
        " model; suite muse",
        "anything beyond Min-K of whole texts; it is the ratio of two AUCs of some hundred rows, so read its interval."
        " A value above 0 (forgotten texts look less familiar than unseen ones) also gives them away",
        f"{_MUSE_PAPER}, section 3",
        {"muse": ()},
        ideal=0.0,
    ),
    "energy.auroc": Card(
        "Whether the model looks less familiar with forget prompts than with retain prompts, by its energy E at the"
        " last prompt token (higher: unknown). In [0, 1]; 1: every forget prompt could be refused, 0.5: energy says"
        " nothing.",
        "P(a forget prompt has a higher energy than a retain prompt), `E = -logsumexp(z)` at the last prompt token",
        _FAMILIARITY,
        _ENERGIES,
        _BOTH,
        ideal=1.0,
    ),
    "energy.fpr95": Card(
        "How many forget prompts a refusal by energy lets through, its threshold set so that it answers 95 % of the"
        " retain prompts. In [0, 1].",
        "share of forget prompts that pass the threshold which lets 95 % of retain prompts pass",
        _FAMILIARITY,
        _ENERGIES,
        _BOTH,
        ideal=0.0,
    ),
    "energy.auroc_paraphrase": Card(
        "`energy.auroc` of questions in words that were never trained, on both sides, so that wording alone separates"
        " nothing. In [0, 1].",
        "`energy.auroc` of paraphrased forget prompts against paraphrased retain prompts",
        _FAMILIARITY,
        _ENERGIES,
        _IN_A_WORLD,
        ideal=1.0,
    ),
}

_IN_WORLDS: dict[str, Card] = {
    "multi_hop.leakage": Card(
        "How much of a forgotten fact still comes out by a detour that starts at somebody kept: what is left of the"
        " starting model's extraction strength there. From 0; 1: all of it. Needs the starting run.",
        "mean `extraction_strength` of `forget_multi_hop` after unlearning, over that of the starting model",
        _SHARES,
        "ours; for detours see ORT, arXiv 2506.07795",
        _IN_A_WORLD,
    ),
    "neighbours.retention": Card(
        "How much of what is known about kept people who are tied to a forgotten one is left: the share of the starting"
        " model's extraction strength. From 0; 1: all of it. Needs the starting run.",
        "mean `extraction_strength` of `neighbours` after unlearning, over that of the starting model",
        _SHARES,
        "ours",
        _IN_A_WORLD,
        ideal=1.0,
    ),
    "forms.dependence_index": Card(
        "Whether forgetting depends on how a question is put: how much less the other five forms fell than the trained"
        " one. In [0, 1]; 0: every form fell as far. Needs the starting run.",
        "`1 - mean_f min(drop_f / drop_direct, 1)` over the five other forms f of forget questions; a form's drop is"
        " `1 - after / before` of its mean `probability`, before in the starting model, clipped to [0, 1]",
        _DEPTH,
        "the comparison of forms: ORT, arXiv 2506.07795; the index over them is ours",
        _IN_A_WORLD,
    ),
}

_GUARDED: dict[str, Card] = {
    "guard.refusal_rate": _refused(
        "How many forget prompts an energy guard refuses that is calibrated to refuse 2 % of prompts like the retain"
        " prompts.",
        f"share of forget prompts with an energy above {_THRESHOLD}",
        ideal=1.0,
        where=_BOTH,
    ),
    "guard.refusal_rate_paraphrase": _refused(
        "How many forget prompts in words that were never trained the guard of `guard.refusal_rate` refuses.",
        f"share of paraphrased forget prompts with an energy above {_THRESHOLD}",
        ideal=1.0,
        where=_IN_A_WORLD,
    ),
    "guard.refusal_rate_multi_hop": _refused(
        "How many questions that lead to a forgotten fact by a detour the guard of `guard.refusal_rate` refuses.",
        f"share of questions that lead to a forgotten fact over somebody kept with an energy above {_THRESHOLD}",
        ideal=1.0,
        where=_IN_A_WORLD,
    ),
    "guard.over_refusal_rate": _refused(
        "How many retain prompts the guard of `guard.refusal_rate` refuses although it should answer them, of those"
        " that did not set its threshold; about 0.02 where the calibration holds.",
        f"share of the other half of the retain prompts above {_THRESHOLD}",
        ideal=0.0,
        where=_BOTH,
    ),
    "guard.over_refusal_paraphrase": _refused(
        "How many retain prompts in other words the guard of `guard.refusal_rate` refuses although it should answer.",
        f"share of paraphrased retain prompts above {_THRESHOLD}",
        ideal=0.0,
        where=_IN_A_WORLD,
    ),
    "guard.over_refusal_neighbours": _refused(
        "How many prompts about kept people who are tied to a forgotten one the guard of `guard.refusal_rate` refuses.",
        "share of prompts about retained people who are tied to a forgotten one, without those that calibrate, above"
        f" {_THRESHOLD}",
        ideal=0.0,
        where=_IN_A_WORLD,
    ),
    "guard.over_refusal_holdout": _refused(
        "How many prompts about people that no model was trained on the guard of `guard.refusal_rate` refuses.",
        f"share of prompts about people that no model was trained on above {_THRESHOLD}",
        ideal=0.0,
        where=_BOTH,
    ),
}

CARDS: dict[str, Card] = {**_OF_SPLITS, **_WHOLE_MODEL, **_IN_WORLDS, **_GUARDED}
"""Name in the registry -> card."""
