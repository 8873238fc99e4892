"""From a recipe's `method:` keys to a method object, with errors a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from expunge.catalog import METHODS, unknown
from expunge.config.schema import Recipe
from expunge.errors import UsageError
from expunge.methods.base import Method
from expunge.methods.finetune import FineTune


def select_method(recipe: Recipe) -> Method:
    """The configured method; plain fine-tuning for `kind: train`.

    Raises:
        UsageError: no or an unknown name, an unknown key, a wrong value, weights that are all zero, or no retain data
            where it is needed.
    """
    if recipe.kind == "train":
        if recipe.method:
            raise UsageError("a train recipe takes no method", hint="remove `method:`, or use `expunge unlearn`")
        return FineTune()
    method = build_method(recipe.method)
    name = method.name
    weights = [getattr(method, key, None) for key in ("gamma", "alpha")]
    # A wrapper may add a term with a weight of its own.
    if weights == [0, 0] and not recipe.wrappers:
        raise UsageError(
            f"method.gamma and method.alpha are 0: {name} would train nothing", hint="give a term a weight above 0"
        )
    if "retain" in method.needs().roles and not recipe.data.retain:
        raise UsageError(
            f"{name} needs retain data and data.retain is empty",
            hint=f"set data.retain=FILE (your own rows, or a public corpus); {_free()}",
        )
    return method


def build_method(keys: Mapping[str, Any], *, where: str = "method") -> Method:
    """The method that `name` and its other keys describe.

    Args:
        keys: as in a recipe's section.
        where: that section's name, for messages.

    Raises:
        UsageError: no or an unknown name, an unknown key, or a wrong value.
    """
    rest = dict(keys)
    name = str(rest.pop("name", "")).replace("-", "_")
    if not name:
        raise UsageError("no method given", hint=f"set {where}.name=npo; known: {', '.join(METHODS.names())}")
    chosen: type[Method] = METHODS.load(name)
    try:
        return chosen(**rest)
    except ValidationError as error:
        raise _explain(name, chosen, error, where) from error


def _free() -> str:
    """What works without retain data: methods that have no retain term, and those whose weight of it may be 0."""
    without = [entry.name for entry in METHODS if METHODS.load(entry.name).works_without_retain]
    alone = [name for name in without if "alpha" not in METHODS.load(name).model_fields]
    weighed = [name for name in without if name not in alone]
    return f"without any, these work: {', '.join(alone)}, and with method.alpha=0 {', '.join(weighed)}"


def _explain(name: str, chosen: type[Method], error: ValidationError, where: str) -> UsageError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = unknown("key", key, list(chosen.model_fields))
        return UsageError(f"unknown key {where}.{key} for {name}", hint=near.hint)
    return UsageError(
        f"{where}.{key}: {first['msg']}, found {first.get('input')!r}", hint=f"see `expunge ls methods`: {name}"
    )
