"""The reference attack on a sheet: how much likelier a text is to the model than to one that never saw it."""

from __future__ import annotations

from expunge.evals.suites.tofu_sheet import NO_REFERENCE, Sheet, Views
from expunge.metrics.membership import reference_score

NAME = "membership.reference_auc"


def fill_reference_attack(
    sheet: Sheet, reference: Views | None, *, members: str = "forget", others: str = "holdout"
) -> None:
    """Its AUC, from the stored losses of both models, or why there is none.

    Args:
        sheet: receives the estimate or the reason.
        reference: splits of a model that never saw the rows of `members`, over the same rows: the retrained one.
        members: rows that the measured model may have been trained on.
        others: rows that no model was trained on.

    Raises:
        MetricError: rows that cannot be measured.
    """
    if reference is None:
        sheet.skipped[NAME] = NO_REFERENCE
    elif absent := [split for split in (members, others) if split in sheet.views and split not in reference]:
        sheet.skipped[NAME] = f"the reference run has no {absent[0]} rows"
    else:
        sheet.auc(NAME, members, others, lambda view: reference_score(view.loss, reference[view.split].loss))
