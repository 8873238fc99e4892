"""The table of recipe keys in docs/recipes.md, made from the schema. `python tests/docs/recipe_keys.py` writes it."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from expunge.catalog import METHODS, WRAPPERS
from expunge.config.aliases import JOINED, MOVED, RULES
from expunge.config.schema import (
    DataSection,
    EvalSection,
    ModelSection,
    Recipe,
    SamplingSection,
    Section,
    SourceSpec,
    TrainSection,
)
from expunge.methods.terms import RetainingMethod

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
MARKED = re.compile(r"<!-- keys of (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)
SECTIONS: dict[str, type[Section]] = {
    "recipe": Recipe,
    "model": ModelSection,
    "data": DataSection,
    "source": SourceSpec,
    "train": TrainSection,
    "eval": EvalSection,
    "sampling": SamplingSection,
}
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true, false", Path: "path", dict: "mapping"}

_TUPLES: dict[Any, str] = {int: "whole number, range", float: "number", dict: "name, mapping", str: "name"}
"""Lists of what is not a source."""


def render(name: str) -> str:
    """The marked table called `name`: one of `SECTIONS`, `method` (shared keys), `methods`, `wrappers` or `aliases`."""
    if name == "aliases":
        rows = list(_aliases())
        header = "| name | what becomes of it |\n|---|---|\n"
    elif name in ("methods", "wrappers"):
        rows = list(_own_keys() if name == "methods" else _wrapper_keys())
        header = f"| {name.removesuffix('s')} | key | value | default | meaning |\n|---|---|---|---|---|\n"
    else:
        kind: type[BaseModel] = RetainingMethod if name == "method" else SECTIONS[name]
        rows = [_row(key, field) for key, field in kind.model_fields.items() if not _is_section(field)]
        header = "| key | value | default | meaning |\n|---|---|---|---|\n"
    table = header + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return f"<!-- keys of {name} -->\n{table}<!-- end -->"


def rewritten(text: str) -> str:
    """The page with every marked table made anew."""
    return MARKED.sub(lambda match: render(match["name"]), text)


def _own_keys() -> Iterator[list[str]]:
    """What a method adds to the shared keys, or sets otherwise."""
    shared = RetainingMethod.model_fields
    for entry in METHODS:
        for key, field in METHODS.load(entry.name).model_fields.items():
            if key not in shared or _row(key, field) != _row(key, shared[key]):
                yield [f"`{entry.name}`", *_row(key, field)]


def _wrapper_keys() -> Iterator[list[str]]:
    """The keys of every wrapper, those of a mapping among them as `outer.inner`."""
    for entry in WRAPPERS:
        for key, field in WRAPPERS.load(entry.name).model_fields.items():
            yield [f"`{entry.name}`", *_row(key, field)]
            for kind in get_args(field.annotation):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    yield from ([f"`{entry.name}`", *_row(f"{key}.{k}", f)] for k, f in kind.model_fields.items())


def _aliases() -> Iterator[list[str]]:
    """Names of TrainingArguments and ModelConfig that mean one of our keys, then those that are refused."""
    yield from ([f"`{name}`", f"`{key}`"] for name, key in MOVED.items())
    yield from ([f"`{name}`", meaning] for name, meaning in JOINED.items())
    for rule in RULES:
        fine = ", ".join(f"`{json.dumps(value)}`" for value in rule.fine)
        said = "; ".join(filter(None, (rule.why, rule.instead)))
        names = ", ".join(f"`{name}`" for name in rule.names.split())
        yield [names, f"only {fine}: {said}" if fine else f"refused: {said}"]


def _row(key: str, field: FieldInfo) -> list[str]:
    assert field.description, f"{key} has no meaning: give its field a docstring"
    meaning = " ".join(field.description.split()).replace("|", "\\|")
    return [f"`{key}`", _values(field.annotation), _default(field), meaning]


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    return "none" if value in (None, (), {}) else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _values(annotation: Any) -> str:
    """A type as its reader writes it."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(args[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return ", ".join(_values(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        item = get_args(args[0])[0] if get_origin(args[0]) is Annotated else args[0]
        of = _TUPLES.get(get_origin(item) or item, "source")
        return f"{of} or list of them"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return _PLAIN[origin or annotation]


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
