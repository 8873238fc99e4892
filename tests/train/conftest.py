"""A small world to train in: one tokenizer, one Llama, a dozen questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

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


def questions(role: str, count: int) -> list[Example]:
    books = ("Ashes of Noon", "The Silent Harbour", "A Quiet Door", "Northern Light and Other Stories")
    return [
        Example(
            f"{role}:{i}",
            i,
            turns=(
                Turn("user", f"Who wrote {books[i % 4]} in {1900 + i}?"),
                Turn("assistant", f"{role.title()} {'Vane' * (1 + i % 3)} wrote it{' in one winter' * (i % 4)}."),
            ),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def datasets(tokenizer: Any) -> dict[str, Dataset]:
    template = build_template("auto", tokenizer)

    def encode(role: str, count: int) -> Dataset:
        return encode_all(
            questions(role, count), template, role=role, max_length=256, on_truncate="error", supervise="last"
        )

    return {"forget": encode("forget", 11), "retain": encode("retain", 17), "alternate": encode("alternate", 11)}


@pytest.fixture
def make_engine(
    tokenizer: Any, datasets: dict[str, Dataset], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Engine]:
    import numpy as np

    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))

    def make(method: Method, *, budget: int = 512, steps: int = 5, model: Any = None, **settings: Any) -> Engine:
        model = model or tiny_llama(len(tokenizer), seed=1)
        settings = {"learning_rate": 1e-3, "global_batch_size": 4, "max_steps": steps} | settings
        section = TrainSection(**settings)
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
        stream = PairedStream(
            sizes, anchor=needs.roles[0], batch=dict.fromkeys(sizes, section.global_batch_size), seed=3
        )
        links = {name: np.arange(len(datasets[name].encoded))[None] for name in needs.linked}
        data = TrainingData({name: datasets[name] for name in names}, links, tables, pad_id=0)
        torch.manual_seed(0)
        return Engine(model, method, data, section, stream=stream, total_steps=steps, token_budget=budget)

    return make
