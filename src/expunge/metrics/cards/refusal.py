"""Cards of what a refusal by energy rests on, and of the guard."""

from __future__ import annotations

from expunge.metrics.card import Card
from expunge.metrics.cards.splits import ALSO_OWN, IN_A_WORLD, WITH_PEOPLE
from expunge.metrics.leak_names import TEMPERED_ENERGY

_ENERGIES = "Liu et al., arXiv 2010.03759 (energy); Yang et al., arXiv 2605.16776 (of an unlearned model)"
_CONFORMAL = "Vovk et al., Algorithmic Learning in a Random World (2005), inductive conformal prediction"
_FAMILIARITY = (
    "knowledge: a constant added to all logits shifts every energy and changes no answer. It compares prompts inside"
    " one model, never two models, and says whether forgotten prompts could be refused, not whether they were forgotten"
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


CARDS: dict[str, Card] = {
    "energy.auroc": Card(
        "Whether the model looks less familiar with forget prompts than with retain prompts, by its energy E at the"
        " last prompt token (higher: unknown). In [0, 1]; 1: every forget prompt could be refused, 0.5: energy says"
        " nothing.",
        "P(a forget prompt has a higher energy than a retain prompt), `E = -logsumexp(z)` at the last prompt token",
        _FAMILIARITY,
        _ENERGIES,
        WITH_PEOPLE,
        ideal=1.0,
    ),
    TEMPERED_ENERGY: Card(
        "`energy.auroc` with another temperature in the energy. T is a number, `energy.auroc_t0.5`: one metric for each"
        " of `eval.temperatures`. A low T looks at the likeliest tokens alone, a high one at all alike; a guard can be"
        " calibrated with any (`expunge guard calibrate --temperature`). In [0, 1].",
        "P(a forget prompt has a higher energy than a retain prompt), `E = -T logsumexp(z / T)` at the last token of"
        " the prompt",
        _FAMILIARITY,
        _ENERGIES,
        WITH_PEOPLE,
        ideal=1.0,
    ),
    "energy.fpr95": Card(
        "How many forget prompts a refusal by energy lets through, its threshold set so that it answers 95 % of the"
        " retain prompts. In [0, 1].",
        "share of forget prompts that pass the threshold which lets 95 % of retain prompts pass",
        _FAMILIARITY,
        _ENERGIES,
        WITH_PEOPLE,
        ideal=0.0,
    ),
    "energy.auroc_paraphrase": Card(
        "`energy.auroc` of questions in words that were never trained, on both sides, so that wording alone separates"
        " nothing. In [0, 1].",
        "`energy.auroc` of paraphrased forget prompts against paraphrased retain prompts",
        _FAMILIARITY,
        _ENERGIES,
        IN_A_WORLD,
        ideal=1.0,
    ),
    "guard.refusal_rate": _refused(
        "How many forget prompts an energy guard refuses that is calibrated to refuse 2 % of prompts like the retain"
        " prompts.",
        f"share of forget prompts with an energy above {_THRESHOLD}",
        ideal=1.0,
        where=WITH_PEOPLE,
    ),
    "guard.refusal_rate_paraphrase": _refused(
        "How many forget prompts in words that were never trained the guard of `guard.refusal_rate` refuses.",
        f"share of paraphrased forget prompts with an energy above {_THRESHOLD}",
        ideal=1.0,
        where={**IN_A_WORLD, "unlearn-pii": ()},
    ),
    "guard.refusal_rate_multi_hop": _refused(
        "How many questions that lead to a forgotten fact by a detour the guard of `guard.refusal_rate` refuses.",
        f"share of questions that lead to a forgotten fact over somebody kept with an energy above {_THRESHOLD}",
        ideal=1.0,
        where=IN_A_WORLD,
    ),
    "guard.over_refusal_rate": _refused(
        "How many retain prompts the guard of `guard.refusal_rate` refuses although it should answer them, of those"
        " that did not set its threshold; about 0.02 where the calibration holds.",
        f"share of the other half of the retain prompts above {_THRESHOLD}",
        ideal=0.0,
        where=WITH_PEOPLE,
    ),
    "guard.over_refusal_paraphrase": _refused(
        "How many retain prompts in other words the guard of `guard.refusal_rate` refuses although it should answer.",
        f"share of paraphrased retain prompts above {_THRESHOLD}",
        ideal=0.0,
        where=IN_A_WORLD,
    ),
    "guard.over_refusal_neighbours": _refused(
        "How many prompts about kept people who are tied to a forgotten one the guard of `guard.refusal_rate` refuses.",
        "share of prompts about retained people who are tied to a forgotten one, without those that calibrate, above"
        f" {_THRESHOLD}",
        ideal=0.0,
        where=IN_A_WORLD,
    ),
    "guard.over_refusal_holdout": _refused(
        "How many prompts about people that no model was trained on the guard of `guard.refusal_rate` refuses.",
        f"share of prompts about people that no model was trained on above {_THRESHOLD}",
        ideal=0.0,
        where=ALSO_OWN,
    ),
}
