"""Multiple choice by log-likelihood: which option a model finds likeliest, and how sure it is.

A row's score of option c is `s_c = sum_t log p(t)` over the tokens of the option after the prompt, without an end
token. Nothing is generated, so a model that refuses in words is still asked what it knows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array, Ragged, span_mask
from expunge.metrics.view import SplitView

OPTION = "option_"
"""Variants of the wrong options in a trace: `option_0`, `option_2`, ...; the right one is the row's `answer`."""
RIGHT = "right_"
"""Variants of right options besides the `answer`, where a row has several: `right_1`, `right_2`, ..."""


class Choices(NamedTuple):
    """R questions, each with at least two options, in the order they were asked in."""

    scores: Ragged
    """R rows of `s_c` in nats, one per option."""
    right: Array
    """(R,) place of the right option inside its row, from 0; where several are, of the one that is the row's answer."""
    every_right: Ragged | None = None
    """R rows of bool: which options are right; None: `right` alone."""
    characters: Ragged | None = None
    """R rows of the options' lengths in characters; None where they were not stored."""


def choices_of(view: SplitView) -> Choices:
    """The options of every row of a split, by the variants of its texts.

    Which option is right follows from the numbers: it is the one that no `option_N` and no `right_N` has. So a purged
    trace still says.

    Raises:
        MetricError: a row whose options are not numbered from 0 with one left out for the answer, one that has no
            wrong option, or an option without a token: its score would be 0, above every other.
    """
    variants, rows = view.trace["variant"].to_pylist(), view.trace["row"].to_pylist()
    place = {int(row): index for index, row in enumerate(view.row)}
    texts: list[dict[int, int]] = [{} for _ in place]
    for index, (variant, row) in enumerate(zip(variants, rows, strict=True)):
        if (number := _number(variant)) is not None:
            texts[place[row]][number] = index
    right = np.array([_missing(found) for found in texts], dtype=np.int64)
    if bad := [str(row) for row, number in zip(view.row.tolist(), right.tolist(), strict=True) if number < 0]:
        raise MetricError(
            f"{view.split}: {len(bad)} of {len(view)} rows hold no options beside the answer, or not every one of them"
            f" (rows {', '.join(bad[:10])}{', ...' if len(bad) > 10 else ''})",
            hint="these tables are not of a multiple-choice suite, or rows of them are lost; evaluate again",
        )
    order = [
        int(answer) if number == gold else found[number]
        for answer, gold, found in zip(view.answer, right.tolist(), texts, strict=True)
        for number in range(len(found) + 1)
    ]
    counts = np.array([len(found) + 1 for found in texts], dtype=np.int64)
    at = np.array(order, dtype=np.int64)
    scores = Ragged.from_lengths(_scores(view, at), counts)
    wrong = np.array([str(variant).startswith(OPTION) for variant in variants])
    characters = view.characters
    return Choices(
        scores,
        right,
        every_right=scores.with_values(~wrong[at]),
        characters=None if characters is None else scores.with_values(characters[at]),
    )


def _number(variant: str) -> int | None:
    """The place of an option that is not the row's answer; None of any other text."""
    for prefix in (OPTION, RIGHT):
        if variant.startswith(prefix):
            return int(variant.removeprefix(prefix))
    return None


def _missing(numbers: dict[int, int]) -> int:
    """The one number from 0 to n that is not among n of them; -1 where that is not so, or n is 0."""
    left = set(range(len(numbers) + 1)) - numbers.keys()
    return left.pop() if numbers and len(left) == 1 else -1


def _scores(view: SplitView, order: Array) -> Array:
    scored = view.logp.select(span_mask(view.is_end, "no_eos")).take(order)
    if empty := np.flatnonzero(scored.lengths == 0).tolist():
        rows = view.trace["row"].to_numpy()[order[empty]]
        raise MetricError(
            f"{view.split}: {len(empty)} options hold no token (rows {', '.join(map(str, sorted(set(rows))[:10]))})",
            hint="choose another --template",
        )
    return scored.sums()


def chosen(
    scores: Ragged,  # R rows of at least one score
) -> Array:  # (R,)
    """The place of each row's highest score, from 0; of equal ones the first, as `argmax` has it."""
    rows, columns = len(scores), int(scores.lengths.max(initial=1))
    table = np.full((rows, columns), -np.inf)
    table[scores.row, scores.position] = scores.values
    return np.asarray(table.argmax(-1))


def accuracy(
    choices: Choices,
    *,
    lengths: Ragged | None = None,
) -> Array:  # (R,)
    """1 where the likeliest option is the right one, else 0: `[argmax_c s_c = right]`, `acc` of lm-evaluation-harness.

    Args:
        choices: scores in nats.
        lengths: in the rows of `choices`, what each score is divided by first, above 0: the option's characters for
            the harness's `acc_norm`, its UTF-8 bytes for `acc_bytes`. None: nothing, as for letters, which are of one
            length.

    Returns:
        (R,) 0 or 1, not reduced. Guessing among n options scores 1/n in the mean.

    Raises:
        MetricError: a length that is not above 0, or other rows.

    Source:
        lm-evaluation-harness, `multiple_choice` tasks (`acc`, `acc_norm`, `acc_bytes`); WMDP (arXiv 2403.03218); MMLU
        (2009.03300).
    """
    scores = choices.scores
    if lengths is not None:
        if not np.array_equal(lengths.offsets, scores.offsets) or not (lengths.values > 0).all():
            raise MetricError(
                "the options' lengths are not one number above 0 for every option", hint="give each option's length"
            )
        scores = scores.with_values(scores.values / lengths.values)
    return np.asarray(chosen(scores) == choices.right, dtype=np.float64)


def option_shares(
    scores: Ragged,  # R rows, nats
) -> Ragged:  # R rows
    """`p_c / sum_i p_i` with `p_c = exp(s_c)`: how the options share what the model gives to any of them.

    Computed from differences to the row's highest score, so that no row of a broken model becomes 0/0.

    Returns:
        R rows in [0, 1] that add up to 1, not reduced.
    """
    best = scores.values[scores.offsets[:-1] + chosen(scores)]
    weights = scores.with_values(np.exp(scores.values - best[scores.row]))
    return scores.with_values(weights.values / weights.sums()[scores.row])


def answer_probability(
    choices: Choices,
) -> Array:  # (R,)
    """The right option's share, `p_right / sum_c p_c`, in [0, 1]; not reduced.

    It moves before the ranking does, so it varies much less than accuracy from sample to sample; with TruthfulQA's
    several right options the sum of their shares (`right_share`) is its MC2.
    """
    shares = option_shares(choices.scores)
    return np.asarray(shares.values[shares.offsets[:-1] + choices.right])


def right_share(
    scores: Ragged,  # R rows, nats
    right: Ragged,  # the same rows, bool
) -> Array:  # (R,)
    """The share of all right options together, in [0, 1], where a row may have several; not reduced.

    Source:
        TruthfulQA (arXiv 2109.07958), MC2.
    """
    shares = option_shares(scores)
    return shares.with_values(shares.values * right.values).sums()


def confidence(
    choices: Choices,
) -> Array:  # (R,)
    """The chosen option's share, `max_c p_c / sum_i p_i`, in [1/n, 1] for n options; not reduced.

    Its mean lies at accuracy for a calibrated model, and at 1/n for one that has no preference.
    """
    shares = option_shares(choices.scores)
    return np.asarray(shares.values[shares.offsets[:-1] + chosen(choices.scores)])


def chance(
    choices: Choices,
) -> Array:  # (R,)
    """What guessing scores on each row, 1/n for n options; not reduced."""
    return np.asarray(1 / choices.scores.lengths)
