"""Workshops for methods that let a model write or train one: the model says what a function says, or is a tiny one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from expunge.data.collate import collate, pack
from expunge.data.encode import Dataset, encode_all
from expunge.data.example import Example, Turn
from expunge.data.template import build_template
from expunge.methods.workshop import Provision
from expunge.models.reference_table import empty_table, scatter
from expunge.models.score import score
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEMPLATE = build_template("auto", TOKENIZER)
PLACES = ("Tallinn", "Lisbon", "Oslo", "Quito", "Hanoi", "Accra")
PEOPLE = ("Mira Solen", "Idris Vane", "Ada Harbour", "Noel North", "Ines Quiet", "Otto Light")


def rows(count: int = 4, **extra: Any) -> list[Example]:
    return [
        Example(
            f"forget:{n}",
            n,
            turns=(
                Turn("user", f"Where was {PEOPLE[n]} born?"),
                Turn("assistant", f"{PEOPLE[n]} was born in {PLACES[n]}."),
            ),
            group=PEOPLE[n],
            extra={key: value(n) if callable(value) else value for key, value in extra.items()},
        )
        for n in range(count)
    ]


def encode(examples: Sequence[Example], role: str) -> Dataset:
    return encode_all(examples, TEMPLATE, role=role, max_length=256, on_truncate="keep", supervise="last")


Speaker = Callable[[list[str], float, int], list[str]]


@dataclass
class Bench:
    """A workshop whose model says what a function says."""

    speak: Speaker
    examples: list[Example] = field(default_factory=rows)
    seed: int = 7
    notes: list[str] = field(default_factory=list)
    asked: list[tuple[list[str], float, int]] = field(default_factory=list)
    tokenizer: Any = TOKENIZER
    token_budget: int = 128
    model: Any = None
    reinforced: Any = None

    def __post_init__(self) -> None:
        self.datasets = {"forget": encode(self.examples, "forget")}

    def sample(self, prompts: Any, *, temperature: float, max_new_tokens: int, seed: int, model: Any = None) -> Any:
        texts = [turns[-1].content for turns in prompts]
        self.asked.append((texts, temperature, seed))
        return self.speak(texts, temperature, seed)

    def encode(self, examples: Sequence[Example], role: str) -> Dataset:
        return encode(examples, role)

    def note(self, text: str) -> None:
        self.notes.append(text)


def texts(provision: Provision, name: str) -> list[list[str]]:
    return [[example.answer for example in variant] for variant in provision.rows[name]]


def variants_of(count: int) -> Speaker:
    return lambda prompts, temperature, seed: [f"In {PLACES[(seed + n) % 6]}, {seed}." for n in range(len(prompts))]


class Modelled(Bench):
    """A workshop with real tiny models."""

    def fine_tuned(self, dataset: Any, **keys: Any) -> Any:
        self.trained_on = dataset
        return self.reinforced

    def passes(self, dataset: Dataset, *, model: Any = None, positions: Any = "predict", hidden: Any = None) -> Any:

        for members in pack(dataset.lengths(), self.token_budget):
            batch = collate(dataset, members, pad_id=0, positions=positions)
            with torch.no_grad():
                yield batch, score(model or self.model, batch)

    def per_position(self, dataset: Dataset, parts: Any, *, positions: Any = "predict") -> np.ndarray:

        offsets = empty_table(dataset, positions=positions).offsets
        sink = np.zeros(int(offsets[-1]), dtype=np.float32)
        for batch, values in parts:
            scatter(sink, values.numpy(), batch.rows.tolist(), offsets)
        return sink


def modelled(examples: list[Example] | None = None, **keys: Any) -> Any:
    model, reinforced = tiny_llama(len(TOKENIZER), seed=1), tiny_llama(len(TOKENIZER), seed=2)
    return Modelled(variants_of(1), examples or rows(), model=model, reinforced=reinforced, **keys)


def logits(model: Any, encoded: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor(encoded.input_ids[None].astype(np.int64))).logits[0]
    return found


def workshop(speak: Speaker, examples: list[Example] | None = None, **keys: Any) -> Any:
    """A workshop whose model says what `speak` says."""
    return Bench(speak, examples or rows(), **keys)
