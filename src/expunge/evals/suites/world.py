"""The world suite: TOFU's metrics on a pocket world, and every form of every question (`expunge world build`).

Measuring reads tables only, so it works on a machine without torch and without the world itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.data.example import Example, Turn
from expunge.errors import DataError, UsageError
from expunge.evals.suite import Measured, Profile, Scoring, Split, Suite, SuiteData, Tables
from expunge.evals.suites import tofu_canonical, world_forms
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.evals.suites.fluency_sheet import FLUENT
from expunge.evals.suites.tofu_sheet import Rule, Sheet, Views, reference_views, scored, views_of

MAX_NEW_TOKENS = 48
ROWS = ("forget", "retain", "holdout", "multi_hop")
"""The row files of a world that are measured."""
ASKED = ("cloze", "inverted", "multiple_choice")
"""Forms that lie in the forget and the retain file beside the direct one."""
NEEDED = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")
"""What every direct row carries."""
NO_UTILITY = "a world has no real authors and no world facts; see retain_utility"
BUILD = "make one with `expunge world build --out DIR`"


def world(data: SuiteData) -> Suite:
    """Declare the suite.

    Args:
        data: `world` is the folder; `limit` holds for each split. The world's rows are always its own.

    Raises:
        UsageError: no folder is named, or rows of another origin are.
        DataError: it is not a world, or lacks rows that the suite asks for.
    """
    if data.world is None:
        raise UsageError(
            "the world suite needs a world", hint=f"{BUILD}, then name it: --world DIR, or eval.world in the recipe"
        )
    require_own_rows(data, "the world suite takes its rows from a world")
    folder = data.world.expanduser()
    from expunge.data.worlds import read_world

    described = read_world(folder)
    rows = _splits({name: _read(folder, name) for name in ROWS}, _neighbours(described, folder))
    for name, examples in rows.items():
        if not examples:
            raise DataError(f"the world {folder} has no rows for the split {name!r}", hint=f"{BUILD}, of more people")
    splits = tuple(_split(name, tuple(examples[: data.limit])) for name, examples in rows.items())
    options = {"world": str(described.get("digest")), "limit": str(data.limit or "none")}
    return Suite("world", splits, measure, max_new_tokens=MAX_NEW_TOKENS, options=options, profiles=("canonical",))


def _read(folder: Path, name: str) -> list[Example]:
    from expunge.config.schema import SourceSpec
    from expunge.data.source import load_examples

    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise DataError(f"the world {folder} has no {path.name}", hint=BUILD)
    examples = load_examples(SourceSpec(path=str(path)), tofu="", role=name).examples
    for example in examples:
        needed = ("form", *NEEDED) if example.extra.get("form") == "direct" else ("form",)
        if missing := [column for column in needed if column not in example.extra]:
            raise DataError(f"{path} row {example.row} has no {missing[0]}", hint=BUILD)
    return examples


def _neighbours(described: dict[str, Any], folder: Path) -> frozenset[str]:
    names = described.get("neighbours")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{folder / 'world.json'} lists no neighbours", hint=BUILD)
    return frozenset(names)


def _splits(rows: dict[str, list[Example]], neighbours: frozenset[str]) -> dict[str, Sequence[Example]]:
    direct = {name: _of(rows[name], "direct") for name in ("forget", "retain", "holdout")}
    found: dict[str, Sequence[Example]] = {
        **direct,
        "neighbours": [example for example in direct["retain"] if example.group in neighbours],
    }
    for side, chains in (("forget", rows["multi_hop"]), ("retain", rows["retain"])):
        found[f"{side}_paraphrased"] = [_paraphrased(example) for example in direct[side]]
        found |= {f"{side}_{form}": _of(rows[side], form) for form in ASKED}
        found[f"{side}_multi_hop"] = _of(chains, "multi_hop")
    return found


def _of(rows: Sequence[Example], form: str) -> list[Example]:
    return [example for example in rows if example.extra["form"] == form]


def _paraphrased(example: Example) -> Example:
    """The question in other words, to the answer that was trained."""
    return replace(example, turns=(Turn("user", str(example.extra["paraphrased_question"])), example.turns[-1]))


def _split(name: str, examples: tuple[Example, ...]) -> Split:
    if name not in ("forget", "retain", "holdout"):
        # What a neighbour is answered is among the answers of `retain`.
        return Split(name, examples)
    variants, stats = ("answer", "paraphrase", "perturbed"), name != "retain"
    scoring = Scoring() if name == "holdout" else FLUENT
    return Split(name, examples, variants, generate=True, stats=stats, scoring=scoring)


def rule(name: str) -> Rule:
    """How a metric is judged."""
    if name in world_forms.RULES:
        return world_forms.RULES[name]
    split, _, _ = name.partition(".")
    if split == "holdout":
        return Rule("match")
    return Rule("lower") if split.startswith("forget_") and split != name else tofu_canonical.rule(name)


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    start: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric of the suite, with 95 % intervals bootstrapped over people.

    Args:
        tables: the passes of the model that is measured.
        reference: those of the retrained model, over the same rows; gives forget quality, and every metric's ideal.
        start: those of the starting model, over the same rows; gives what is relative to it.
        profile: `canonical`.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Returns:
        Scores by name, why others are absent, and the rows that each mean was taken over.

    Raises:
        MetricError: rows are missing, doubled or not numbers, or another model was measured on other rows.
        UsageError: another profile.
    """
    require_canonical(profile, suite="world")
    views = views_of(tables)
    theirs = reference_views(views, reference)
    before = reference_views(views, start, who="the starting run")

    def fill(sheet: Sheet, retrained: Views | None) -> None:
        tofu_canonical.fill(sheet, retrained)
        sheet.skipped["model_utility"] = NO_UTILITY
        world_forms.fill_forms(sheet, before)

    return scored(views, theirs, fill=fill, rule=rule, allow_missing=allow_missing)
