"""Turn pydantic's findings into errors that name the key as the user writes it and the nearest key that exists."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from expunge.errors import UsageError


def usage_error(error: ValidationError, *, model: type[BaseModel], prefix: str = "") -> UsageError:
    """The user's version of a validation error: every unknown key and every wrong value, in order.

    Args:
        error: what pydantic found.
        model: the schema that was checked, for nearest keys and what a key means.
        prefix: what stands before its keys in a recipe, `method.`.
    """
    known = {prefix + key: meaning for key, meaning in described_keys(model).items()}
    expected: dict[str, list[str]] = {}
    messages: dict[str, str] = {}
    hints: dict[str, None] = {}
    for item in error.errors(include_url=False):
        key = prefix + _key(item["loc"])
        plain = re.sub(r"\.\d+", "", key)
        if item["type"] == "extra_forbidden":
            messages[key] = f"unknown key {key}"
            hints[nearest(plain, list(known))] = None
        else:
            if item["type"] == "value_error":
                # A validator of ours says what is wrong, not what was expected.
                messages[key] = f"{key}: {item['ctx']['error']}, found {_found(item)}"
            else:
                wanted = expected.setdefault(key, [])
                wanted.extend({_expected(item)} - set(wanted))
                messages[key] = f"{key}: expected {' or '.join(wanted)}, found {_found(item)}"
            hints[f"{plain}: {known[plain]}" if known.get(plain) else f"correct {plain}"] = None
    return UsageError("; ".join(messages.values()), hint="; ".join(hints))


def nearest(key: str, known: Sequence[str]) -> str:
    """A hint naming the known key that `key` was probably meant to be, or the keys beside it."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    section, _, leaf = key.rpartition(".")
    if not close:
        # A key in the wrong section: `learning_rate` for `train.learning_rate`.
        leaves = {candidate.rpartition(".")[2]: candidate for candidate in reversed(known)}
        close = [leaves[name] for name in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.75)]
    if close:
        return f"did you mean {close[0]}?"
    beside = [candidate for candidate in known if candidate.rpartition(".")[0] == section]
    return f"known keys of {section or 'a recipe'}: {', '.join(name.rpartition('.')[2] for name in beside)}"


def described_keys(model: type[BaseModel], prefix: str = "") -> dict[str, str | None]:
    """Every key of a schema and of the sections inside it, dotted, and what its docstring says."""
    keys: dict[str, str | None] = {}
    for name, field in model.model_fields.items():
        keys[prefix + name] = " ".join(field.description.split()) if field.description else None
        for section in _sections(field.annotation):
            keys.update(described_keys(section, f"{prefix}{name}."))
    return keys


def _sections(annotation: Any) -> Iterable[type[BaseModel]]:
    candidates = (annotation, *get_args(annotation))
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _key(loc: tuple[int | str, ...]) -> str:
    """The dotted key, without the name pydantic gives to the branch of a union it tried."""
    parts = [str(part) for part in loc]
    return ".".join(parts[:-1] if len(parts) > 1 and _UNION_BRANCH.fullmatch(parts[-1]) else parts)


_UNION_BRANCH = re.compile(r"constrained-\w+|literal\[.*\]|int|float|str|bool")

_EXPECTED = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "missing": "a value",
    "none_required": "nothing (null)",
    "path_type": "a path",
}


def _expected(item: Any) -> str:
    context = item.get("ctx", {})
    if item["type"] == "literal_error":
        return str(context["expected"]).replace("'", "")
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if name in context:
            return f"a number {sign} {context[name]}"
    return _EXPECTED.get(item["type"], str(item["msg"]))


def _found(item: Any) -> str:
    if item["type"] == "missing":
        return "nothing"
    value = item["input"]
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"
