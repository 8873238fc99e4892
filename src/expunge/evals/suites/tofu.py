"""The TOFU suite: forgetting, utility, privacy and energy on fictitious authors (arXiv 2401.06121).

Measuring reads tables only, so it works on a machine without torch and without the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from expunge.data.example import Example
from expunge.errors import UsageError
from expunge.evals.suite import Measured, Profile, Rows, Scoring, Split, Suite, SuiteData, Tables
from expunge.evals.suites import tofu_canonical, tofu_openunlearning, tofu_original
from expunge.evals.suites.fluency_sheet import FLUENT
from expunge.evals.suites.tofu_sheet import Fill, Rule, reference_views, scored, views_of
from expunge.metrics.ragged import Array, Ragged
from expunge.metrics.view import SplitView

Items = dict[str, dict[int, dict[str, float | list[float]]]]
"""metric -> row -> field -> value, the layout of OpenUnlearning's `*_EVAL.json`."""

REQUIRED = ("forget", "retain")
SPLITS = ("forget", "retain", "real_authors", "world_facts", "holdout")
FORGET_SPLITS = ("forget01", "forget05", "forget10")
MAX_NEW_TOKENS = 200


class _Profile(NamedTuple):
    fill: Fill
    rule: Callable[[str], Rule]
    first: int | None = None
    lenient: bool = False
    """Whether missing rows are left out without complaint, as in the original."""


_PROFILES: dict[str, _Profile] = {
    "canonical": _Profile(tofu_canonical.fill, tofu_canonical.rule),
    "openunlearning": _Profile(tofu_openunlearning.fill, tofu_openunlearning.rule, lenient=True),
    "tofu": _Profile(tofu_original.fill, tofu_original.rule, first=tofu_original.FIRST, lenient=True),
}


def tofu(data: SuiteData) -> Suite:
    """Declare the suite.

    Args:
        data: `splits`, or else `trained`, are the rows in place of TOFU's: `forget` and `retain`, and any of
            `real_authors`, `world_facts` and `holdout`; a split that is not named is not part of the suite. With
            neither, TOFU's own rows of `forget_split`, and as many holdout rows as forget rows.

    Raises:
        UsageError: an unknown split, or `splits` without forget or retain rows.
        DataError: a file of the benchmark is missing or unreadable.
    """
    given = data.splits if data.splits is not None else data.trained
    rows = _given(given) if given is not None else _published(data.tofu, data.forget_split)
    declared = tuple(_split(name, rows[name][: data.limit]) for name in SPLITS if name in rows)
    options = {"rows": "given" if given is not None else data.forget_split, "limit": str(data.limit or "none")}
    return Suite("tofu", declared, measure, max_new_tokens=MAX_NEW_TOKENS, options=options)


def _given(splits: Rows) -> dict[str, tuple[Example, ...]]:
    if unknown := [name for name in splits if name not in SPLITS]:
        raise UsageError(f"the TOFU suite has no split {unknown[0]!r}", hint=f"it has: {', '.join(SPLITS)}")
    rows = {name: tuple(examples) for name, examples in splits.items() if examples}
    if missing := [name for name in REQUIRED if name not in rows]:
        raise UsageError(
            f"the TOFU suite was given its own rows, but none for {' and '.join(missing)}",
            hint=f"set eval.{missing[0]}, or set none of them to use the benchmark's rows",
        )
    return rows


def _published(tofu_path: str, forget_split: str) -> dict[str, tuple[Example, ...]]:
    if forget_split not in FORGET_SPLITS:
        raise UsageError(f"TOFU has no forget split {forget_split!r}", hint=f"it has: {', '.join(FORGET_SPLITS)}")
    from expunge.config.schema import SourceSpec
    from expunge.data.source import load_examples

    files = {
        "forget": f"{forget_split}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
        "holdout": forget_split.replace("forget", "holdout"),
    }
    rows = {
        name: tuple(load_examples(SourceSpec(path=f"tofu:{file}"), tofu=tofu_path, role=name).examples)
        for name, file in files.items()
    }
    return rows | {"holdout": rows["holdout"][: len(rows["forget"])]}


def _split(name: str, examples: tuple[Example, ...]) -> Split:
    if name == "holdout":
        return Split(name, examples, stats=True)
    extras = {column for example in examples for column in example.extra}
    paraphrased = ("paraphrase",) if name in REQUIRED and "paraphrased_answer" in extras else ()
    perturbed = ("perturbed",) if "perturbed_answer" in extras else ()
    # A raw text has no prompt that an answer could be generated from.
    prompted = all(example.turns for example in examples)
    own = name in REQUIRED
    return Split(
        name,
        examples,
        ("answer", *paraphrased, *perturbed),
        generate=prompted,
        stats=own,
        scoring=FLUENT if own and prompted else Scoring(),
    )


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric of the suite, with 95 % intervals bootstrapped over authors.

    Args:
        tables: the passes of the model that is measured.
        reference: those of the retrained model, over the same rows; gives forget quality, and every metric's ideal.
        profile: whose definitions and names.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Returns:
        Scores by name, why others are absent, and the rows that each mean was taken over.

    Raises:
        MetricError: rows are missing, doubled or not numbers, or the reference was measured on other rows.
        UsageError: unknown profile.
    """
    chosen = _profile(profile)
    views = views_of(tables, first=chosen.first)
    theirs = reference_views(views, reference, first=chosen.first)
    return scored(views, theirs, fill=chosen.fill, rule=chosen.rule, allow_missing=allow_missing or chosen.lenient)


def items(tables: Tables, *, profile: Profile = "openunlearning", reference: Tables | None = None) -> Items:
    """Per-item values in the layout of OpenUnlearning's log, to compare with one item by item.

    Args:
        tables: the passes of the model.
        profile: only `openunlearning` has such a log.
        reference: a model that never saw the forget rows, for `mia_reference`.

    Returns:
        metric -> row -> field -> value. Membership attacks are named `mia_loss.forget` and `mia_loss.holdout`.

    Raises:
        UsageError: another profile.
        MetricError: as `measure`.
    """
    if profile != "openunlearning":
        raise UsageError(f"profile {profile!r} has no per-item log", hint="use profile='openunlearning'")
    views = views_of(tables)
    theirs = reference_views(views, reference)
    found: Items = {}
    for view in (views[split] for split in tofu_openunlearning.PREFIX if split in views):
        for name, entry in tofu_openunlearning.entries(view).items():
            found[name] = _by_row(view, entry.fields)
    for split in ("forget", "holdout"):
        if split in views and "holdout" in views:
            scores = tofu_openunlearning.attack_scores(views[split], theirs.get(split) if theirs else None)
            found |= {f"{name}.{split}": _by_row(views[split], {"score": values}) for name, values in scores.items()}
    return found


def _by_row(view: SplitView, fields: Mapping[str, Array | Ragged]) -> dict[int, dict[str, float | list[float]]]:
    return {
        int(row): {name: _entry(values, index) for name, values in fields.items()} for index, row in enumerate(view.row)
    }


def _entry(values: Array | Ragged, index: int) -> float | list[float]:
    if isinstance(values, Ragged):
        return [float(value) for value in values.values[values.offsets[index] : values.offsets[index + 1]]]
    return float(values[index])


def _profile(name: str) -> _Profile:
    if name not in _PROFILES:
        raise UsageError(f"the TOFU suite has no profile {name!r}", hint=f"it has: {', '.join(_PROFILES)}")
    return _PROFILES[name]
