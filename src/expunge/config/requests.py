"""A sequence of removal requests (`data.requests`) as one ordinary recipe per request."""

from __future__ import annotations

from pathlib import Path

from expunge.config.schema import ModelSection, Recipe
from expunge.errors import UsageError


def request_folder(folder: Path, number: int) -> Path:
    """Where request `number` (from 1) of the sequence in `folder` runs."""
    return folder / f"request-{number}"


def request_recipes(recipe: Recipe, folder: Path) -> list[Recipe]:
    """One recipe per request, each from the model that the one before it leaves.

    Args:
        recipe: with `data.requests`.
        folder: the run directory of the sequence; the requests run in `request-1`, `request-2`, ... inside it.

    Raises:
        UsageError: rows to forget are given beside the requests, or it is a training recipe.
    """
    if recipe.kind != "unlearn":
        raise UsageError("data.requests is for unlearning", hint="use `expunge unlearn`, or data.train")
    if recipe.data.forget:
        raise UsageError(
            "data.forget and data.requests are both given",
            hint="make data.forget the first of data.requests, or set data.forget=null",
        )
    found = []
    for number, source in enumerate(recipe.data.requests, 1):
        before = request_folder(folder, number - 1) / "model"
        model = recipe.model if number == 1 else _continued(recipe.model, before)
        found.append(
            recipe.model_copy(
                update={
                    "model": model,
                    "data": recipe.data.model_copy(update={"forget": (source,), "requests": ()}),
                    "output_dir": request_folder(folder, number),
                }
            )
        )
    return found


def _continued(section: ModelSection, model: Path) -> ModelSection:
    """The same section for a model that an earlier request left, with its tokenizer."""
    origin = dict.fromkeys(("model_revision", "tokenizer_name_or_path", "from_scratch", "tokenizer_vocab_size"))
    return section.model_copy(update={**origin, "model_name_or_path": str(model)})
