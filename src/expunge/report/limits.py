"""What the numbers do not show, and what the method is weak at where they do."""

from __future__ import annotations

from expunge.metrics.score import Score
from expunge.report.collect import Compared, EvaluatedRun, Scores
from expunge.report.examples import broken_share
from expunge.report.numbers import count, number, percent
from expunge.report.words import FORMS, form_name

_ALPHA = 0.05
_TELLING = 0.1
"""How far a membership AUC lies from the retrained model's (or chance) to be worth a sentence."""
_BROKEN = 0.1
GUARANTEE = (
    "Unlearning by training gives no guarantee, and erasing from a model erases nothing from logs, backups or"
    " training sets. Nothing here is legal advice."
)
_FEW_GROUPS = 10


def weaknesses(found: Compared) -> tuple[str, ...]:
    """Where this run falls short, each in one sentence with its number; empty where no number shows anything."""
    scores = found.this.scores
    said = [
        *_quality(scores.get("forget_quality")),
        *_leaks(found),
        *_unreadable(found.this, found.start),
        *_membership(found),
        *_separation(scores),
        *_over_refusal(scores),
    ]
    return tuple(said)


def _quality(score: Score | None) -> list[str]:
    if score is None or score.value >= _ALPHA:
        return []
    return [
        f"Its truth ratios on the forget set are distributed otherwise than the retrained model's (forget quality p ="
        f" {number(score.value)}): by this test it can be told from a model that never saw the forget set."
    ]


def _leaks(found: Compared) -> list[str]:
    if found.retrained is None:
        return []
    said = []
    for form in FORMS:
        name = f"forget_{form}.extraction_strength"
        ours, never = found.this.scores.get(name), found.retrained.scores.get(name)
        if ours and never and ours.low is not None and ours.low > (never.high or never.value):
            said.append(f"{form_name(form)} ({number(ours.value)} against {number(never.value)})")
    if not said:
        return []
    return [
        "Questions that reach the forgotten facts in another way than the forget set does still bring them out more"
        f" than in the retrained model: {', '.join(said)}."
    ]


def _unreadable(this: EvaluatedRun, start: EvaluatedRun | None) -> list[str]:
    ours = broken_share(this)
    if ours is None or ours[0] < _BROKEN:
        return []
    before = None if start is None else broken_share(start)
    compared = "" if before is None else f" (the starting model's: {percent(before[0])})"
    return [
        f"Asked about the forget set it often says what nobody can read: {percent(ours[0])} of {count(ours[1])} answers"
        f" stutter, repeat themselves, are empty or do not end{compared}. Without a guard that refuses, users see them."
    ]


def _membership(found: Compared) -> list[str]:
    said = []
    for name, how in (("membership.loss_auc", "loss"), ("membership.min_k_plus_plus_auc", "Min-K++")):
        score = found.this.scores.get(name)
        if score is None:
            continue
        aim = 0.5 if score.ideal is None else score.ideal
        if abs(score.value - aim) > _TELLING:
            said.append(f"{how} {number(score.value)} where {number(aim)} would not tell")
    if not said:
        return []
    return [
        "Forgotten rows can be told from rows no model was trained on, so that something was forgotten shows from"
        f" outside: AUC by {', by '.join(said)}."
    ]


def _separation(scores: Scores) -> list[str]:
    trained = scores.get("energy.auroc")
    other = scores.get("energy.auroc_paraphrase")
    if trained is None or other is None or other.value > trained.value - 0.02:
        return []
    return [
        f"Energy tells reworded forget questions from reworded retain questions less well ({number(other.value)}) than"
        f" trained ones ({number(trained.value)})."
    ]


def _over_refusal(scores: Scores) -> list[str]:
    found = []
    for name, who in (
        ("guard.over_refusal_paraphrase", "reworded retain questions"),
        ("guard.over_refusal_neighbours", "questions about neighbours"),
    ):
        score = scores.get(name)
        if score is not None and score.value > _ALPHA:
            found.append(f"{percent(score.value)} of {who}")
    return [f"The guard also refuses {' and '.join(found)}, which it should answer."] if found else []


def always(found: Compared) -> tuple[str, ...]:
    """What no evaluation of this kind shows."""
    said = [
        "No attack was run. Fine-tuning, quantisation, sampling, other wordings or other languages may bring back what"
        " these questions no longer bring out.",
        "The numbers hold for the questions that were asked, in the forms that were asked, answered greedily.",
        f"Intervals are 95 % and come from drawing {_drawn(found.this)} again; they do not cover what another training"
        " seed would change.",
        GUARANTEE,
    ]
    if found.retrained is not None:
        yardstick = "The yardstick is one retrained model with one seed; a second one would score a little otherwise."
        said.insert(2, yardstick)
    return tuple(said)


def _drawn(run: EvaluatedRun) -> str:
    groups = {group for group in run.view("forget").groups if group is not None} if "forget" in run.splits else set()
    if not groups:
        return "rows"
    few = ", which are few" if len(groups) < _FEW_GROUPS else ""
    return f"people, authors or documents ({count(len(groups))} on the forget side{few})"
