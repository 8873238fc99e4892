"""Cards of what speaks of a model as a whole, or of several: utility, forget quality, KLOM."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import ANY_SPLIT, BOTH, TOFU_PAPER, WITH_PEOPLE

_GEORGIEV = "Georgiev et al., arXiv 2410.23232"
_WHOLE = (
    "which part fell: one part near 0 pulls the whole down. A tiny model that knows no real authors scores near 0"
    " whatever was done to it; read `retain_utility` and the parts"
)
_SAMPLE = (
    "that two models are the same: a high p-value means that this sample cannot tell them apart, and few rows never"
    " can. It saturates: compare D where p is tiny. It looks at truth ratios only"
)
_FEW_MODELS = (
    "how alike single models are, and with few models anything: two samples of three from the same distribution score"
    " far above 0. Bins follow the range of the models at hand, so two evaluations with other models are not on one"
    " scale"
)

CARDS: dict[str, Card] = {
    "model_utility": Card(
        "What the model is still good for, in one number: nine means over rows of retain, real authors and world facts,"
        " combined so that one weak part pulls the whole down. In [0, 1].",
        "harmonic mean of nine means: probability (normalised on real_authors and world_facts), `rougeL_recall` and"
        " `truth_ratio_utility` on retain, real_authors and world_facts",
        _WHOLE,
        f"{TOFU_PAPER}, model utility",
        {"tofu": ()},
    ),
    "retain_utility": Card(
        "The three parts of model utility on the retain rows alone, for models that know nothing but the rows they were"
        " trained on. In [0, 1].",
        "harmonic mean of the means of probability, `rougeL_recall` and `truth_ratio_utility` on retain",
        _WHOLE,
        f"{TOFU_PAPER}, model utility, of which it is a third",
        {**BOTH, "unlearn-pii": ()},
    ),
    "forget_quality": Card(
        "Whether the forget rows' truth ratios R could come from the retrained model: the p-value of a test that they"
        " have one distribution, counted exactly. In [0, 1]; needs --reference.",
        "p-value of the exact two-sample Kolmogorov-Smirnov test between the forget rows' R and those of the retrained"
        " model",
        _SAMPLE,
        f"{TOFU_PAPER}, section 2.2.2; Hodges (1958) for the exact count",
        WITH_PEOPLE,
        ideal=1.0,
    ),
    "forget_quality_statistic": Card(
        "How far the forget rows' truth ratios R are from the retrained model's. In [0, 1]; needs --reference.",
        "D, the largest gap between the two distribution functions of R",
        _SAMPLE,
        f"{TOFU_PAPER}, section 2.2.2",
        WITH_PEOPLE,
        ideal=0.0,
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
        ANY_SPLIT,
        ideal=0.0,
    ),
    "<split>.klom_p95": Card(
        "The rows on which unlearned and retrained models differ most: the value of `<split>.klom` that 95 % of the"
        " rows stay below. In nats.",
        "the 95 % quantile of the rows' klom",
        _FEW_MODELS,
        _GEORGIEV,
        ANY_SPLIT,
        ideal=0.0,
    ),
}
