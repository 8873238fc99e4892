"""`expunge validate`: what the model will be trained on, token by token, before any time is spent."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from expunge.config.requests import request_recipes
from expunge.config.schema import Recipe
from expunge.data.prepare import template_of
from expunge.models.load import context_length, load_config, require_vocabulary
from expunge.train.start import prepare_for, select, start_tokenizer


class Piece(NamedTuple):
    """A stretch of the rendered example."""

    text: str
    supervised: bool


class DatasetView(NamedTuple):
    """One role's rows."""

    role: str
    origin: str
    format: str
    rows: int
    tokens: int
    supervised_tokens: int
    longest: int
    example_id: str
    pieces: tuple[Piece, ...]
    """The first row as the model reads it, cut where supervision begins and ends."""


class Validation(NamedTuple):
    """A recipe that can run."""

    method: str
    template: str
    datasets: tuple[DatasetView, ...]
    warnings: tuple[str, ...]


def validate(recipe: Recipe) -> Validation:
    """Check method, tokenizer, template and every row; load no weights.

    Raises:
        ExpungeError: whatever would stop the run before its first step.
    """
    if recipe.data.requests:
        return _validate_requests(recipe)
    recipe, wrapped = select(recipe)
    method = wrapped.method
    tokenizer = start_tokenizer(recipe)
    template = template_of(recipe.data, tokenizer)
    section = recipe.model
    context = size = None
    if section.from_scratch is None and section.model_name_or_path is not None:
        config = load_config(
            section.model_name_or_path,
            revision=section.model_revision,
            trust_remote_code=section.trust_remote_code,
        )
        context, size = context_length(config), config.get_text_config().vocab_size
    prepared = prepare_for(recipe, method.needs(), template, context)
    views = []
    for role, dataset in prepared.datasets.items():
        if size is not None:
            require_vocabulary(dataset, tokenizer, size=size)
        origin = prepared.loaded.get(role)
        encoded = dataset.encoded[0]
        ids, mask = encoded.input_ids.tolist(), encoded.supervised.tolist()
        views.append(
            DatasetView(
                role=role,
                origin=origin.origin if origin else "forget prompts with drawn refusals",
                format=origin.format if origin else "question/answer",
                rows=len(dataset.encoded),
                tokens=int(dataset.lengths().sum()),
                supervised_tokens=int(dataset.supervised().sum()),
                longest=int(dataset.lengths().max()),
                example_id=dataset.examples[0].id,
                pieces=_pieces(tokenizer, ids, mask),
            )
        )
    return Validation(method.name, template.name, tuple(views), prepared.warnings)


def _validate_requests(recipe: Recipe) -> Validation:
    """Every request's rows, and what they share once."""
    parts = [part.model_copy(update={"model": recipe.model}) for part in request_recipes(recipe, Path())]
    found = [validate(part) for part in parts]
    views: list[DatasetView] = []
    warnings: list[str] = []
    for number, each in enumerate(found, 1):
        views += [v._replace(role=f"{v.role} (request {number})") for v in each.datasets if v.role != "retain"]
        warnings += [f"request {number}: {text}" for text in each.warnings]
    views += [view for view in found[0].datasets if view.role == "retain"]
    return Validation(found[0].method, found[0].template, tuple(views), tuple(warnings))


def _pieces(tokenizer: object, ids: list[int], mask: list[bool]) -> tuple[Piece, ...]:
    decode = tokenizer.decode  # type: ignore[attr-defined]
    pieces: list[Piece] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or mask[stop] != mask[start]:
            pieces.append(Piece(decode(ids[start:stop]), mask[start]))
            start = stop
    return tuple(pieces)
