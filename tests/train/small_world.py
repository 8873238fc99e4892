"""A small world to train in: a tokenizer, a Llama, a dozen questions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.catalog import METHODS
from expunge.config.schema import DataSection, TrainSection
from expunge.data.encode import Dataset, encode_all
from expunge.data.example import Example, Turn
from expunge.data.prepare import Prepared
from expunge.data.stream import PairedStream
from expunge.data.template import build_template
from expunge.methods.base import Method
from expunge.models.adapters import is_adapted
from expunge.models.fingerprint import digest_json, model_digest
from expunge.testing.tiny import tiny_llama
from expunge.train.engine import Engine
from expunge.train.sharding import shard
from expunge.train.start import as_started, freeze
from expunge.train.supply import RunSupply
from expunge.train.workshop import RunWorkshop
from expunge.train.wrappers.select import wrap

BOOKS = ("Ashes of Noon", "The Silent Harbour", "A Quiet Door", "Northern Light and Other Stories")


def questions(role: str, count: int) -> list[Example]:
    return [
        Example(
            f"{role}:{i}",
            i,
            turns=(
                Turn("user", f"Who wrote {BOOKS[i % 4]} in {1900 + i}?"),
                Turn("assistant", f"{role.title()} {'Vane' * (1 + i % 3)} wrote it{' in one winter' * (i % 4)}."),
            ),
        )
        for i in range(count)
    ]


def encoded(tokenizer: Any) -> dict[str, Dataset]:
    template = build_template("auto", tokenizer)
    return {
        role: encode_all(
            questions(role, count), template, role=role, max_length=256, on_truncate="error", supervise="last"
        )
        for role, count in {"forget": 11, "retain": 17, "alternate": 11}.items()
    }


def build_engine(
    tokenizer: Any,
    datasets: dict[str, Dataset],
    method: Method,
    *,
    folder: Path,
    budget: int = 512,
    steps: int = 5,
    model: Any = None,
    wrappers: Sequence[Mapping[str, Any]] = (),
    divided: bool = False,
    **settings: Any,
) -> Engine:
    """An engine as a run builds it; what a method prepares is kept below `folder`, per method and wrappers.

    `divided`: among the processes that have joined (`train.fsdp`).
    """
    model = model or tiny_llama(len(tokenizer), seed=1)
    wrapped = wrap(method, wrappers)
    method, needs = wrapped.method, wrapped.method.needs()
    given = {"learning_rate": 1e-3, "global_batch_size": 4, "max_steps": steps} | settings
    section = TrainSection(**(given | dict(method.train_settings)))
    own = [name for name in (*needs.roles, *needs.linked) if needs.rows.get(name, "refusals") == "refusals"]
    links = {name: np.arange(len(datasets[name].encoded))[None] for name in needs.linked if name in own}
    prepared = Prepared({name: datasets[name] for name in own}, {}, links)
    workshop = RunWorkshop(
        model=model,
        tokenizer=tokenizer,
        template=build_template("auto", tokenizer),
        datasets=prepared.datasets,
        data=DataSection(max_length=256),
        train=section,
        seed=3,
        device=torch.device("cpu"),
        pad_id=0,
        token_budget=512,
        context=None,
    )
    start = None if is_adapted(model) else copy.deepcopy(model)
    key = digest_json([method.name, method.model_dump(mode="json"), list(wrapped.named)])
    supply = RunSupply(
        folder / key[:16],
        method,
        prepared,
        workshop,
        model_key=model_digest(model),
        starting_model=lambda: as_started(model, lambda: start),
        progress=lambda event: None,
    )
    data = supply.first()
    combine = wrapped.combine.build(workshop, model) if wrapped.combine else None
    masks = [mask.build(workshop, model) for mask in wrapped.masks]
    freeze(model, masks, method.trainable())
    if divided:
        shard(model)
    sizes = {role: len(datasets[role].encoded) for role in needs.roles}
    batch = dict.fromkeys(sizes, section.global_batch_size)
    stream = PairedStream(sizes, anchor=needs.roles[0], batch=batch, seed=3)
    torch.manual_seed(0)
    return Engine(
        model,
        method,
        data,
        section,
        stream=stream,
        total_steps=section.max_steps or steps,
        token_budget=budget,
        combine=combine,
        masks=masks,
        supply=supply,
    )


SMALL: Mapping[str, Mapping[str, Any]] = {
    "rmu": {"layer": 1},
    "altpo": {"max_new_tokens": 8, "num_alternates": 2},
    "bs_s": {"max_new_tokens": 8, "num_beliefs": 1},
    "unstar": {"max_new_tokens": 8},
}
"""Keys of methods whose defaults are for deeper models than this world's, of two blocks, or for longer answers."""


def by_default(name: str) -> Method:
    """A method as it is unless one says otherwise, where that fits the small model."""
    method: Method = METHODS.load(name)(**SMALL.get(name, {}))
    return method
