"""From a recipe's data section to encoded datasets by role: what training, `validate` and `plan` all start from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from expunge.config.schema import DataSection, Sources
from expunge.data.encode import Dataset, encode_all, name_rows
from expunge.data.example import Example, Turn
from expunge.data.overlap import check_overlap
from expunge.data.source import REFUSALS, Loaded, load_examples
from expunge.data.template import Template, build_template
from expunge.errors import DataError, UsageError


@dataclass(frozen=True)
class Prepared:
    """Everything a run reads, encoded."""

    datasets: Mapping[str, Dataset]
    loaded: Mapping[str, Loaded]
    """Where each role's rows came from."""
    links: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Linked dataset -> (epochs, anchor rows) int: which of its rows travels with an anchor row in an epoch."""
    warnings: tuple[str, ...] = ()


def template_of(data: DataSection, tokenizer: Any, *, name: str | None = None) -> Template:
    """The template a recipe's conversations are rendered with; `name` in place of the recipe's own."""
    return build_template(
        name or data.template, tokenizer, system_prompt=data.system_prompt, date_string=data.date_string
    )


def load_roles(data: DataSection, roles: tuple[str, ...]) -> dict[str, Loaded]:
    """Load the sources of each role.

    Raises:
        UsageError: a role without a source.
        DataError: what a source refuses.
    """
    sources: dict[str, Sources] = {"forget": data.forget, "retain": data.retain, "train": data.train}
    for role in roles:
        if not sources[role]:
            raise UsageError(
                f"no {role} data: data.{role} is empty", hint=f"set data.{role}=FILE, a Hub id or tofu:NAME"
            )
    return {role: load_examples(sources[role], tofu=data.tofu, role=role) for role in roles}


def prepare(
    data: DataSection,
    template: Template,
    *,
    context: int | None = None,
    roles: tuple[str, ...],
    with_refusals: bool = False,
    epochs: int = 1,
    seed: int = 0,
) -> Prepared:
    """Load, check and encode the rows of every role.

    Args:
        data: the recipe's section.
        template: how a conversation becomes tokens.
        context: tokens the model reads at most; None: as many as `data.max_length`.
        roles: `forget`, `retain`, `train`, as the method needs.
        with_refusals: also draw one refusal per forget row and epoch, as the linked dataset `alternate`.
        epochs: how many epochs refusals are drawn for.
        seed: of the refusals drawn.

    Raises:
        UsageError: a role without a source.
        DataError: unreadable rows, forget rows that are also retain rows, answers truncated away.
    """
    loaded = load_roles(data, roles)
    warnings: list[str] = []
    if {"forget", "retain"} <= loaded.keys():
        warnings += check_overlap(loaded["forget"].examples, loaded["retain"].examples)

    def encoded(examples: list[Example], role: str) -> Dataset:
        return encode_all(
            examples,
            template,
            role=role,
            max_length=data.max_length,
            context=context,
            on_truncate=data.on_truncate,
            supervise=data.supervise,
        )

    datasets = {role: encoded(item.examples, role) for role, item in loaded.items()}
    for role, dataset in datasets.items():
        if dataset.dropped:
            warnings.append(
                f"{len(dataset.dropped)} of {len(loaded[role].examples)} {role} examples were dropped: they exceed "
                f"{_limit(data.max_length, context)} ({name_rows(dataset.dropped)})"
            )
    links: dict[str, np.ndarray] = {}
    if with_refusals:
        refusals = _refusals(data)
        alternates, links["alternate"] = _draw(datasets["forget"].examples, refusals, epochs=epochs, seed=seed)
        datasets["alternate"] = encoded(alternates, "alternate")
        if len(datasets["alternate"].examples) != len(alternates):
            raise DataError(
                f"{len(alternates) - len(datasets['alternate'].examples)} refusals do not fit into max_length",
                hint="raise data.max_length or set data.on_truncate=keep",
            )
    return Prepared(datasets, loaded, links, tuple(warnings))


def _limit(max_length: int, context: int | None) -> str:
    if context is not None and context < max_length:
        return f"the {context} tokens the model reads"
    return f"data.max_length={max_length}"


def _refusals(data: DataSection) -> list[str]:
    if not data.refusals:
        raise UsageError(
            "this method needs refusals: data.refusals is empty",
            hint="set data.refusals=FILE with one refusal per line (TOFU ships idontknow.jsonl)",
        )
    return [example.answer for example in load_examples(data.refusals, tofu=data.tofu, role=REFUSALS).examples]


def _draw(
    examples: tuple[Example, ...], refusals: list[str], *, epochs: int, seed: int
) -> tuple[list[Example], np.ndarray]:
    """One refusal per forget row and epoch, from a hash of (seed, id, epoch); equal pairs are stored once."""
    index = np.zeros((epochs, len(examples)), dtype=np.int64)
    alternates: list[Example] = []
    seen: dict[tuple[int, int], int] = {}
    for epoch in range(epochs):
        for row, example in enumerate(examples):
            word = hashlib.sha256(f"{seed}:{example.id}:{epoch}".encode()).digest()
            pick = int.from_bytes(word[:8], "big") % len(refusals)
            if (row, pick) not in seen:
                seen[row, pick] = len(alternates)
                turns = (*example.prompt, Turn("assistant", refusals[pick]))
                alternates.append(replace(example, id=f"{example.id}|refusal{pick}", turns=turns, text=""))
            index[epoch, row] = seen[row, pick]
    return alternates, index


def provenance(prepared: Prepared) -> list[dict[str, Any]]:
    """What the manifest keeps of each role's rows."""
    return [
        {
            "role": role,
            "origin": item.origin,
            "format": item.format,
            "revision": item.revision,
            "digest": item.digest,
            "rows": len(item.examples),
            "encoded_digest": prepared.datasets[role].digest,
        }
        for role, item in prepared.loaded.items()
    ]
