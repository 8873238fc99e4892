"""What is tried for each method: four settings and no more, so that no method is better tuned than another.

The learning rate comes first, then the one key that decides how hard a method forgets. Everything else is the same for
all (`COMMON`) or the method's own default. `AGAINST` is the criterion by which one of the four is chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from expunge.catalog import METHODS, unknown
from expunge.config.yaml import parse_yaml
from expunge.errors import UsageError

TRIALS = 4
"""Settings tried for every method."""
COMMON: Mapping[str, Any] = {
    "data.max_length": 256,
    "train.num_train_epochs": 10,
    "train.global_batch_size": 16,
    "train.token_budget": 1024,
    "eval.suite": "world",
    "eval.token_budget": 2048,
}
"""Recipe keys of every cell; a setting may say otherwise (and then it is shown)."""
CRITERION = "retain.extraction_strength - |forget.extraction_strength - that of the retrained model|"
"""What the chosen setting has most of: keep everything, forget as if never trained on, and no more than that."""

Setting = Mapping[str, Any]
"""Recipe key (`method.beta`, `train.learning_rate`) -> value."""


class Tuning(NamedTuple):
    """What is tried for one method."""

    trials: tuple[Setting, ...]
    always: Setting = MappingProxyType({})
    """Keys of every trial."""

    def settings(self, count: int) -> list[dict[str, Any]]:
        """The first `count` settings, whole."""
        return [{**self.always, **trial} for trial in self.trials[:count]]


def _grid(*learning_rates: float, always: Setting | None = None, **keys: tuple[Any, ...]) -> Tuning:
    """Every learning rate with every value of the method's own keys."""
    axes = [("train.learning_rate", learning_rates), *((f"method.{key}", values) for key, values in keys.items())]
    names = [name for name, _ in axes]
    points = itertools.product(*(values for _, values in axes))
    return Tuning(tuple(dict(zip(names, point, strict=True)) for point in points), always or {})


_RETAINS: Setting = {"method.alpha": 1.0}
"""For methods published without a retain term: here every method that can have one has it."""
_BRIEF: Setting = {"method.max_new_tokens": 40}
"""Answers in a pocket world are shorter than that."""
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
"""Tried for a method that is not listed below."""
DECLARED: Mapping[str, Tuning] = {
    # Without a retain term a small rate is all that keeps the model.
    "grad_ascent": _grid(5e-5, 1e-4, 2e-4, 4e-4),
    "grad_diff": _grid(1e-3, 2e-3, gamma=(0.05, 0.2)),
    "kl_min": _grid(1e-3, 2e-3, gamma=(0.05, 0.2)),
    "npo": _grid(1e-3, 2e-3, beta=(0.03, 0.1)),
    "simnpo": _grid(1e-3, 2e-3, gamma=(0.125, 0.5)),
    "idk_nll": _grid(1e-3, 2e-3, gamma=(0.2, 1.0)),
    "idk_dpo": _grid(1e-3, 2e-3, beta=(0.03, 0.1)),
    # A model that is certain of its answers writes others only when it is made to.
    "altpo": _grid(
        1e-3,
        2e-3,
        beta=(0.03, 0.1),
        always={**_BRIEF, "method.prompt": "{question}", "method.temperature": 2.0, "method.num_alternates": 3},
    ),
    "wga": _grid(1e-3, 2e-3, gamma=(0.2, 1.0)),
    "tnpo": _grid(1e-3, 2e-3, gamma=(0.2, 1.0)),
    "wtnpo": _grid(1e-3, 2e-3, gamma=(0.2, 1.0)),
    "satimp": _grid(1e-3, 2e-3, gamma=(0.2, 1.0)),
    # With an exponent of 1 it is WGA.
    "simsat": _grid(1e-3, 2e-3, beta=(2.0, 5.0), always={"method.gamma": 0.2}),
    "simimp": _grid(1e-3, 2e-3, gamma=(0.05, 0.2), always={"method.importance": "annotated"}),
    "undial": _grid(1e-3, 2e-3, beta=(10.0, 30.0), always=_RETAINS),
    "ceu": _grid(1e-3, 2e-3, gamma=(0.2, 1.0), always=_RETAINS),
    "pdu": _grid(1e-3, 2e-3, gamma=(0.01, 0.1), always={"method.epsilon": 0.05, "method.alpha": 1.0}),
    "rmu": _grid(5e-3, 1e-2, coefficient=(5.0, 20.0), always={"method.layer": 1}),
    "flat": _grid(1e-3, 2e-3, gamma=(1.0, 4.0), always=_RETAINS),
    # A sum over each answer's tokens, of which there are some twenty.
    "bs_t": _grid(1e-3, 2e-3, gamma=(0.005, 0.02)),
    "bs_s": _grid(1e-3, 2e-3, lambda_s=(0.2, 0.5), always={**_BRIEF, "method.base": {"name": "npo", "beta": 0.1}}),
    "eua": _grid(1e-3, 2e-3, gamma=(0.05, 0.2)),
    "whp": _grid(
        1e-3,
        2e-3,
        strength=(5.0, 20.0),
        always={**_RETAINS, "method.reinforced_learning_rate": 1e-3, "method.reinforced_epochs": 3},
    ),
    "unstar": _grid(1e-3, 2e-3, 4e-3, 8e-3, always={"method.max_new_tokens": 40, "method.max_rounds": 3}),
    "forgetting_sft": _grid(
        1e-3,
        2e-3,
        t_max=(0.25, 1.0),
        always={"method.rho": 0.84, "method.reference_learning_rate": 1e-3, "method.reference_epochs": 2},
    ),
    # What is memorised under the mask is walked back as far.
    "alkn": Tuning(
        (
            {"train.learning_rate": 5e-4},
            {"train.learning_rate": 1e-3, "wrappers": [{"name": "alkn", "keep": "smallest"}]},
            {"train.learning_rate": 2e-3, "wrappers": [{"name": "alkn", "keep": "smallest"}]},
            {"train.learning_rate": 3e-3, "wrappers": [{"name": "alkn", "keep": "smallest"}]},
        )
    ),
    # Training oracles is what it costs: one, trained for twice the epochs of the starting model.
    "oracle_matching": _grid(
        1e-3,
        2e-3,
        distance=("kl", "mse"),
        always={"method.num_oracles": 1, "method.oracle_learning_rate": 3e-3, "method.oracle_epochs": 16},
    ),
    # One step of plain SGD: what a tiny model has memorised has small gradients, and below 1 nothing moves.
    "iau": _grid(3.0, 10.0, 30.0, 100.0),
}
"""Method -> its four settings, for a Llama of 0.6 million parameters trained from nothing. A test keeps this and the
catalogue the same."""


def tuning_of(method: str, own: Mapping[str, Tuning]) -> Tuning:
    """What is tried for a method: what the user says, what is declared here, or four learning rates."""
    return own.get(method) or DECLARED.get(method) or _grid(*RATES)


def read_settings(path: Path) -> dict[str, Tuning]:
    """A user's own settings: YAML, method -> list of settings, each a mapping of recipe keys.

    Raises:
        UsageError: not readable, another shape, an unknown method, or another number of settings than everybody has.
    """
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"), origin=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="--settings takes a YAML file") from error
    shape = "write METHOD: [{train.learning_rate: 1e-3, method.beta: 0.1}, ...]"
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not a mapping of methods to settings", hint=shape)
    return {_known(str(name)): _tuning(str(name), settings, path, shape) for name, settings in found.items()}


def _tuning(name: str, settings: Any, path: Path, shape: str) -> Tuning:
    if not isinstance(settings, list) or not all(isinstance(one, dict) for one in settings):
        raise UsageError(f"{path}: the settings of {name} are not a list of mappings", hint=shape)
    if len(settings) != TRIALS:
        raise UsageError(
            f"{path}: {name} has {len(settings)} settings, and every method has {TRIALS} trials",
            hint="an equal budget is what makes the table one",
        )
    for one in settings:
        for key in one:
            if str(key).partition(".")[0] not in ("method", "train", "wrappers", "data"):
                raise UsageError(f"{path}: {name}: {key!r} is not a recipe key of a setting", hint=shape)
    return Tuning(tuple({str(key): value for key, value in one.items()} for one in settings))


def chosen_methods(names: str | None) -> list[str]:
    """The methods of a comma-separated list; all of them unless given.

    Raises:
        UsageError: an unknown one (with the nearest name), or none.
    """
    if names is None:
        return METHODS.names()
    wanted = [_known(name.strip()) for name in names.split(",") if name.strip()]
    if not wanted:
        raise UsageError("no method given", hint=f"known: {', '.join(METHODS.names())}")
    return list(dict.fromkeys(wanted))


def _known(name: str) -> str:
    plain = name.replace("-", "_")
    if plain not in METHODS.names():
        raise unknown("method", name, METHODS.names())
    return plain


def words(setting: Setting) -> str:
    """A setting as people read it: `lr 0.001, beta 0.1`."""
    short = {"train.learning_rate": "lr", "train.num_train_epochs": "epochs"}
    return ", ".join(
        f"{short.get(key, key.removeprefix('method.').removeprefix('train.'))} {_plain(value)}"
        for key, value in setting.items()
    )


def _plain(value: Any) -> str:
    """Numbers short; lists and mappings (wrappers, a base method) without brackets."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return " ".join([str(value.get("name", "")), *(f"{k} {_plain(v)}" for k, v in value.items() if k != "name")])
    if isinstance(value, list | tuple):
        return " + ".join(map(_plain, value))
    return str(value)
