"""KLOM: whether unlearned models answer like retrained ones, told from several of each, row by row.

One unlearned model cannot be compared with one retrained model by its answers: training again from another seed moves
them as well. KLOM compares two samples of margins per row.
"""

from __future__ import annotations

import numpy as np

from expunge.metrics.ragged import Array, Ragged

BINS = 20
CLIP = 100.0
FLOOR = 1e-5


def token_margins(logp: Array) -> Array:
    """`z_y - log sum_{c != y} exp(z_c)` of each token, read off its log-probability: `log p - log(1 - p)`.

    Args:
        logp: any shape, log-probability of the answer token, nats, at most 0.

    Returns:
        The same shape, nats; infinite where p is 0 or 1 to the last digit.
    """
    logp = np.asarray(logp, dtype=np.float64)
    with np.errstate(divide="ignore"):
        # log(1 - p) by whichever form keeps its digits: p close to 1, or close to 0.
        rest = np.where(logp > -np.log(2), np.log(-np.expm1(logp)), np.log1p(-np.exp(logp)))
        return np.asarray(logp - rest)


def sequence_margins(logp: Ragged, *, clip: float = CLIP) -> Array:
    """The mean margin of each row's answer tokens, each clipped to [-clip, clip] first.

    Args:
        logp: R rows of log-probabilities.
        clip: > 0; what an infinite margin counts as.

    Returns:
        (R,), NaN for a row without tokens.
    """
    return logp.with_values(np.clip(token_margins(logp.values), -clip, clip)).means()


def klom(
    unlearned: Array,  # (M, R)
    retrained: Array,  # (N, R)
    *,
    bins: int = BINS,
    clip: float = CLIP,
    floor: float = FLOOR,
) -> Array:  # (R,)
    """`sum_b p_b log(p_b / max(q_b, floor))` of each row, over histograms of both samples of margins.

    p is the share of the M unlearned models whose margin lies in bin b, q that of the N retrained ones. The bins are
    equal and span the joint range of the row, its largest value included in the last one; where every margin is the
    same the value is 0. A bin without an unlearned model adds nothing.

    Args:
        unlearned: (M, R) margins, one row per unlearned model.
        retrained: (N, R) margins, one row per retrained model.
        bins: how many, > 0 (published: 20).
        clip: margins beyond +-clip count as clip (published: 100).
        floor: least share of a bin among the retrained models, in (0, 1] (published: 1e-5).

    Returns:
        (R,), not reduced. 0 for two equal samples; for disjoint ones `-log(floor) - H(p)`: 11.51 where all unlearned
        models fall into one bin, less where they spread. A floored q can sum to a little more than 1, so a value can
        lie below 0 by at most `bins * floor`. NaN where a margin is.

    Source:
        Georgiev et al., Attribute-to-Delete, arXiv 2410.23232, whose code drops the sample equal to the joint maximum
        from its bins (N = 100 models of each kind there).
    """
    ours = np.clip(np.asarray(unlearned, dtype=np.float64), -clip, clip)
    theirs = np.clip(np.asarray(retrained, dtype=np.float64), -clip, clip)
    both = np.concatenate([ours, theirs])
    low, high = both.min(0), both.max(0)
    with np.errstate(invalid="ignore"):
        width = np.where(high > low, high - low, 1.0) / bins
        p, q = (_shares(sample, low, width, bins) for sample in (ours, theirs))
        terms = np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / np.maximum(q, floor)), 0.0)
    return np.where(np.isnan(both).any(0), np.nan, terms.sum(0))


def _shares(sample: Array, low: Array, width: Array, bins: int) -> Array:
    """(bins, R) share of each row's sample in each bin."""
    place = np.nan_to_num((sample - low) / width).astype(np.int64).clip(0, bins - 1)
    shares = np.zeros((bins, sample.shape[1]))
    np.add.at(shares, (place, np.arange(sample.shape[1])[None, :].repeat(len(sample), 0)), 1 / len(sample))
    return shares
