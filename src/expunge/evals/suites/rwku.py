"""The RWKU suite: what is still known of famous people, of their neighbours, and of everything else (arXiv 2406.10890).

Probes are asked as RWKU's release asks them and scored by its ROUGE-L recall. Measuring reads tables only.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from expunge.data.example import Example
from expunge.errors import DataError
from expunge.evals.suite import Measured, Profile, Scoring, Split, Suite, SuiteData, Tables
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.evals.suites.leak_sheet import fill_sampled
from expunge.evals.suites.tofu_sheet import PerRow, Rule, Sheet, Views, reference_views, scored, views_of
from expunge.metrics.bootstrap import draw_weights
from expunge.metrics.cards.splits import PROBES as SPLITS_OF_PROBES
from expunge.metrics.estimate import Column, mean_estimate
from expunge.metrics.membership import loss_score, min_k_plus_plus_score, min_k_score, zlib_score
from expunge.metrics.multiple_choice import accuracy, answer_probability, choices_of, right_share
from expunge.metrics.probability import probability
from expunge.metrics.ragged import Array
from expunge.metrics.view import SplitView

PROBE_TOKENS = 30
"""Tokens of an answer to a probe, and to a question of TriviaQA."""
LONG_TOKENS = 256
"""Tokens of a chain of thought, and of an answer whose fluency is measured."""
MIN_K = 0.2
"""Share of tokens that Min-K and Min-K++ look at, as RWKU reports them."""

PROBES = {
    "forget_level1": "forget_level1",
    "forget_level2": "forget_level2",
    "forget_level3": "forget_level3",
    "neighbours_level1": "neighbor_level1",
    "neighbours_level2": "neighbor_level2",
}
"""Level -> the file of its probes."""
ADVERSARIAL = tuple(split for split in SPLITS_OF_PROBES if split.startswith("forget_level3_"))
"""Splits of adversarial probes, one for each kind of them."""
PARTS = {
    "forget": tuple(split for split in SPLITS_OF_PROBES if split.startswith("forget")),
    "forget_level3": ADVERSARIAL,
    "neighbours": tuple(split for split in SPLITS_OF_PROBES if split.startswith("neighbours")),
}
"""Several splits together -> which."""
TEXTS = {"forget_texts": "forget_mia", "retain_texts": "retain_mia"}
CHOICES = {"mmlu": "retain_mmlu", "truthfulqa_mc1": "truthful"}
SEVERAL_RIGHT = {"truthfulqa_mc2": "truthful_mc2"}
"""Multiple choice with several right options, and where it lies."""
ANSWERS = {"bbh": ("answer_match",), "triviaqa": ("answer_match", "answer_f1"), "fluency": ("ngram_entropy",)}
"""Split of greedy answers -> what is measured of them."""
SPLITS = (*SPLITS_OF_PROBES, *TEXTS, *CHOICES, *SEVERAL_RIGHT, *ANSWERS)

_FILES = {
    **dict.fromkeys(ADVERSARIAL, "forget_level3"),
    **PROBES,
    **TEXTS,
    **CHOICES,
    **SEVERAL_RIGHT,
    "bbh": "retain_bbh",
    "triviaqa": "triviaqa",
    "fluency": "fluency",
}
_PROBE_SCORING = Scoring(stop=("\n",), scores=("probe_recall",))
_STORED = {"bbh": "final_match", "triviaqa": "answer_match"}
"""Split -> under which name its `answer_match` is stored."""
_ATTACKS: dict[str, PerRow] = {
    "loss_score": lambda view: loss_score(view.loss),
    "zlib_score": lambda view: zlib_score(view.loss, view.zlib_bytes()),
    "min_k_score": lambda view: min_k_score(view.answers("logp", "no_eos"), k=MIN_K),
    "min_k_plus_plus_score": lambda view: min_k_plus_plus_score(
        *(view.answers(column, "no_eos") for column in ("logp", "mu", "var")), k=MIN_K
    ),
}


def rwku(data: SuiteData) -> Suite:
    """Declare the suite.

    Args:
        data: `source` is a folder of RWKU's files, of one target or of all, or a Hub id, `jinzhuoran/RWKU` unless
            said; with `#Stephen King` behind it only that target's rows. `limit` holds for each split. A folder may
            lack files; what they would have measured is skipped.

    Raises:
        UsageError: rows of another origin are named.
        DataError: there is no probe of the forget set, no such target, or rows that cannot be used; they are named.
    """
    from expunge.data.benchmarks import rwku as files
    from expunge.data.benchmarks.place import find_place

    require_own_rows(data, "the rwku suite takes its rows from RWKU")
    place = find_place(data.source or files.HUB)
    loaded = {
        stem: files.load_file(place, stem) for stem in dict.fromkeys(_FILES.values()) if files.has_file(place, stem)
    }
    if not any(loaded.get(stem) for stem in PROBES.values() if stem.startswith("forget")):
        _refuse(place.where, place.part, sorted({files.FILES[stem].stem for stem in loaded}))
    splits = [
        _split(split, files.grouped(rows[: data.limit]))
        for split in SPLITS
        if (rows := _rows_of(split, loaded.get(_FILES[split], ()), files.KIND))
    ]
    options = {"rows": place.part or "all", "limit": str(data.limit or "none")}
    return Suite("rwku", tuple(splits), measure, options=options, profiles=("canonical",))


def _refuse(where: str, part: str | None, stems: list[str]) -> None:
    if any(stem.startswith("forget_level") for stem in stems):
        raise DataError(
            f"{where} has no probes about {part!r}",
            hint="write the target's name as RWKU's column 'subject' has it, or leave it out for all targets",
        )
    raise DataError(
        f"{where} has no probes of the forget set (forget_level1, forget_level2 or forget_level3);"
        f" it has {', '.join(stems) or 'no file of RWKU'}",
        hint="use a folder of RWKU's files, of one target or of all",
    )


def _rows_of(split: str, rows: tuple[Example, ...], kind: str) -> tuple[Example, ...]:
    if split not in ADVERSARIAL:
        return rows
    wanted = split.removeprefix("forget_level3_").replace("_", " ")
    return tuple(example for example in rows if example.extra[kind] == wanted)


def _split(name: str, rows: tuple[Example, ...]) -> Split:
    if name in SPLITS_OF_PROBES:
        return Split(name, rows, generate=True, max_new_tokens=PROBE_TOKENS, scoring=_PROBE_SCORING)
    if name in TEXTS:
        return Split(name, rows, stats=True)
    if name in CHOICES or name in SEVERAL_RIGHT:
        return Split(name, rows, ("options",))
    limit = PROBE_TOKENS if name == "triviaqa" else LONG_TOKENS
    stored = tuple(_STORED[name] if metric == "answer_match" else metric for metric in ANSWERS[name])
    return Split(name, rows, generate=True, max_new_tokens=limit, scoring=Scoring(scores=stored))


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric of the suite on one model, with 95 % intervals.

    Resampled are people; where all probes are about one of them, the neighbours they are about, and else rows.

    Args:
        tables: the passes of the model that is measured.
        reference: those of a model that never knew the targets, over the same rows; gives every metric's ideal.
        profile: `canonical`.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Returns:
        Scores by name, why others are absent, and the rows that each mean of one split was taken over.

    Raises:
        MetricError: rows are missing, doubled or not numbers, or the reference was measured on other rows.
        UsageError: another profile.
    """
    require_canonical(profile, suite="rwku")
    views = views_of(tables)
    theirs = reference_views(views, reference, needed=next(iter(views)))
    return scored(views, theirs, fill=fill, rule=rule, allow_missing=allow_missing)


def rule(name: str) -> Rule:
    """How a metric is judged: what is known of a target should go, everything else stay."""
    return Rule("lower" if name.startswith("forget") else "higher")


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every metric of one model."""
    for name, parts in PARTS.items():
        _fill_together(sheet, f"{name}.probe_recall", [part for part in parts if part in sheet.views])
    for split in SPLITS_OF_PROBES:
        _fill(sheet, f"{split}.probe_recall", split, partial(SplitView.answer_score, name="probe_recall"))
        _fill(sheet, f"{split}.probability", split, lambda view: probability(view.loss))
    for split in TEXTS:
        for metric, attack in _ATTACKS.items():
            _fill(sheet, f"{split}.{metric}", split, attack)
    for split in CHOICES:
        _fill(sheet, f"{split}.accuracy", split, lambda view: accuracy(choices_of(view)))
        _fill(sheet, f"{split}.answer_probability", split, lambda view: answer_probability(choices_of(view)))
    for split in SEVERAL_RIGHT:
        _fill(sheet, f"{split}.right_share", split, _right_share)
    for split, metrics in ANSWERS.items():
        for metric in metrics:
            stored = _STORED[split] if metric == "answer_match" else metric
            _fill(sheet, f"{split}.{metric}", split, partial(SplitView.answer_score, name=stored))
    fill_sampled(sheet)


def _right_share(view: SplitView) -> Array:
    choices = choices_of(view)
    assert choices.every_right is not None  # `choices_of` fills it
    return right_share(choices.scores, choices.every_right)


def _fill(sheet: Sheet, name: str, split: str, per_row: PerRow) -> None:
    sheet.mean(name, split, per_row, absent=_absent(sheet, split))


def _absent(sheet: Sheet, split: str) -> str:
    """Why a split cannot be measured; of all adversarial ones in the same words where none of them is there."""
    if split in ADVERSARIAL and not any(other in sheet.views for other in ADVERSARIAL):
        return _no_probes("forget_level3")
    column = ", column mc2_targets" if split in SEVERAL_RIGHT else ""
    stem = CHOICES["truthfulqa_mc1"] if split in SEVERAL_RIGHT else _FILES[split]
    return f"no {split} rows in this evaluation (RWKU's file {stem}{column})"


def _no_probes(part: str) -> str:
    return f"no probes of {part} in this evaluation"


def _fill_together(sheet: Sheet, name: str, splits: list[str]) -> None:
    """The mean over the probes of several splits, people being drawn with all of theirs."""
    if not splits:
        sheet.skipped[name] = _no_probes(name.partition(".")[0])
        return
    views = [sheet.views[split] for split in splits]
    values = np.concatenate([view.answer_score("probe_recall") for view in views])
    groups = [group for view in views for group in view.groups]
    weights = draw_weights(groups, label=name) if sheet.intervals else None
    column = Column(values, ~np.isnan(values), weights)
    sheet.estimates[name] = mean_estimate(column, name=name, allow_missing=sheet.allow_missing)
