"""Hand-computed values: a toy bigram model, and small examples of every metric."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from expunge.errors import MetricError
from expunge.metrics.auc import auc, fpr_at_95
from expunge.metrics.energy import prompt_energy
from expunge.metrics.forget_quality import ks_test
from expunge.metrics.membership import min_k_plus_plus_score, min_k_score, privleak
from expunge.metrics.memorization import exact_memorization, extraction_strength
from expunge.metrics.options import option_probability
from expunge.metrics.probability import mean_loss, probability
from expunge.metrics.ragged import Ragged, span_mask
from expunge.metrics.rouge import rouge
from expunge.metrics.truth_ratio import closer_to_1, prob_mean, true_better, truth_ratio
from expunge.metrics.utility import harmonic_mean

# p(next | state) over a, b, End
BIGRAM = {"B": (1 / 2, 1 / 4, 1 / 4), "a": (1 / 4, 1 / 2, 1 / 4), "b": (1 / 8, 1 / 8, 3 / 4)}
SYMBOLS = "abE"


def near(value: float | list[float]) -> object:
    return pytest.approx(value, abs=5e-7)


def trace(text: str) -> dict[str, Ragged]:
    """The token trace of `text` (ending in E) under the bigram model."""
    states = ["B", *text[:-1]]
    probs = np.array([BIGRAM[state] for state in states])
    target = np.array([SYMBOLS.index(symbol) for symbol in text])
    logp = np.log(probs)
    mu = (probs * logp).sum(-1)
    columns = {
        "logp": logp[np.arange(len(text)), target],
        "hit": probs.argmax(-1) == target,
        "mu": mu,
        "var": (probs * logp**2).sum(-1) - mu**2,
        "is_end": np.array([symbol == "E" for symbol in text]),
    }
    return {name: Ragged.from_lengths(values, np.array([len(text)])) for name, values in columns.items()}


@pytest.mark.parametrize(
    ("text", "loss", "with_end", "without_end", "hits", "z"),
    [
        ("abE", 0.557992, 0.572357, 0.5, [1, 1, 1], [1, 1, 0.577350]),
        ("baE", 1.617343, 0.198425, 0.176777, [0, 0, 0], [-1, -1.732051, -1]),
        ("aaE", 1.155245, 0.314980, 0.353553, [1, 0, 0], [1, -1, -1]),
    ],
)
def test_bigram_trace(
    text: str, loss: float, with_end: float, without_end: float, hits: list[int], z: list[float]
) -> None:
    found = trace(text)
    assert mean_loss(found["logp"]) == near([loss])
    assert probability(mean_loss(found["logp"])) == near([with_end])
    inner = found["logp"].select(span_mask(found["is_end"], "no_eos"))
    assert probability(mean_loss(inner)) == near([without_end])
    assert found["hit"].values.tolist() == hits
    assert (found["logp"].values - found["mu"].values) / np.sqrt(found["var"].values) == near(z)
    assert min_k_plus_plus_score(found["logp"], found["mu"], found["var"], k=1) == near([float(np.mean(z))])


def test_bigram_moments() -> None:
    found = trace("abE")
    assert found["mu"].values == near([-1.039721, -1.039721, -0.735622])
    assert found["var"].values == near([0.120113, 0.120113, 0.601950])


def losses(*rows: list[float]) -> Ragged:
    return Ragged.from_rows(list(rows))


def test_truth_ratio_of_the_bigram() -> None:
    right = mean_loss(trace("abE")["logp"])
    wrong = losses([float(mean_loss(trace(text)["logp"])[0]) for text in ("aaE", "baE")])
    assert truth_ratio(right, wrong) == near([0.436790])
    assert truth_ratio(right, wrong, mean="arithmetic") == near([0.448501])
    assert prob_mean(right, wrong) == near([0.695996])
    assert option_probability(right, wrong) == near([0.527148])


def test_truth_ratio_of_powers_of_two() -> None:
    right, wrong = np.array([math.log(2)]), losses([math.log(4), math.log(16)])
    assert truth_ratio(right, wrong) == near([0.25])
    assert truth_ratio(right, wrong, mean="arithmetic") == near([0.3125])
    assert prob_mean(right, wrong) == near([0.8])
    assert true_better(truth_ratio(right, wrong)) == near([0.75])


def test_options() -> None:
    assert option_probability(-np.log([0.5]), losses([-math.log(0.25), -math.log(0.0625)])) == near([0.615385])


def test_closer_to_1() -> None:
    assert closer_to_1(np.array([0.5, 2, 1])).mean() == near(0.666667)
    assert closer_to_1(np.array([0, np.inf])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("first", "second", "statistic", "pvalue"),
    [
        ([1, 2, 3], [4, 5, 6], 1, 0.1),
        ([1, 3], [2, 4], 0.5, 1),
        ([1, 2, 4], [3, 5, 6], 2 / 3, 0.6),
        ([1, 2], [1, 2], 0, 1),
        ([1, 2], [3, 4, 5], 1, 0.2),
    ],
)
def test_ks(first: list[float], second: list[float], statistic: float, pvalue: float) -> None:
    found = ks_test(np.array(first), np.array(second))
    assert found.statistic == pytest.approx(statistic)
    assert found.pvalue == pytest.approx(pvalue)


@pytest.mark.parametrize(
    ("apart", "pvalue"), [(119, 1.834066e-21), (114, 1.096624e-19), (9, 0.999300), (1, 1), (300, 0)]
)
def test_ks_of_300(apart: int, pvalue: float) -> None:
    """D = apart / 300: that many values moved beyond all others."""
    first = np.arange(300.0)
    found = ks_test(first, np.where(first < apart, first + 1000, first))
    assert found.statistic == pytest.approx(apart / 300)
    expected = 2 / math.comb(600, 300) if apart == 300 else pvalue
    assert found.pvalue == pytest.approx(expected, rel=1e-6)


def test_harmonic_mean() -> None:
    assert harmonic_mean(np.array([1, 1 / 2, 1 / 4])) == near(0.428571)
    assert harmonic_mean(np.array([0.9, 0.6, 0.3] * 3)) == near(0.490909)
    assert harmonic_mean(np.array([0.9, 0.6, 0])) == 0


@pytest.mark.parametrize("parts", [[0.5, -0.1], [0.5, math.nan], []])
def test_harmonic_mean_refuses(parts: list[float]) -> None:
    with pytest.raises(MetricError):
        harmonic_mean(np.array(parts))


@pytest.mark.parametrize(
    ("hits", "strength", "published", "exact"),
    [
        ([1, 1, 1, 1], 1, 1, 1),
        ([0, 1, 1], 2 / 3, 2 / 3, 2 / 3),
        ([1, 0, 1, 0], 0, 1 / 4, 1 / 2),
        ([0, 0, 0, 0], 0, 1 / 4, 0),
        ([0, 0, 0, 1], 1 / 4, 1 / 4, 1 / 4),
        ([1, 1, 0], 0, 1 / 3, 2 / 3),
        ([0], 0, 1, 0),
    ],
)
def test_memorization(hits: list[int], strength: float, published: float, exact: float) -> None:
    found = losses([float(hit) for hit in hits])
    assert extraction_strength(found) == near([strength])
    assert extraction_strength(found, floor="one_over_n") == near([published])
    assert exact_memorization(found) == near([exact])


def test_text_without_an_end_token_loses_its_last_one_in_published_practice() -> None:
    hits, ends = losses([1, 1, 0]), Ragged.from_lengths(np.zeros(3, dtype=bool), np.array([3]))
    published, canonical = (hits.select(span_mask(ends, span)) for span in ("drop_last", "no_eos"))  # type: ignore[arg-type]
    assert exact_memorization(published).tolist() == [1]
    assert extraction_strength(published, floor="one_over_n").tolist() == [1]
    assert exact_memorization(canonical) == near([2 / 3])
    assert extraction_strength(canonical).tolist() == [0]


def test_min_k() -> None:
    assert min_k_score(losses([-1, -2, -3, -4, -5]), k=0.4).tolist() == [-4.5]
    assert min_k_score(losses([-3, -1]), k=0.4).tolist() == [-3], "at least one token"
    with pytest.raises(MetricError):
        min_k_score(losses([-1]), k=0)


def test_min_k_plus_plus() -> None:
    logp = np.log([0.8, 0.2])
    mu = float(np.dot([0.8, 0.2], logp))
    var = float(np.dot([0.8, 0.2], (logp - mu) ** 2))
    for value, z in zip(logp, (0.5, -2), strict=True):
        assert min_k_plus_plus_score(losses([value]), losses([mu]), losses([var])) == near([z])
    certain = min_k_plus_plus_score(losses([0.0]), losses([0.0]), losses([0.0]))
    assert certain.tolist() == [0], "a certain token has no variance"


def test_membership_auc_and_privleak() -> None:
    found = auc(-np.array([1, 2, 3]), -np.array([2, 4, 5]))
    assert found == near(0.833333)
    assert privleak(found, 0.5) == pytest.approx(-66.6667, abs=1e-4)
    assert privleak(0.7, 0.5) == pytest.approx(-40)
    assert privleak(0.3, 0.5) == pytest.approx(40)
    assert privleak(0, 1 - 0.4772) == pytest.approx(109.556, abs=1e-3)
    assert privleak(0, 1 - 0.5393) == pytest.approx(85.426, abs=1e-3)
    with pytest.raises(MetricError):
        privleak(0.5, 1.0)


def test_compressed_sizes() -> None:
    assert len(zlib.compress(b"a" * 10)) == 11
    assert len(zlib.compress(b"hello world")) == 19


def test_rouge() -> None:
    reference, output = "The author was running quickly", "author runs"
    assert rouge(reference, output) == pytest.approx((0.4, 0.4, 4 / 7))
    assert rouge(reference, output, stem=False) == pytest.approx((0.2, 0.2, 2 / 7))
    assert rouge("Paris", "") == (0, 0, 0)


def test_energy() -> None:
    lse = [float(np.log(np.exp(row).sum())) for row in ([0, 0], [1, 2, 3])]
    assert prompt_energy(losses([lse[0], 99], [lse[1]], [])) == pytest.approx(
        [-0.693147, -3.407606, math.nan], abs=1e-6, nan_ok=True
    )
    shifted = float(np.log(np.exp([6, 7, 8]).sum()))
    assert -shifted == near(-lse[1] - 5)


def test_energy_separation() -> None:
    known, unknown = -np.arange(1.0, 21), -np.array([0.0, 1, 2, 3])
    assert fpr_at_95(-known, -unknown) == 0.5
    assert auc(np.ones(4), np.ones(20)) == 0.5
    assert auc(np.array([5.0, 6]), np.array([1.0, 2])) == 1


@pytest.mark.parametrize(("first", "second"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_one_group_or_nan_is_refused(first: list[float], second: list[float]) -> None:
    for test in (auc, fpr_at_95, ks_test):
        with pytest.raises(MetricError):
            test(np.array(first), np.array(second))
