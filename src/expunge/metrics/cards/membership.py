"""Cards of the membership attacks."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import ALSO_OWN

_ATTACKER = (
    "what an attacker with more queries, reference models or fine-tuning could tell; 0.5 with a wide interval means"
    " that it was not measured well. Below 0.5 the forget rows look less familiar than unseen ones, which also gives"
    " them away"
)


def _attack(score: str, formula: str, source: str) -> Card:
    """An AUC of forget rows against holdout rows."""
    definition = (
        "Membership inference: how well a score tells forget rows from holdout rows of the same kind that no model was"
        f" trained on. {score} Area under the ROC curve over both splits, in [0, 1]; 1: every forget row is recognised,"
        " 0.5: they cannot be told apart."
    )
    return Card(definition, formula, _ATTACKER, source, {**ALSO_OWN, "muse": (), "lume": ()}, chance=0.5)


CARDS: dict[str, Card] = {
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
    "membership.gradnorm_auc": _attack(
        "The score is the negative norm of the gradient of the loss, one backward pass per text (--gradnorm).",
        "P(a forget row scores above a holdout row), ties half; score `-norm(dL/dw)`, the Euclidean norm over all"
        " weights w of the gradient of L without the end token",
        "OpenUnlearning, arXiv 2506.12618, after Wang et al., arXiv 2402.17012; the norm over all weights together is"
        " ours",
    ),
    "membership.reference_auc": _attack(
        "The score is how much lower the loss is than that of the retrained model, which saw neither (--reference).",
        "P(a forget row scores above a holdout row), ties half; score `L_r - L`, L_r the loss of the retrained model",
        "Carlini et al., arXiv 2012.07805",
    ),
}
