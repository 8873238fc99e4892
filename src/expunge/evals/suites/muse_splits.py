"""The splits of the MUSE suite, as its tables and metrics name them."""

from __future__ import annotations

from expunge.evals.suites.tofu_sheet import Sheet

FORGET, RETAIN = "forget", "retain"
"""Questions about forget and retain texts (`knowmem`)."""
VERBATIM = "forget_verbatim"
"""Forget texts to be continued (`verbmem`)."""
FORGET_TEXTS, HOLDOUT = "forget_texts", "holdout"
"""Whole texts: forgotten ones, and ones nobody trained on (`privleak`)."""
KNOWMEM = "knowmem"

SUBSETS = {FORGET: "knowmem", RETAIN: "knowmem", VERBATIM: "verbmem", FORGET_TEXTS: "privleak", HOLDOUT: "privleak"}
"""Split -> where MUSE has it."""

NO_RETRAINED = (
    "no --reference given: `expunge eval RETRAINED --suite muse` measures a model that was trained without the forget"
    " texts, --reference RETRAINED compares with it"
)


def lacking(sheet: Sheet, split: str) -> str | None:
    """Why a split cannot be measured; None where it was evaluated."""
    return None if split in sheet.views else f"no {split} rows in this evaluation (MUSE's {SUBSETS[split]} subset)"
