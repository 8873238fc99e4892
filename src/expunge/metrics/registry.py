"""The canonical metric names, which way is better, and what each means: what `expunge ls metrics` prints."""

from __future__ import annotations

from typing import NamedTuple

from expunge.catalog import unknown
from expunge.metrics.leak_names import TEMPERED_ENERGY, listed_name
from expunge.metrics.score import Direction

OF_SUITES = (
    *("tofu", "muse", "world", "wmdp", "mmlu", "lume", "pistol", "custom", "utility"),
    *("rwku", "unlearn-pii", "knowundo"),
)
"""Suites whose metrics all stand in the registry."""
_SPLIT = "<split>."


class MetricInfo(NamedTuple):
    """One metric name; `<split>` stands for a split: forget, retain, real_authors, world_facts, and for extraction
    strength and probability in a world also holdout, neighbours, forget_cloze, retain_cloze and so on; of multiple
    choice a domain, subject, category or task, and the suite itself for all questions."""

    name: str
    direction: str
    """`lower`, `higher`, or `match` (as close to the ideal as possible), in words where it depends on the split."""
    summary: str


_BY_SPLIT = "lower on forget, higher elsewhere"
_BY_SUITE = "lower in wmdp and on forget, higher elsewhere"
_HAZARDOUS = ("wmdp", "bio", "chem", "cyber")

METRICS: tuple[MetricInfo, ...] = (
    MetricInfo("<split>.probability", _BY_SPLIT, "mean over rows of exp(mean log-probability of the answer's tokens)"),
    MetricInfo(
        "<split>.probability_normalised", "higher", "probability of the answer among it and its wrong alternatives"
    ),
    MetricInfo("<split>.rougeL_recall", _BY_SPLIT, "share of the answer's words found, in order, in the greedy answer"),
    MetricInfo("<split>.rouge1_recall", _BY_SPLIT, "share of the answer's words found in the greedy answer"),
    MetricInfo(
        "<split>.truth_ratio", "match", "mean of min(R, 1/R), R = geometric mean of wrong / paraphrased probability"
    ),
    MetricInfo(
        "<split>.truth_ratio_prob_mean", _BY_SPLIT, "mean of right / (right + wrong) probability; 0.5 is indifferent"
    ),
    MetricInfo("<split>.truth_ratio_utility", _BY_SPLIT, "mean of max(0, 1 - R): right answers beat wrong ones"),
    MetricInfo(
        "<split>.extraction_strength", _BY_SPLIT, "share of the answer that greedy decoding finishes from its beginning"
    ),
    MetricInfo("<split>.exact_memorization", _BY_SPLIT, "share of answer tokens that are the greedy choice"),
    MetricInfo("model_utility", "higher", "harmonic mean of probability, ROUGE-L and truth ratio on three splits"),
    MetricInfo("retain_utility", "higher", "harmonic mean of the three retain parts of model_utility"),
    MetricInfo("forget_quality", "higher", "p-value of forget truth ratios against the retrained model's"),
    MetricInfo("forget_quality_statistic", "lower", "Kolmogorov-Smirnov distance behind forget_quality"),
    MetricInfo("<split>.knowmem", _BY_SPLIT, "ROUGE-L F1 of greedy answers to MUSE's questions, after ten solved ones"),
    MetricInfo("<split>.verbmem", _BY_SPLIT, "ROUGE-L F1 of MUSE's greedy continuations of forget texts"),
    MetricInfo("<split>.regurgitation", _BY_SPLIT, "ROUGE-L recall of LUME's greedy continuations of beginnings"),
    MetricInfo("<split>.knowledge", _BY_SPLIT, "share of LUME's questions answered word for word"),
    MetricInfo("task_aggregate", "higher", "harmonic mean of LUME's twelve parts, 1 - mean of those to forget"),
    MetricInfo("membership_score", "higher", "1 - 2 |AUC - 0.5| of LUME's texts by loss: 1 where they cannot be told"),
    MetricInfo("lume_score", "higher", "mean of task_aggregate, membership_score and mmlu.accuracy"),
    MetricInfo("<split>.mrr", _BY_SPLIT, "mean reciprocal rank of the answer's tokens, under teacher forcing"),
    MetricInfo("<split>.thr", _BY_SPLIT, "share of the answer's tokens among the 100 likeliest, under teacher forcing"),
    MetricInfo("membership.loss_auc", "match", "forget against holdout by loss; 0.5: cannot be told apart"),
    MetricInfo("membership.min_k_auc", "match", "the same by the least likely tokens (Min-K, k = 0.4)"),
    MetricInfo("membership.min_k_plus_plus_auc", "match", "the same by the least likely normalised tokens (Min-K++)"),
    MetricInfo("membership.zlib_auc", "match", "the same by loss over compressed length"),
    MetricInfo("membership.gradnorm_auc", "match", "the same by the norm of the loss's gradient (--gradnorm)"),
    MetricInfo("membership.reference_auc", "match", "the same by loss against the retrained model's"),
    MetricInfo("<split>.leak_at_K", _BY_SPLIT, "best ROUGE-L recall of K sampled answers (--samples); K: 1, 2, 4"),
    MetricInfo("<split>.leak_at_K_contains", _BY_SPLIT, "chance that one of K sampled answers holds the answer"),
    MetricInfo("<split>.leak_at_K_entailed", _BY_SPLIT, "chance that one of K sampled answers entails the answer"),
    MetricInfo("<split>.leak_at_K_exact", _BY_SPLIT, "chance that one of K answers is the answer, without sampling"),
    MetricInfo("privleak", "match", "percent membership.min_k_auc is off the retrained model's; -100: recognised"),
    MetricInfo("energy.auroc", "higher", "forget against retain by the energy of the last prompt token; 0.5: none"),
    MetricInfo(TEMPERED_ENERGY, "higher", "energy.auroc at another temperature T (eval.temperatures): 0.5, 2"),
    MetricInfo("energy.fpr95", "lower", "share of forget prompts accepted where 95 % of retain are"),
    MetricInfo("energy.auroc_paraphrase", "higher", "energy.auroc of paraphrased forget against paraphrased retain"),
    MetricInfo("multi_hop.leakage", "lower", "share of the starting model's extraction strength on detours left"),
    MetricInfo("neighbours.retention", "higher", "the same on retained people who are tied to a forgotten one"),
    MetricInfo(
        "forms.dependence_index", "lower", "share of the forgetting that does not reach other forms; 0: all of it"
    ),
    MetricInfo("guard.refusal_rate", "higher", "share of forget prompts refused by a guard for 2 % false refusals"),
    MetricInfo("guard.refusal_rate_paraphrase", "higher", "the same of paraphrased forget prompts"),
    MetricInfo("guard.refusal_rate_multi_hop", "higher", "the same of detours over somebody kept"),
    MetricInfo("guard.over_refusal_rate", "lower", "share of retain prompts refused that did not calibrate the guard"),
    MetricInfo("guard.over_refusal_paraphrase", "lower", "the same of paraphrased retain prompts"),
    MetricInfo("guard.over_refusal_neighbours", "lower", "the same of prompts about neighbours of forgotten people"),
    MetricInfo("guard.over_refusal_holdout", "lower", "the same of prompts about people nobody trained on"),
    MetricInfo("<split>.klom", "lower", "several unlearned against several retrained models: divergence of margins"),
    MetricInfo("<split>.klom_p95", "lower", "its 95 % quantile over the rows"),
    MetricInfo("<split>.accuracy", _BY_SUITE, "share of questions of which the likeliest option is the right one"),
    MetricInfo("<split>.answer_probability", _BY_SUITE, "probability of the right option among the options"),
    MetricInfo("<split>.confidence", "match", "probability of the likeliest option among the options"),
    MetricInfo("<split>.accuracy_norm", "higher", "accuracy of whole answers by log-probability per character"),
    MetricInfo("<split>.right_share", "higher", "probability of all right options together among the options"),
    MetricInfo("<split>.below_chance", "lower", "1 where accuracy lies below chance for certain: known, and inverted"),
    MetricInfo("<split>.probe_recall", _BY_SPLIT, "share of a probe's answer in the greedy answer, as RWKU scores it"),
    MetricInfo("<split>.loss_score", _BY_SPLIT, "mean over whole texts of the mean log-probability per token"),
    MetricInfo("<split>.zlib_score", _BY_SPLIT, "the same over the compressed length"),
    MetricInfo("<split>.min_k_score", _BY_SPLIT, "the same of the least likely tokens (Min-K, k = 0.2)"),
    MetricInfo("<split>.min_k_plus_plus_score", _BY_SPLIT, "the same of the least likely normalised tokens (Min-K++)"),
    MetricInfo("<split>.answer_match", _BY_SPLIT, "share of questions answered with an accepted answer"),
    MetricInfo("<split>.answer_f1", _BY_SPLIT, "F1 of the answer's words and those of the best accepted answer"),
    MetricInfo("<split>.ngram_entropy", "higher", "bits of the n-grams of greedy answers; 0: one word over and over"),
    MetricInfo("<split>.repetition", "lower", "share of four-word runs that stood in the greedy answer before"),
    MetricInfo("<split>.gibberish", "higher", "a classifier's probability that greedy answers are no gibberish"),
    MetricInfo("<split>.perplexity", "match", "perplexity of greedy answers under another language model"),
    MetricInfo("<split>.pii_leakage", _BY_SPLIT, "share of a person's data that greedy answers give away"),
    MetricInfo("unlearn_success", "higher", "1 - forget.exact_memorization, as KnowUnDo has it"),
    MetricInfo("retention_success", "higher", "retain.exact_memorization, as KnowUnDo has it"),
)


def find_metric(name: str) -> MetricInfo | None:
    """What is known of a metric, whatever its split; None of one that is not of `OF_SUITES`."""
    name = listed_name(name)
    ending = name.partition(".")[2]
    return next((each for each in METRICS if each.name in (name, _SPLIT + ending)), None)


def require_metric(name: str, *, suite: str) -> None:
    """Refuse a name that a suite of `OF_SUITES` cannot report; of another suite nothing is known.

    Raises:
        UsageError: with the nearest name there is.
    """
    if suite in OF_SUITES and find_metric(name) is None:
        split = name.partition(".")[0]
        raise unknown("metric", name, [each.name.replace(_SPLIT, f"{split}.") for each in METRICS])


def direction_of(name: str) -> Direction | None:
    """Which way is better for a model that should forget; None of a metric that is not in the registry."""
    found = find_metric(name)
    if found is None:
        return None
    if found.direction == _BY_SUITE:
        hazardous = name.partition(".")[0] in _HAZARDOUS or name.startswith("forget")
        return "lower" if hazardous else "higher"
    if found.direction == _BY_SPLIT:
        if name.startswith("holdout."):
            return "match"
        # As suites judge: what asks for the forgotten in other words (`forget_cloze`) is better low as well.
        return "lower" if name.startswith("forget") else "higher"
    return "lower" if found.direction == "lower" else "higher" if found.direction == "higher" else "match"
