"""A recipe's names of TrainingArguments and ModelConfig turned into our keys, by `expunge.config.aliases`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from expunge.config.aliases import MOVED, RULES, TOKEN, VALUES, Rule
from expunge.errors import UsageError

_ABSENT = object()
_BATCH = "train.global_batch_size"


class Translated(NamedTuple):
    """Settings in our keys alone."""

    settings: dict[str, Any]
    notes: tuple[str, ...]
    """What was derived, to be told before the run."""


def translate(settings: Mapping[str, Any], *, world: int = 1) -> Translated:
    """Settings as written -> the same with our names.

    Args:
        settings: sections by name; left as they are.
        world: processes that carry the recipe out, for a batch size given per device.

    Raises:
        UsageError: naming every setting that is refused with its reason, or two forms of one setting that disagree.
    """
    draft = _Draft(copy.deepcopy(dict(settings)))
    for name, key in MOVED.items():
        draft.move(name, key)
    for rule in RULES:
        _rule(draft, rule)
    _values(draft)
    _warmup(draft)
    _strategies(draft)
    _best_point(draft)
    _batch(draft, world)
    if draft.problems:
        raise UsageError("; ".join(draft.problems), hint="; ".join(dict.fromkeys(draft.hints)))
    return Translated(draft.settings, tuple(draft.notes))


class _Draft:
    """Settings being rewritten, by dotted name."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.problems: list[str] = []
        self.hints: list[str] = []
        self.notes: list[str] = []

    def _place(self, name: str) -> tuple[dict[str, Any], str]:
        section, _, leaf = name.rpartition(".")
        place = self.settings.get(section) if section else self.settings
        # A section that is no mapping is for the schema to refuse.
        return (place if isinstance(place, dict) else {}), leaf

    def get(self, name: str) -> Any:
        place, leaf = self._place(name)
        return place.get(leaf, _ABSENT)

    def take(self, name: str) -> Any:
        place, leaf = self._place(name)
        return place.pop(leaf, _ABSENT)

    def put(self, name: str, value: Any, *, given: str) -> None:
        """Set a key of ours; it may have been given as well if it says the same."""
        before = self.get(name)
        if before is not _ABSENT and before != value:
            self.problems.append(f"{given} and {name}={before!r} disagree")
            self.hints.append(f"keep one of them; {name} is the recommended one")
            return
        place, leaf = self._place(name)
        place[leaf] = value

    def move(self, name: str, key: str) -> None:
        value = self.take(name)
        if value is not _ABSENT:
            self.put(key, value, given=f"{name}={value!r}")


def _rule(draft: _Draft, rule: Rule) -> None:
    for name in rule.names.split():
        value = draft.take(name)
        if value is not _ABSENT and not any(_same(value, fine) for fine in rule.fine):
            shown = "" if rule.why == TOKEN else f"={value!r}"
            draft.problems.append(f"{name}{shown} is refused: {rule.why}")
            draft.hints.append(rule.instead or f"leave {name} out")


def _same(value: Any, fine: Any) -> bool:
    """Equality that tells 1 from true: `logging_steps: true` is a slip."""
    return bool(value == fine) and isinstance(value, bool) == isinstance(fine, bool)


def _values(draft: _Draft) -> None:
    for key, spelled in VALUES.items():
        value = draft.take(key)
        if value is not _ABSENT:
            known = isinstance(value, str | int | float) and not isinstance(value, bool) and value in spelled
            draft.put(key, spelled[value] if known else value, given=key)


def _warmup(draft: _Draft) -> None:
    value = draft.get("train.warmup_steps")
    if isinstance(value, float) and 0 < value < 1:
        draft.take("train.warmup_steps")
        draft.put("train.warmup_ratio", value, given=f"train.warmup_steps={value}")


def _strategies(draft: _Draft) -> None:
    """`eval_strategy` and `save_strategy`, where they say what the number of steps beside them says."""
    for name, steps, otherwise in (
        ("train.eval_strategy", "train.eval_every", "no"),
        ("train.save_strategy", "train.save_steps", "epoch"),
    ):
        value, given = draft.take(name), draft.get(steps) not in (_ABSENT, None)
        if value is _ABSENT or value == ("steps" if given else otherwise):
            continue
        draft.problems.append(f"{name}={value!r} {'with' if given else 'without'} {steps} is refused")
        draft.hints.append(f"leave {name} out; {steps} is in optimizer steps, and unset means {otherwise!r}")


def _best_point(draft: _Draft) -> None:
    """`load_best_model_at_end`, `metric_for_best_model` and `greater_is_better` as `keep_best`."""
    names = [f"train.{name}" for name in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")]
    load, metric, greater = (None if (value := draft.take(name)) is _ABSENT else value for name in names)
    if load and metric is None and draft.get("train.keep_best") is _ABSENT:
        draft.problems.append("train.load_best_model_at_end says nothing without a metric")
        draft.hints.append("name one of the suite's: train.metric_for_best_model=forget.extraction_strength")
    elif not load and (metric is not None or greater is not None):
        draft.problems.append("train.metric_for_best_model and greater_is_better need load_best_model_at_end=true")
        draft.hints.append("set train.keep_best to the metric instead of all three")
    elif load and metric is not None:
        rule = {"metric": metric} | ({} if greater is None else {"direction": "up" if greater else "down"})
        draft.put("train.keep_best", rule, given=f"train.metric_for_best_model={metric!r}")


def _batch(draft: _Draft, world: int) -> None:
    """Rows of a device, accumulated, on every process: the rows of a step."""
    names = ("train.per_device_train_batch_size", "train.gradient_accumulation_steps")
    values = [draft.take(name) for name in names]
    wrong = [
        f"{name}: expected a whole number > 0, found {value!r}"
        for name, value in zip(names, values, strict=True)
        if value is not _ABSENT and (not isinstance(value, int) or isinstance(value, bool) or value < 1)
    ]
    if wrong:
        draft.problems += wrong
        draft.hints.append(f"or set {_BATCH}, which does not depend on the number of processes")
        return
    rows, accumulated = values
    if rows is _ABSENT:
        if accumulated is not _ABSENT:
            draft.problems.append(f"{names[1]}={accumulated} needs {names[0]}")
            draft.hints.append(f"set {_BATCH} instead: micro-batches are cut by train.token_budget")
        return
    accumulated = 1 if accumulated is _ABSENT else accumulated
    total = rows * accumulated * world
    said = f"{rows} rows per device x {accumulated} accumulated x {world} process{'es' if world > 1 else ''}"
    draft.put(_BATCH, total, given=f"{said} = {total} rows a step")
    draft.notes.append(f"{_BATCH} {total}: {said}")
