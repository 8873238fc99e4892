"""The search space: `train.learning_rate=loguniform(1e-6, 1e-3)`, read without evaluating anything."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from expunge.catalog import unknown
from expunge.config.yaml import parse_yaml
from expunge.errors import UsageError

if TYPE_CHECKING:
    from optuna.trial import Trial

DISTRIBUTIONS = {
    "uniform": "uniform(LOW, HIGH) or uniform(LOW, HIGH, STEP)",
    "loguniform": "loguniform(LOW, HIGH)",
    "int": "int(LOW, HIGH) or int(LOW, HIGH, STEP)",
    "logint": "logint(LOW, HIGH)",
    "choice": "choice(A, B, ...)",
}
"""Name -> how it is written. Both ends are included."""

_CALL = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*\((?P<inside>.*)\)\s*", re.DOTALL)


class Dimension(NamedTuple):
    """One recipe key that trials set."""

    key: str
    """Dotted, as an override has it."""
    text: str
    """As written."""
    name: str
    """One of `DISTRIBUTIONS`."""
    values: tuple[Any, ...]
    """Low, high and perhaps step; of a choice, what there is to choose from."""

    @property
    def is_choice(self) -> bool:
        """Whether its values have no order."""
        return self.name == "choice"

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that show whether a recipe takes what trials set: all choices, or both ends and one between."""
        if self.is_choice:
            return self.values
        low, high = self.values[:2]
        # No key that expects a whole number takes this one.
        between = () if self.name in ("int", "logint") else (low + (high - low) / math.pi,)
        return (low, high, *between)

    @property
    def size(self) -> float:
        """How many values it has; infinite where they are not counted."""
        if self.is_choice:
            return len(self.values)
        low, high, *step = self.values
        if self.name == "int" or (self.name == "uniform" and step):
            return float(math.floor((high - low) / (step[0] if step else 1) + 1e-9) + 1)
        return math.inf

    def suggest(self, trial: Trial) -> Any:
        """The value that this trial has, or gets now."""
        if self.is_choice:
            # Optuna keeps text and numbers, and takes True for 1: what is stored is the choice as an override has it.
            return self.read(trial.suggest_categorical(self.key, [_written(value) for value in self.values]))
        low, high, *step = self.values
        log = self.name.startswith("log")
        if self.name in ("int", "logint"):
            return trial.suggest_int(self.key, low, high, step=step[0] if step else 1, log=log)
        return trial.suggest_float(self.key, low, high, step=step[0] if step else None, log=log)

    def read(self, stored: Any) -> Any:
        """The value that a study's parameter stands for."""
        return parse_yaml(stored, origin=self.key) if self.is_choice else stored


def parse_dimension(key: str, text: str) -> Dimension:
    """Read one distribution.

    Args:
        key: dotted recipe key.
        text: `NAME(VALUES)`, see `DISTRIBUTIONS`; the values of a choice are YAML.

    Raises:
        UsageError: not of that form, an unknown name (with the nearest one), or values that make no range.
    """
    call = _CALL.fullmatch(text)
    if call is None:
        raise UsageError(
            f"{key}={text}: expected a distribution", hint=f"write one of: {'; '.join(DISTRIBUTIONS.values())}"
        )
    name = call["name"]
    if name not in DISTRIBUTIONS:
        raise unknown("distribution", name, list(DISTRIBUTIONS))
    values = parse_yaml(f"[{call['inside']}]", origin=f"{key}={text}")
    dimension = Dimension(key, text.strip(), name, tuple(values))
    if dimension.is_choice:
        _check_choice(dimension)
    else:
        _check_range(dimension)
    return dimension


def parse_space(texts: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Read a whole space, key -> distribution; what is nested is joined with dots.

    Raises:
        UsageError: as `parse_dimension`; or nothing to search.
    """
    flat = dict(_flattened(texts))
    if not flat:
        raise UsageError(
            "there is nothing to search",
            hint='give "train.learning_rate=loguniform(1e-6, 1e-4)", or a section `sweep:` in the recipe',
        )
    return tuple(parse_dimension(key, str(text)) for key, text in flat.items())


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What stands behind a recipe on the command line: distributions by key, and the other overrides as they are."""
    space: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        key, _, text = argument.partition("=")
        if _CALL.fullmatch(text):
            space[spelled(key)] = text
        else:
            overrides.append(argument)
    return space, overrides


def space_size(space: Sequence[Dimension]) -> float:
    """How many combinations there are."""
    return float(math.prod(dimension.size for dimension in space))


def spelled(key: str) -> str:
    """A key as recipes spell it: `--train.learning-rate` is `train.learning_rate`."""
    return key.strip().removeprefix("--").replace("-", "_")


def flat_keys(texts: Mapping[str, Any]) -> dict[str, Any]:
    """The `sweep:` section of a recipe with dotted keys."""
    return dict(_flattened(texts))


def as_override(key: str, value: Any) -> str:
    """`key=value` that reads back as the same value."""
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, str):
        plain = value == value.strip() and not re.search(r"[:#\[\]{},&*!|>'\"%@`]", value)
        return value if plain and _reads_back(value) else json.dumps(value, ensure_ascii=False)
    # JSON is YAML: true, null, 1e-05, [1, 2], {"name": "gru"}.
    return json.dumps(value, ensure_ascii=False)


def _reads_back(text: str) -> bool:
    return bool(parse_yaml(text, origin=text) == text)


def _flattened(texts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in texts.items():
        name = f"{prefix}{spelled(str(key))}"
        found += _flattened(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _check_choice(dimension: Dimension) -> None:
    written = [_written(value) for value in dimension.values]
    if len(set(written)) < max(2, len(written)):
        what = "the same value twice" if len(set(written)) < len(written) else "fewer than two values"
        raise UsageError(f"{dimension.key}={dimension.text} has {what}", hint="a single value is an ordinary override")


def _check_range(dimension: Dimension) -> None:
    values, log = dimension.values, dimension.name.startswith("log")
    shown = f"{dimension.key}={dimension.text}"
    whole = dimension.name in ("int", "logint")
    if len(values) not in ((2,) if log else (2, 3)) or not all(_is_number(value, whole=whole) for value in values):
        kind = "whole numbers" if whole else "finite numbers"
        raise UsageError(f"{shown}: expected {kind}", hint=f"write {DISTRIBUTIONS[dimension.name]}")
    low, high, *step = values
    if not low < high:
        raise UsageError(f"{shown}: {low} is not below {high}", hint="the lower end comes first")
    if log and low <= 0:
        raise UsageError(
            f"{shown}: {low} has no logarithm",
            hint=f"a lower end above 0, or {dimension.name.removeprefix('log') or 'uniform'}({low}, {high})",
        )
    if step and not 0 < step[0] <= high - low:
        raise UsageError(f"{shown}: a step of {step[0]} does not fit in", hint=f"above 0 and at most {high - low}")


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) if whole else isinstance(value, int | float) and math.isfinite(value)
