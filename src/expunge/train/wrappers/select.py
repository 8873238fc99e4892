"""From a recipe's `wrappers:` list to wrapper objects, with errors a person can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from expunge.catalog import WRAPPERS, unknown
from expunge.errors import UsageError
from expunge.methods.base import Method
from expunge.train.wrappers.base import CombineWrapper, MaskWrapper, TermWrapper, Wrapper


class Wrapped(NamedTuple):
    """A method with everything around it."""

    method: Method
    """With the terms that wrappers add."""
    combine: CombineWrapper | None
    masks: tuple[MaskWrapper, ...]
    named: tuple[dict[str, Any], ...]
    """Every wrapper with all its keys, for the resolved settings."""


def wrap(method: Method, wanted: Sequence[Mapping[str, Any]]) -> Wrapped:
    """The method with the recipe's wrappers, and with those it brings where the recipe has none of that kind.

    Args:
        method: as configured.
        wanted: the recipe's list.

    Raises:
        UsageError: an unknown name or key, a wrong value, one wrapper twice, two combining rules, or a wrapper the
            method cannot work with.
    """
    wrappers = [build_wrapper(keys) for keys in wanted]
    kinds = {wrapper.kind for wrapper in wrappers}
    wrappers += [own for own in map(build_wrapper, method.wrappers()) if own.kind not in kinds]
    names = [wrapper.name for wrapper in wrappers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"the wrapper {twice} is given twice", hint="put all its keys into one entry")
    combines = [wrapper for wrapper in wrappers if isinstance(wrapper, CombineWrapper)]
    if len(combines) > 1:
        raise UsageError(
            f"{' and '.join(wrapper.name for wrapper in combines)} each decide the gradient of the step",
            hint="keep one of them",
        )
    for wrapper in wrappers:
        if isinstance(wrapper, TermWrapper):
            method = wrapper.wrap(method)
    for wrapper in wrappers:
        wrapper.require(method)
    return Wrapped(
        method,
        combines[0] if combines else None,
        tuple(wrapper for wrapper in wrappers if isinstance(wrapper, MaskWrapper)),
        tuple({"name": wrapper.name, **wrapper.model_dump(mode="json")} for wrapper in wrappers),
    )


def build_wrapper(keys: Mapping[str, Any]) -> Wrapper:
    """One wrapper from its entry.

    Raises:
        UsageError: an unknown name or key, or a wrong value.
    """
    rest = dict(keys)
    name = str(rest.pop("name", "")).replace("-", "_")
    if not name:
        raise UsageError("a wrapper without a name", hint=f"known: {', '.join(WRAPPERS.names())}")
    chosen: type[Wrapper] = WRAPPERS.load(name)
    try:
        return chosen(**rest)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = unknown("key", key, list(chosen.model_fields))
            raise UsageError(f"unknown key {key} for the wrapper {name}", hint=near.hint) from error
        raise UsageError(
            f"wrapper {name}, {key}: {first['msg']}, found {first.get('input')!r}",
            hint=f"see `expunge ls wrappers`: {name}",
        ) from error
