"""Names that other profiles and imported logs report, what each is among the canonical ones, and how it differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from expunge.metrics.card import Card
from expunge.metrics.score import Direction

OPENUNLEARNING, TOFU, MUSE = "openunlearning", "tofu", "muse"
"""Profiles; the last one is that of logs which MUSE's own code wrote."""

SAME = "the same"
_LAST = "the last token is left out, whatever it is"
_EMPTY = f"{_LAST}, and a row without others scores 0"
_EPS = "1e-10 is added to every denominator"
_FIRST = "of the first 300 rows of each split"
_ANSWERS = f"{_FIRST}, answers end at 200 tokens together with their prompt"

_OU_PREFIX = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
_TOFU_LABEL = {"forget": "Forget", "retain": "Retain", "real_authors": "Real Authors", "world_facts": "Real World"}
_OPTIONS = ("real_authors", "world_facts")
_HITS = {"tofu": ("forget",), "muse": ("forget_verbatim",)}
_BOTH: dict[str, tuple[str, ...]] = {"tofu": (), "muse": ()}
_WHOLE: dict[str, tuple[str, ...]] = {"tofu": ()}

_OU_PAPER = "OpenUnlearning, arXiv 2506.12618, and its code"
_ATTACKS = {
    "min_k": _EMPTY,
    "min_k_plus_plus": _EMPTY,
    "gradnorm": f"the norm is the mean over weight tensors of each one's own; {_EMPTY}",
}
"""Attack -> what is done otherwise."""


class ProfileName(NamedTuple):
    """One name of another profile."""

    name: str
    profile: str
    direction: Direction
    like: str | None
    """The line of the registry that it is a version of; None: there is none, and it has a card in `OWN_CARDS`."""
    where: Mapping[str, tuple[str, ...]]
    """Suite that reports it -> its splits, as in `Card.where`."""
    differs: str = SAME
    """From `like`, in words."""

    def versions(self) -> list[str]:
        """The canonical names that it is a version of: `forget.truth_ratio`."""
        if self.like is None:
            return []
        splits = dict.fromkeys(split for found in self.where.values() for split in found)
        return [self.like.replace("<split>", split) for split in splits] or [self.like]


def _forget_is_low(split: str) -> Direction:
    return "lower" if split == "forget" else "higher"


def _openunlearning() -> Iterator[ProfileName]:
    for split, prefix in _OU_PREFIX.items():
        where, way = {"tofu": (split,)}, _forget_is_low(split)
        yield ProfileName(f"{prefix}_Q_A_Prob", OPENUNLEARNING, way, "<split>.probability", where)
        yield ProfileName(f"{prefix}_Q_A_ROUGE", OPENUNLEARNING, way, "<split>.rougeL_recall", where)
        wrong: Direction = "match" if split == "forget" else "lower"
        yield ProfileName(f"{prefix}_Q_A_PERT_Prob", OPENUNLEARNING, wrong, None, where)
        if split in _OPTIONS:
            name = f"{prefix}_Q_A_Prob_normalised"
            yield ProfileName(name, OPENUNLEARNING, "higher", "<split>.probability_normalised", where, _EPS)
        else:
            yield ProfileName(f"{prefix}_Q_A_PARA_Prob", OPENUNLEARNING, way, None, where)
        if split != "forget":
            name = f"{prefix}_Truth_Ratio"
            yield ProfileName(name, OPENUNLEARNING, "higher", "<split>.truth_ratio_utility", where, _EPS)
    forget = {"tofu": ("forget",)}
    yield ProfileName("forget_Q_A_gibberish", OPENUNLEARNING, "higher", "<split>.gibberish", forget)
    yield ProfileName("forget_truth_ratio", OPENUNLEARNING, "match", "<split>.truth_ratio", forget, _EPS)
    for name in ("exact_memorization", "extraction_strength"):
        floor = ", and no row scores below 1/N" if name == "extraction_strength" else ""
        yield ProfileName(name, OPENUNLEARNING, "lower", f"<split>.{name}", _HITS, _LAST + floor)
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradnorm"):
        differs = _ATTACKS.get(attack, SAME)
        yield ProfileName(f"mia_{attack}", OPENUNLEARNING, "match", f"membership.{attack}_auc", _BOTH, differs)
    against = f"of mia_min_k, and {_EPS}; a log without --reference is compared with an AUC of 0.5"
    yield ProfileName("privleak", OPENUNLEARNING, "match", "privleak", _BOTH, against)
    yield ProfileName("model_utility", OPENUNLEARNING, "higher", "model_utility", _WHOLE, f"in its parts {_EPS}")
    quality = f"in R {_EPS}"
    yield ProfileName("forget_quality", OPENUNLEARNING, "higher", "forget_quality", _WHOLE, quality)
    yield ProfileName("forget_quality_statistic", OPENUNLEARNING, "lower", "forget_quality_statistic", _WHOLE, quality)
    for split in ("forget", "retain"):
        name, where = f"{split}_knowmem_ROUGE", {"muse": (split,)}
        yield ProfileName(name, OPENUNLEARNING, _forget_is_low(split), "<split>.knowmem", where, "words are stemmed")
    texts = {"muse": ("forget_verbatim",)}
    whole = "words are stemmed, and the whole of the text's own continuation is compared"
    yield ProfileName("forget_verbmem_ROUGE", OPENUNLEARNING, "lower", "<split>.verbmem", texts, whole)


def _tofu() -> Iterator[ProfileName]:
    for split, label in _TOFU_LABEL.items():
        where, way = {"tofu": (split,)}, _forget_is_low(split)
        likelihood = "<split>.probability_normalised" if split in _OPTIONS else "<split>.probability"
        ratio = "<split>.truth_ratio" if split == "forget" else "<split>.truth_ratio_utility"
        yield ProfileName(f"ROUGE {label}", TOFU, way, "<split>.rougeL_recall", where, _ANSWERS)
        yield ProfileName(f"Prob. {label}", TOFU, way, likelihood, where, _FIRST)
        closer: Direction = "match" if split == "forget" else "higher"
        yield ProfileName(f"Truth Ratio {label}", TOFU, closer, ratio, where, _FIRST)
    yield ProfileName("Model Utility", TOFU, "higher", "model_utility", _WHOLE, _FIRST)
    for name in ("Forget Quality", "KS Test PVal Forget"):
        yield ProfileName(name, TOFU, "higher", "forget_quality", _WHOLE, _FIRST)
    yield ProfileName("KS Test Forget", TOFU, "lower", "forget_quality_statistic", _WHOLE, _FIRST)


def _muse() -> Iterator[ProfileName]:
    percent = "in percent"
    yield ProfileName("verbmem_f", MUSE, "lower", "<split>.verbmem", {"muse": ("forget_verbatim",)}, percent)
    yield ProfileName("knowmem_f", MUSE, "lower", "<split>.knowmem", {"muse": ("forget",)}, percent)
    yield ProfileName("knowmem_r", MUSE, "higher", "<split>.knowmem", {"muse": ("retain",)}, percent)
    turned = "the other way round (1 minus it): near 1 the holdout texts are the familiar ones"
    yield ProfileName("forget_holdout_Min-40%", MUSE, "match", "membership.min_k_auc", {"muse": ()}, turned)


def _perturbed(split: str) -> Card:
    return Card(
        "How likely the model finds the wrong answers of a row, per token: the mean of their probabilities. Mean over"
        " rows, in [0, 1]. It is what truth ratios compare with.",
        "`mean_i exp(-L_i)` over the wrong answers, L_i the average loss of the i-th",
        "a model that unlearned from one that finds every text unlikely, or likely: read it next to the probability of"
        " the right answer",
        _OU_PAPER,
        {"tofu": (split,)},
    )


def _paraphrased(split: str) -> Card:
    return Card(
        "How likely the model finds the right answer in other words, per token. Mean over rows, in [0, 1].",
        "`exp(-L)` of the paraphrased answer",
        "forgetting from a preference for the trained words: it is far below the probability of the answer itself for"
        " every model",
        _OU_PAPER,
        {"tofu": (split,)},
    )


OWN_CARDS: dict[str, Card] = {
    **{f"{prefix}_Q_A_PERT_Prob": _perturbed(split) for split, prefix in _OU_PREFIX.items()},
    **{f"{split}_Q_A_PARA_Prob": _paraphrased(split) for split in ("forget", "retain")},
}
"""Of the names that are no version of a canonical metric."""

PROFILE_NAMES: tuple[ProfileName, ...] = (*_openunlearning(), *_tofu(), *_muse())
