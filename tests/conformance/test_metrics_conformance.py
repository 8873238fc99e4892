"""Metrics against values recorded from published implementations, and against real evaluation logs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from expunge.evals.suite import Profile
from expunge.evals.suites.tofu import measure
from expunge.metrics.auc import auc
from expunge.metrics.forget_quality import ks_test
from expunge.metrics.membership import (
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    reference_score,
    zlib_score,
)
from expunge.metrics.memorization import exact_memorization, extraction_strength
from expunge.metrics.options import option_probability
from expunge.metrics.probability import mean_loss, probability
from expunge.metrics.ragged import Ragged, span_mask
from expunge.metrics.rouge import rouge
from expunge.metrics.truth_ratio import closer_to_1, prob_mean, true_better, truth_ratio
from expunge.metrics.utility import harmonic_mean
from expunge.testing.tables import Row, answer_row, make_tables, text_row

EXACT = {"rel": 1e-9, "abs": 1e-12}
FLOAT32 = {"rel": 2e-6, "abs": 2e-6}
EPS = 1e-10


class Recorded(NamedTuple):
    """`metrics.json`: the values, and its batch of logits as a trace."""

    values: dict[str, Any]
    logp: Ragged
    ref_logp: Ragged
    hit: Ragged
    mu: Ragged
    var: Ragged
    is_end: Ragged


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def target_logps(batch: dict[str, Any], key: str) -> Ragged:
    rows = []
    for labels, logits in zip(batch["labels"], log_softmax(np.array(batch[key])), strict=True):
        rows.append([logits[t - 1, label] for t, label in enumerate(labels) if label != -100])
    return Ragged.from_rows(rows)


@pytest.fixture(scope="module")
def recorded(read_recorded: Callable[[str], Any]) -> Recorded:
    content = read_recorded("metrics.json")
    batch = content["batch"]
    every = log_softmax(np.array(batch["logits"]))
    probs = np.exp(every)
    mu = (probs * every).sum(-1)
    var = (probs * every**2).sum(-1) - mu**2
    where = [(b, t) for b, labels in enumerate(batch["labels"]) for t, label in enumerate(labels) if label != -100]
    logp = target_logps(batch, "logits")
    at = tuple(np.array([(b, t - 1) for b, t in where]).T)
    hit = [int(every[b, t - 1].argmax()) == batch["labels"][b][t] for b, t in where]
    last = logp.position == logp.lengths[logp.row] - 1
    ragged = logp.with_values
    return Recorded(
        content["metrics"],
        logp,
        target_logps(batch, "ref_logits"),
        ragged(np.array(hit)),
        ragged(mu[at]),
        ragged(var[at]),
        ragged(last),
    )


def dropped(recorded: Recorded, entries: Ragged) -> Ragged:
    return entries.select(span_mask(recorded.is_end, "drop_last"))


def per_sample(values: dict[str, Any], key: str) -> list[float]:
    return [sample[key] for sample in values["per_sample"]]


def test_probability(recorded: Recorded) -> None:
    values, loss = recorded.values["probability"], mean_loss(recorded.logp)
    assert loss == pytest.approx(per_sample(values, "avg_loss"), **EXACT)
    assert probability(loss) == pytest.approx(per_sample(values, "prob"), **EXACT)
    assert probability(loss).mean() == pytest.approx(values["agg_value"], **EXACT)


def test_span_without_the_last_label(recorded: Recorded) -> None:
    found = dropped(recorded, recorded.logp)
    rows = recorded.values["tokenwise_logprobs"]["per_sample"]
    assert found.lengths.tolist() == [len(row) for row in rows]
    assert found.values == pytest.approx(np.concatenate(rows), **FLOAT32)


def test_exact_memorization(recorded: Recorded) -> None:
    values, found = recorded.values["exact_memorization"], exact_memorization(dropped(recorded, recorded.hit))
    assert found == pytest.approx(per_sample(values, "score"), **FLOAT32)
    assert found.mean() == pytest.approx(values["agg_value"], **FLOAT32)


def test_extraction_strength(recorded: Recorded) -> None:
    values = recorded.values["extraction_strength"]
    found = extraction_strength(dropped(recorded, recorded.hit), floor="one_over_n")
    assert found == pytest.approx(per_sample(values, "score"), **EXACT)
    assert found.mean() == pytest.approx(values["agg_value"], **EXACT)


def test_loss_attack(recorded: Recorded) -> None:
    assert -loss_score(mean_loss(recorded.logp)) == pytest.approx(recorded.values["mia_loss"]["scores"], **EXACT)


def test_reference_attack(recorded: Recorded) -> None:
    found = reference_score(mean_loss(recorded.logp), mean_loss(recorded.ref_logp))
    assert -found == pytest.approx(recorded.values["mia_reference"]["scores"], **EXACT)


def test_zlib_attack(recorded: Recorded) -> None:
    values = recorded.values["mia_zlib"]
    sizes = np.array([len(zlib.compress(text.encode())) for text in values["texts"]])
    assert sizes.tolist() == values["zlib_len"]
    assert -zlib_score(mean_loss(recorded.logp), sizes) == pytest.approx(values["scores"], **EXACT)


@pytest.mark.parametrize("k", ["0.1", "0.2", "0.4", "0.6", "1.0"])
def test_min_k(recorded: Recorded, k: str) -> None:
    logp, mu, var = (dropped(recorded, entries) for entries in (recorded.logp, recorded.mu, recorded.var))
    assert -min_k_score(logp, k=float(k)) == pytest.approx(recorded.values["mia_min_k"][k], **FLOAT32)
    found = min_k_plus_plus_score(logp, mu, var, k=float(k))
    assert -found == pytest.approx(recorded.values["mia_min_k_plus_plus"][k], **FLOAT32)


def test_truth_ratio(recorded: Recorded) -> None:
    values = recorded.values["truth_ratio"]
    right = np.array(values["inputs"]["correct_avg_loss"])
    wrong = Ragged.from_rows(values["inputs"]["wrong_avg_losses"])
    ratio = truth_ratio(right, wrong, eps=EPS)
    closeness, preference, share = (
        values["cases"][name] for name in ("closer_to_1_better", "true_better", "prob_mean")
    )
    assert ratio == pytest.approx(closeness["per_sample"], **EXACT)
    assert closer_to_1(ratio, eps=EPS).mean() == pytest.approx(closeness["agg_value"], **EXACT)
    assert true_better(ratio).mean() == pytest.approx(preference["agg_value"], **EXACT)
    found = prob_mean(right, wrong, eps=EPS)
    assert found == pytest.approx(share["per_sample"], **EXACT)
    assert found.mean() == pytest.approx(share["agg_value"], **EXACT)


def test_option_probability(recorded: Recorded) -> None:
    inputs, values = recorded.values["truth_ratio"]["inputs"], recorded.values["probability_w_options"]
    found = option_probability(
        np.array(inputs["correct_avg_loss"]), Ragged.from_rows(inputs["wrong_avg_losses"]), eps=EPS
    )
    assert found == pytest.approx(values["per_sample"], **EXACT)
    assert found.mean() == pytest.approx(values["agg_value"], **EXACT)


def test_privleak(recorded: Recorded) -> None:
    for case in recorded.values["privleak"]["cases"]:
        reference = 0.5 if case["auc_retain"] is None else case["auc_retain"]
        assert privleak(case["auc_forget"], reference, eps=EPS) == pytest.approx(case["privleak"], **EXACT)


def test_membership_auc(recorded: Recorded) -> None:
    values = recorded.values["mia_auc"]
    forget, holdout = -np.array(values["forget_scores"]), -np.array(values["holdout_scores"])
    assert auc(forget, holdout) == pytest.approx(values["auc"], **EXACT)


def test_ks(recorded: Recorded) -> None:
    values = recorded.values["ks_test"]
    assert ks_test(np.array(values["a"]), np.array(values["b"])).pvalue == pytest.approx(values["pvalue"], rel=1e-6)


def test_harmonic_mean(recorded: Recorded) -> None:
    for case in (recorded.values["hm_aggregate"], recorded.values["hm_aggregate"]["with_a_zero"]):
        assert harmonic_mean(np.array(case["values"])) == pytest.approx(case["agg_value"], **EXACT)


def test_rouge(recorded: Recorded) -> None:
    pairs = recorded.values["rouge"]["pairs"]
    assert len(pairs) == 20
    for pair in pairs:
        found = rouge(pair["ground_truth"], pair["generation"])
        for name in found._fields:
            assert getattr(found, name) == pytest.approx(pair[name], **EXACT)


# Real logs of Llama-2-7B and Phi-1.5 on TOFU: texts of two tokens, whose log-probability is minus the logged loss.

FILES = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
MODELS = [
    *(
        f"tofu/{family}/{split}"
        for family in ("llama2-7b", "phi")
        for split in ("full", "retain90", "retain95", "retain99")
    ),
    "tofu/llama2-7b/retain90_wd0",
    "optml/llama2-7b/retain90",
    "optml/llama2-7b/retain50",
    "optml/phi/retain90",
]


@pytest.fixture(scope="module")
def logs(read_recorded: Callable[[str], Any]) -> dict[str, Any]:
    content: dict[str, Any] = read_recorded("tofu_logs.json")
    return content


def log_rows(split: str, log: dict[str, Any], *, again: bool) -> list[Row]:
    """Texts of one logged file; `again`: the options' answers were scored a second time, as a paraphrase."""
    paraphrased = split in ("forget", "retain") or again
    rows = []
    for row, loss in enumerate(log["avg_gt_loss"]):
        rows.append(text_row(split, row, "answer", [-loss] * 2))
        if paraphrased:
            rows.append(text_row(split, row, "paraphrase", [-log["avg_paraphrased_loss"][row]]))
        wrong = log["average_perturb_loss"][row]
        rows += [text_row(split, row, f"perturbed_{i}", [-loss]) for i, loss in enumerate(wrong)]
    return rows


def log_tables(inputs: dict[str, Any], *, again: bool) -> Any:
    texts, answers = [], []
    for split, file in FILES.items():
        texts += log_rows(split, inputs[file], again=again)
        answers += [answer_row(split, row, rouge=value) for row, value in enumerate(inputs[file]["rougeL_recall"])]
    return make_tables(texts, answers, exact=True)


def test_every_model_is_covered(logs: dict[str, Any]) -> None:
    assert sorted(logs["inputs"]) == sorted(MODELS)


@pytest.mark.parametrize(("profile", "again"), [("tofu", True), ("openunlearning", False)])
@pytest.mark.parametrize("model", MODELS)
def test_logged_utility(logs: dict[str, Any], model: str, profile: Profile, again: bool) -> None:
    recorded = logs["model_utility"][model][{"tofu": "tofu_aggregate_eval_stat"}.get(profile, "open_unlearning")]
    scores = measure(log_tables(logs["inputs"][model], again=again), profile=profile).scores
    for name, value in recorded.items():
        ours = name if name != "forget_Truth_Ratio" else "forget_truth_ratio"
        assert scores[ours].value == pytest.approx(value, **EXACT), name


@pytest.mark.parametrize("model", MODELS)
def test_logged_utility_with_arithmetic_means(logs: dict[str, Any], model: str) -> None:
    recorded = logs["model_utility"][model]["tofu_utils"]
    parts = []
    for split, label in (("retain", "Retain"), ("real_authors", "Real Authors"), ("world_facts", "Real World")):
        log = logs["inputs"][model][FILES[split]]
        wrong = Ragged.from_rows(log["average_perturb_loss"])
        gold = np.array(log["avg_gt_loss"])
        share = probability(gold) if split == "retain" else option_probability(gold, wrong)
        ratio = truth_ratio(np.array(log["avg_paraphrased_loss"]), wrong, mean="arithmetic")
        found = share.mean(), np.mean(log["rougeL_recall"]), true_better(ratio).mean()
        for name, value in zip(("Probability", "ROUGE", "Truth Ratio"), found, strict=True):
            assert value == pytest.approx(recorded[f"{label} {name}"], **EXACT)
        parts += found
    assert harmonic_mean(np.array(parts)) == pytest.approx(recorded["Model Utility"], **EXACT)


def forget_ratios(logs: dict[str, Any], model: str, *, eps: float) -> np.ndarray:
    log = logs["inputs"][model][FILES["forget"]]
    return truth_ratio(np.array(log["avg_paraphrased_loss"]), Ragged.from_rows(log["average_perturb_loss"]), eps=eps)


@pytest.mark.parametrize("pair", range(11))
def test_logged_forget_quality(logs: dict[str, Any], pair: int) -> None:
    recorded = logs["forget_quality"][pair]
    for eps, key in ((0.0, "tofu_pvalue"), (EPS, "open_unlearning_pvalue")):
        found = ks_test(*(forget_ratios(logs, recorded[side], eps=eps) for side in ("unlearn", "retain")))
        assert found.pvalue == pytest.approx(recorded[key], rel=1e-6, abs=1e-30)
        assert found.statistic == pytest.approx(recorded["tofu_ks_stat"], **EXACT)


def test_every_pair_is_covered(logs: dict[str, Any]) -> None:
    assert len(logs["forget_quality"]) == 11


def test_published_numbers_of_the_full_model(logs: dict[str, Any]) -> None:
    full, retrained = (
        log_tables(logs["inputs"][f"tofu/llama2-7b/{name}"], again=True) for name in ("full", "retain90")
    )
    scores = measure(full, reference=retrained, profile="tofu").scores
    assert scores["Model Utility"].value == pytest.approx(0.622677, abs=1e-6)
    assert scores["Forget Quality"].value == pytest.approx(1.834066e-21, rel=1e-6)
    assert scores["KS Test Forget"].value == pytest.approx(119 / 300)
    assert scores["Truth Ratio Forget"].ideal == pytest.approx(0.674019, abs=1e-6)
    assert measure(retrained, profile="tofu").scores["Model Utility"].value == pytest.approx(0.613745, abs=1e-6)
    canonical = measure(full, reference=retrained).scores
    assert canonical["model_utility"].value == pytest.approx(0.622677, abs=1e-6)
    assert canonical["forget_quality"].value == pytest.approx(1.834066e-21, rel=1e-6)
