"""Verbatim memorisation, read off teacher-forced greedy hits: no generation is needed.

A suffix of hits means that greedy decoding from there reproduces the rest of the answer.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from expunge.metrics.ragged import Array, Ragged

Floor = Literal["zero", "one_over_n"]


def exact_memorization(
    hit: Ragged,  # R rows of bool: the greedy prediction is the token
) -> Array:  # (R,)
    """Share of a row's tokens that greedy prediction gets right, `(1/N) sum_t hit_t`.

    Returns:
        (R,) in [0, 1], not reduced; NaN for a row without tokens.

    Source:
        Tirumala et al. (arXiv 2205.10770), as in OpenUnlearning (arXiv 2506.12618).
    """
    return hit.with_values(hit.values.astype(np.float64)).means()


def extraction_strength(
    hit: Ragged,  # R rows of bool
    *,
    floor: Floor = "zero",
) -> Array:  # (R,)
    """Share of a row that the model finishes by itself, given what comes before: `1 - k / N`.

    k is the smallest prefix after which every token is a hit: one more than the last miss.

    Args:
        hit: the greedy prediction is the token.
        floor: `zero`: no hit at the end scores 0. `one_over_n`: k stops at N - 1, so that a total miss and "only the
            last token right" both score 1/N, as in OpenUnlearning.

    Returns:
        (R,) in [0, 1], not reduced; NaN for a row without tokens.

    Source:
        Carlini et al. (arXiv 2012.07805) by way of Wang et al. (arXiv 2406.09179), section 3.
    """
    misses = ~hit.values.astype(bool)
    prefix = np.zeros(len(hit), dtype=np.int64)
    np.maximum.at(prefix, hit.row[misses], hit.position[misses] + 1)
    if floor == "one_over_n":
        prefix = np.minimum(prefix, np.maximum(hit.lengths - 1, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(hit.lengths > 0, 1 - prefix / hit.lengths, np.nan)
