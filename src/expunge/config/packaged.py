"""Recipes that come with expunge: in the wheel beside the package, in a checkout in `recipes/`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import expunge


class PackagedRecipe(NamedTuple):
    """One recipe that can be named without a path."""

    name: str
    """`tofu-forget10/npo`."""
    path: Path
    summary: str
    """The first comment line of the file."""


def recipes_folder() -> Path:
    """Where the packaged recipes lie."""
    package = Path(expunge.__file__).resolve().parent
    inside = package / "_recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def packaged_recipes() -> list[PackagedRecipe]:
    """Every packaged recipe, by name."""
    folder = recipes_folder()
    found = [path for path in folder.rglob("*") if path.suffix in {".yaml", ".yml"}]
    return [PackagedRecipe(_name(path, folder), path, _summary(path)) for path in sorted(found)]


def find_packaged(name: str) -> Path | None:
    """The file of a packaged recipe; `-` and `_` are the same, an ending is optional."""
    wanted = _normal(name)
    return next((recipe.path for recipe in packaged_recipes() if _normal(recipe.name) == wanted), None)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _normal(name: str) -> str:
    return name.removesuffix(".yaml").removesuffix(".yml").replace("_", "-").lower()


def _summary(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ")
    return ""
