"""Where MUSE cuts an answer to a question (arXiv 2407.06460, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

KNOWMEM_STOPS = ("\n\n", "\nQuestion", "Question:")
"""Where a few-shot answer ends and the model begins to make up the next question."""


def before_stop(text: str, stop: Sequence[str] = KNOWMEM_STOPS) -> str:
    """`text` up to the first place where one of the `stop` texts begins; all of it where none occurs."""
    places = [place for end in stop if (place := text.find(end)) >= 0]
    return text[: min(places)] if places else text
