"""A small world to train in: a tokenizer, a Llama, a dozen questions. As a program it trains and writes JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch

from expunge.catalog import METHODS
from expunge.config.schema import TrainSection
from expunge.data.encode import Dataset, encode_all
from expunge.data.example import Example, Turn
from expunge.data.stream import PairedStream
from expunge.data.template import build_template
from expunge.methods.base import Method
from expunge.models.fingerprint import model_digest
from expunge.models.reference_table import reference_table
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.engine import Engine, TrainingData

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
    budget: int = 512,
    steps: int = 5,
    model: Any = None,
    **settings: Any,
) -> Engine:
    model = model or tiny_llama(len(tokenizer), seed=1)
    section = TrainSection(**({"learning_rate": 1e-3, "global_batch_size": 4, "max_steps": steps} | settings))
    needs = method.needs()
    names = [*needs.roles, *needs.linked]
    tables = {
        name: reference_table(
            model,
            datasets[name],
            references,
            model_key=model_digest(model),
            pad_id=0,
            positions=needs.positions.get(name, "predict"),
            token_budget=512,
        )
        for name, references in needs.references.items()
    }
    sizes = {role: len(datasets[role].encoded) for role in needs.roles}
    batch = dict.fromkeys(sizes, section.global_batch_size)
    stream = PairedStream(sizes, anchor=needs.roles[0], batch=batch, seed=3)
    links = {name: np.arange(len(datasets[name].encoded))[None] for name in needs.linked}
    data = TrainingData({name: datasets[name] for name in names}, links, tables, pad_id=0)
    torch.manual_seed(0)
    return Engine(model, method, data, section, stream=stream, total_steps=steps, token_budget=budget)


def main(name: str) -> None:
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    # One row a micro-batch: of an epoch's last three rows one process has two, the other one and a zero-weight repeat.
    engine = build_engine(tokenizer, encoded(tokenizer), METHODS.load(name)(), budget=64)
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append)
    if engine.accelerator.is_main_process:
        weight = sum(float(p.double().abs().sum()) for p in engine.model.parameters())
        steps = [[event["loss"], event["forget"], event["grad_norm"]] for event in events]
        found = {"processes": engine.accelerator.num_processes, "steps": steps, "weight": weight}
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
