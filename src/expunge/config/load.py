"""From a YAML file, a packaged recipe's name or a mapping, plus `a.b=c` overrides, to a checked `Recipe`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from expunge.catalog import unknown
from expunge.config.packaged import find_packaged, packaged_recipes
from expunge.config.problems import usage_error
from expunge.config.schema import EvalSection, Recipe, SourceSpec
from expunge.config.translate import translate
from expunge.config.yaml import parse_yaml
from expunge.errors import UsageError


class Given(NamedTuple):
    """A recipe and how it was given."""

    recipe: Recipe
    given: dict[str, Any]
    """The settings as written, overrides included, defaults not."""
    origin: str
    """The file's path as found; empty for a mapping."""
    notes: tuple[str, ...] = ()
    """What was derived from settings that depend on the launcher, to be told before the run."""


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Given:
    """Read and check a recipe.

    Names of TrainingArguments and ModelConfig are turned into ours (`expunge.config.aliases`); a batch given per device
    is multiplied by the processes a launcher started.

    Paths inside a recipe file (data, model) are looked up from the current directory first, then from the file's
    folder.

    Args:
        source: a YAML file, the name of a packaged recipe (`tofu-forget10/npo`), a mapping, or a `Recipe`.
        overrides: `a.b=c`; c is read as YAML, so `1e-5`, `true`, `null`, `[1, 2]` and `{path: x}` mean what they say.

    Raises:
        UsageError: no such recipe; not YAML; an unknown key (with the nearest one) or a value of the wrong type; a
            setting of TrainingArguments that has no meaning here.
    """
    settings, origin = _read(source)
    for override in overrides:
        _apply(settings, override)
    translated = translate(settings, world=int(os.environ.get("WORLD_SIZE", "1")))
    try:
        recipe = Recipe.model_validate(translated.settings)
    except ValidationError as error:
        raise usage_error(error, model=Recipe) from error
    recipe = _located(recipe, Path(origin).parent) if origin else recipe
    return Given(recipe, settings, origin, translated.notes)


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every setting with its default, as plain JSON values; the method's own defaults are the method's to add."""
    settings: dict[str, Any] = recipe.model_dump(mode="json")
    return settings


def _read(source: str | Path | Mapping[str, Any] | Recipe) -> tuple[dict[str, Any], str]:
    if isinstance(source, Recipe):
        return source.model_dump(mode="json", exclude_unset=True), ""
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source)), ""
    path = _find(str(source))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a recipe: {error}", hint="a recipe is YAML in UTF-8") from error
    settings = parse_yaml(text, origin=str(path))
    if settings is None:
        return {}, str(path)
    if not isinstance(settings, dict):
        raise UsageError(
            f"{path}: expected a mapping of sections, found {type(settings).__name__}",
            hint="a recipe starts with keys such as model:, data:, method:",
        )
    return settings, str(path)


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    packaged = find_packaged(name)
    if packaged:
        return packaged
    if path.suffix in {".yaml", ".yml"}:
        raise UsageError(f"no recipe file {name}", hint="list packaged recipes with `expunge ls recipes`")
    raise unknown("recipe", name, [recipe.name for recipe in packaged_recipes()])


def _apply(settings: dict[str, Any], override: str) -> None:
    """Set one `a.b=c` in place."""
    key, equals, text = override.partition("=")
    parts = key.strip().removeprefix("--").split(".")
    if not equals or not all(parts):
        raise UsageError(f"{override!r} is not an override", hint="write key=value, e.g. train.learning_rate=1e-5")
    place = settings
    for number, part in enumerate(parts[:-1]):
        name = _spelled(place, part)
        inner = place.get(name)
        if inner is None:
            inner = place[name] = {}
        if not isinstance(inner, dict):
            raise UsageError(
                f"{override!r}: {'.'.join(parts[: number + 1])} is {inner!r}, not a section",
                hint="give the whole value, e.g. data.forget={path: x, rows: '0:40'}",
            )
        place = inner
    place[_spelled(place, parts[-1])] = parse_yaml(text, origin=override)


def _spelled(place: Mapping[str, Any], part: str) -> str:
    """`learning-rate` is `learning_rate`, unless the settings already spell it with a hyphen."""
    return part if part in place else part.replace("-", "_")


def _located(recipe: Recipe, folder: Path) -> Recipe:
    """Point relative paths that only exist beside the recipe file there."""
    data = recipe.data.model_copy(update={"tofu": _beside(recipe.data.tofu, folder), **_sources(recipe.data, folder)})
    named = {
        name: _beside(value, folder)
        for name in ("model_name_or_path", "tokenizer_name_or_path")
        if (value := getattr(recipe.model, name)) is not None
    }
    return recipe.model_copy(
        update={
            "data": data,
            "model": recipe.model.model_copy(update=named),
            "eval": recipe.eval.model_copy(update={**_source(recipe.eval, folder), **_sources(recipe.eval, folder)}),
        }
    )


def _source(section: EvalSection, folder: Path) -> dict[str, str]:
    """Where a benchmark lies, located."""
    return {} if section.source is None else {"source": _beside(section.source, folder)}


def _sources(section: BaseModel, folder: Path) -> dict[str, tuple[SourceSpec, ...]]:
    """Every field of a section that holds sources, with its paths located."""
    found = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, tuple) and value and all(isinstance(item, SourceSpec) for item in value):
            found[name] = tuple(item.model_copy(update={"path": _beside(item.path, folder)}) for item in value)
    return found


def _beside(path: str, folder: Path) -> str:
    """`path`, or the same below `folder` where only that exists."""
    return path if Path(path).expanduser().exists() or not (folder / path).exists() else str(folder / path)
