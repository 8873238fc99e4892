"""MUSE's two memorisation scores of generated text: verbatim (VerbMem) and knowledge (KnowMem).

Published values are these times 100. The retrained model's value, not 0, is what unlearning should reach.
"""

from __future__ import annotations

from collections.abc import Sequence

from expunge.metrics.ragged import Array
from expunge.metrics.rouge import MUSE, RougeProfile, rouge_scores

KNOWMEM_STOPS = ("\n\n", "\nQuestion", "Question:")
"""Where a few-shot answer ends and the model begins to make up the next question."""


def before_stop(text: str, stop: Sequence[str] = KNOWMEM_STOPS) -> str:
    """`text` up to the first place where one of the `stop` texts begins; all of it where none occurs."""
    places = [place for end in stop if (place := text.find(end)) >= 0]
    return text[: min(places)] if places else text


def verbmem(
    references: Sequence[str],  # R texts
    outputs: Sequence[str],  # R texts
    *,
    profile: RougeProfile = MUSE,
) -> Array:  # (R,)
    """How much of a text the model goes on with after its beginning: ROUGE-L F1 of continuation and true continuation.

    Args:
        references: the true continuations. MUSE cuts them to their first 128 tokens, a start token among them, so to
            127 of the text's own; OpenUnlearning leaves them whole. A tokenizer is needed for that, so it is done
            before.
        outputs: greedy continuations of at most 128 tokens after the raw beginning, without a template.
        profile: `MUSE`, or `OPENUNLEARNING_MUSE` with its stemmer.

    Returns:
        (R,) in [0, 1], not reduced; NaN where the reference has no word.

    Raises:
        MetricError: there are not as many outputs as references.

    Source:
        MUSE (arXiv 2407.06460), section 3, criterion 1.
    """
    return rouge_scores(references, outputs, profile=profile)


def knowmem(
    references: Sequence[str],  # R texts
    outputs: Sequence[str],  # R texts
    *,
    profile: RougeProfile = MUSE,
) -> Array:  # (R,)
    """How much of a fact the model answers with: ROUGE-L F1 of its answer, cut at the first of `KNOWMEM_STOPS`.

    On questions about the forget set it is MUSE's criterion 2, on those about the retain set its criterion 4, utility
    preservation.

    Args:
        references: the true answers.
        outputs: greedy answers of at most 32 tokens after ten solved questions; what follows a stop is ignored.
        profile: `MUSE`, or `OPENUNLEARNING_MUSE` with its stemmer.

    Returns:
        (R,) in [0, 1], not reduced; NaN where the reference has no word.

    Raises:
        MetricError: there are not as many outputs as references.

    Source:
        MUSE (arXiv 2407.06460), section 3, criteria 2 and 4.
    """
    return rouge_scores(references, [before_stop(output) for output in outputs], profile=profile)
