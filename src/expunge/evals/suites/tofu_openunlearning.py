"""The `openunlearning` profile: that project's definitions and names, so that numbers compare with its logs.

It differs from the canonical profile in its end-token span (the last label is dropped, whatever it is), the floor of
extraction strength (1/N), and 1e-10 in every denominator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from expunge.evals.suites.fluency_sheet import NO_GIBBERISH, NO_TOKEN
from expunge.evals.suites.tofu_sheet import CHANCE, NO_GRADIENTS, NO_REFERENCE, Need, Rule, Sheet, Views
from expunge.metrics.estimate import privleak_estimate
from expunge.metrics.membership import min_k_plus_plus_score, min_k_score, reference_score, zlib_score
from expunge.metrics.memorization import exact_memorization, extraction_strength
from expunge.metrics.options import option_probability
from expunge.metrics.probability import probability
from expunge.metrics.ragged import Array, Ragged
from expunge.metrics.truth_ratio import closer_to_1, true_better, truth_ratio
from expunge.metrics.view import SplitView

EPS = 1e-10
MIN_K = 0.4
NO_HOLDOUT = "no holdout rows in this evaluation"
NOT_LOGGED = "this log has no values for it"

PREFIX = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
UTILITY = {
    "retain": ("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    "real_authors": ("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    "world_facts": ("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
}
MEMBERSHIP = ("mia_loss", "mia_min_k", "mia_min_k_plus_plus", "mia_zlib", "mia_reference", "mia_gradnorm")
GIBBERISH = "forget_Q_A_gibberish"
"""The log's name for how likely a classifier finds the answers to be clean."""
MEMORIZATION = ("exact_memorization", "extraction_strength")

_RULES = {
    "privleak": Rule("match", 0.0),
    "forget_quality": Rule("higher", 1.0),
    "forget_quality_statistic": Rule("lower", 0.0),
    "forget_truth_ratio": Rule("match"),
    "forget_Q_A_PERT_Prob": Rule("match"),
    GIBBERISH: Rule("higher"),
    "extraction_strength": Rule("lower"),
    "exact_memorization": Rule("lower"),
}


class Entry(NamedTuple):
    """One metric of one split as the log writes it."""

    fields: Mapping[str, Array | Ragged]
    """Per item, in the order of the split's rows."""
    aggregate: Array
    """(R,) what the headline is the mean of."""
    needs: tuple[Need, ...] = ()


def rule(name: str) -> Rule:
    """How a metric of the log is judged."""
    if name in _RULES:
        return _RULES[name]
    if name.startswith("mia_"):
        return Rule("match")
    if "PERT" in name:
        return Rule("lower")
    return Rule("lower" if name.startswith("forget") else "higher")


def ratio(view: SplitView) -> Array:
    """(R,) truth ratio with the log's constant."""
    return truth_ratio(view.right_loss, view.wrong_losses, eps=EPS)


def entries(view: SplitView) -> dict[str, Entry]:
    """Every per-item metric of a split that its tables can give."""
    prefix = PREFIX[view.split]
    found = {f"{prefix}_Q_A_Prob": _likelihood(view.loss)}
    if view.paraphrase is not None:
        found[f"{prefix}_Q_A_PARA_Prob"] = _likelihood(view.right_loss)
    if len(view.perturbed.values):
        found |= _against_wrong(view, prefix)
    if view.generations is not None:
        scores = {name: view.generated(name) for name in ("rouge1_recall", "rougeL_f1", "rougeL_recall")}
        found[f"{prefix}_Q_A_ROUGE"] = Entry(scores, scores["rougeL_recall"])
    if view.split == "forget":
        found |= _memorization(view) | _judged(view)
    return found


def _judged(view: SplitView) -> dict[str, Entry]:
    if view.recorded is not None and GIBBERISH in view.recorded:
        return {GIBBERISH: _score(view.recorded[GIBBERISH])}
    return {} if view.gibberish is None else {GIBBERISH: _score(view.clean())}


def _memorization(view: SplitView) -> dict[str, Entry]:
    if view.recorded is not None:
        return {name: _score(view.recorded[name]) for name in MEMORIZATION if name in view.recorded}
    hits = view.answers("hit", "drop_last")
    strength = extraction_strength(hits, floor="one_over_n")
    found = exact_memorization(hits), np.where(hits.lengths > 0, strength, 0.0)
    return {name: _score(values) for name, values in zip(MEMORIZATION, found, strict=True)}


def _against_wrong(view: SplitView, prefix: str) -> dict[str, Entry]:
    wrong = view.wrong_losses
    probs = wrong.with_values(probability(wrong.values))
    found = {f"{prefix}_Q_A_PERT_Prob": Entry({"prob": probs, "avg_loss": wrong}, probs.means())}
    if view.split in ("real_authors", "world_facts"):
        normalised = option_probability(view.loss, wrong, eps=EPS)
        found[f"{prefix}_Q_A_Prob_normalised"] = Entry({"prob": normalised}, normalised)
    elif view.paraphrase is None:
        return found
    ratios = ratio(view)
    if view.split == "forget":
        found["forget_truth_ratio"] = Entry({"score": ratios}, closer_to_1(ratios, eps=EPS))
    else:
        found[f"{prefix}_Truth_Ratio"] = Entry({"score": ratios}, true_better(ratios))
    return found


def _likelihood(loss: Array) -> Entry:
    return Entry({"prob": probability(loss), "avg_loss": loss}, probability(loss))


def _score(values: Array) -> Entry:
    return Entry({"score": values}, values)


def attack_scores(view: SplitView, reference: SplitView | None) -> dict[str, Array]:
    """(R,) loss-like score of each attack, lower = member, as the log writes them; an empty span scores 0.

    Of an imported log they are its own, with NaN for a row that it leaves out.
    """
    if view.recorded is not None:
        return {name: view.recorded[name] for name in MEMBERSHIP if name in view.recorded}
    found = {
        "mia_loss": view.loss,
        "mia_min_k": -min_k_score(view.answers("logp", "drop_last"), k=MIN_K),
        "mia_zlib": -zlib_score(view.loss, view.zlib_bytes()),
    }
    if view.stores("mu"):
        columns = (view.answers(name, "drop_last") for name in ("logp", "mu", "var"))
        found["mia_min_k_plus_plus"] = -min_k_plus_plus_score(*columns, k=MIN_K)
    if view.gradients is not None:
        found["mia_gradnorm"] = view.gradient("tensor_norm_2")
    if reference is not None:
        found["mia_reference"] = -reference_score(view.loss, reference.loss)
    return {name: np.where(np.isnan(scores), 0.0, scores) for name, scores in found.items()}


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every metric of the log for one model."""
    for split in PREFIX:
        if split not in sheet.views:
            continue
        for name, entry in entries(sheet.views[split]).items():
            if (logged(sheet) or name == GIBBERISH) and np.isnan(entry.aggregate).all():
                sheet.skipped[name] = NOT_LOGGED if logged(sheet) else NO_TOKEN
                continue
            sheet.mean(name, split, lambda view, entry=entry: entry.aggregate)  # type: ignore[misc]
    if "forget" in sheet.views and GIBBERISH not in {**sheet.estimates, **sheet.skipped}:
        sheet.skipped[GIBBERISH] = NOT_LOGGED if logged(sheet) else NO_GIBBERISH
    fill_attacks(sheet, reference)
    sheet.harmonic("model_utility", UTILITY)
    sheet.forget_quality(reference, ratio, pvalue=("forget_quality",), statistic="forget_quality_statistic")
    fill_privleak(sheet, reference)


def logged(sheet: Sheet) -> bool:
    """Whether the sheet is of an imported log."""
    return any(view.recorded is not None for view in sheet.views.values())


def fill_attacks(sheet: Sheet, reference: Views | None, *, members: str = "forget") -> None:
    """The AUC of every attack, the rows of `members` against `holdout`, or why there is none."""
    if "holdout" not in sheet.views:
        sheet.skipped.update(dict.fromkeys(MEMBERSHIP, NO_HOLDOUT))
        return
    trained, holdout = (attack_scores(sheet.views[split], _losses(reference, split)) for split in (members, "holdout"))
    for name in MEMBERSHIP:
        if name in trained and name in holdout:
            scores = {members: -trained[name], "holdout": -holdout[name]}
            sheet.auc(name, members, "holdout", lambda view, scores=scores: scores[view.split])  # type: ignore[misc]
        elif logged(sheet):
            sheet.skipped[name] = NOT_LOGGED
        elif name == "mia_reference":
            sheet.skipped[name] = NO_REFERENCE if reference is None else f"in the reference {NOT_LOGGED}"
        elif name == "mia_gradnorm":
            sheet.skipped[name] = NO_GRADIENTS
        else:
            sheet.skipped[name] = f"mu and var were not stored for {members} and holdout"


def _losses(reference: Views | None, split: str) -> SplitView | None:
    """A split of the reference; None where it is a log that has no loss for some of its rows."""
    view = None if reference is None else reference.get(split)
    return None if view is None or (view.recorded is not None and np.isnan(view.loss).any()) else view


def fill_privleak(sheet: Sheet, reference: Views | None, *, members: str = "forget") -> None:
    """PrivLeak of Min-K, where `fill_attacks` measured it, against the reference's.

    A log without a reference is compared with chance, as the software that wrote it does.
    """
    attack = sheet.estimates.get("mia_min_k")
    fixed, reason = CHANCE if logged(sheet) else None, NO_REFERENCE
    if reference is not None:
        theirs = Sheet(reference, sheet.allow_missing, intervals=False)
        fill_attacks(theirs, None, members=members)
        known = theirs.estimates.get("mia_min_k")
        fixed, reason = None if known is None else known.value, theirs.skipped.get("mia_min_k", NO_HOLDOUT)
    if attack is None or fixed is None:
        sheet.skipped["privleak"] = reason if fixed is None else sheet.skipped.get("mia_min_k", NO_HOLDOUT)
        return
    sheet.estimates["privleak"] = privleak_estimate(attack, fixed, eps=EPS)
