"""The workshop of a run: one model, its rows, and what a method may do with them before or between training steps."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from expunge.config.schema import DataSection, TrainSection
from expunge.data.collate import Batch, Positions, collate, pack
from expunge.data.encode import Dataset, encode_all
from expunge.data.example import Example, Turn
from expunge.data.stream import PairedStream
from expunge.data.template import Template
from expunge.losses.nll import nll_loss
from expunge.methods.base import Method
from expunge.methods.finetune import FineTune
from expunge.models import decode
from expunge.models.adapters import trainable
from expunge.models.load import autocast
from expunge.models.reference_table import empty_table, scatter
from expunge.models.score import Scored, score
from expunge.train.engine import Engine, TrainingData
from expunge.train.step import StepRun

Progress = Callable[[dict[str, Any]], None]


@dataclass
class RunWorkshop:
    """See `expunge.methods.workshop.Workshop`."""

    model: Any
    tokenizer: Any
    template: Template
    datasets: Mapping[str, Dataset]
    data: DataSection
    train: TrainSection
    seed: int
    device: torch.device
    pad_id: int
    token_budget: int
    context: int | None
    progress: Progress = field(default=lambda event: None)
    record: Progress = field(default=lambda event: None)
    """Puts an event into the run's own log."""
    inherited: Mapping[str, Tensor] = field(default_factory=dict)
    training: tuple[Method, TrainingData] | None = None
    """What is trained on what; set when its data is ready (`RunSupply.first`)."""

    def sample(
        self,
        prompts: Sequence[Sequence[Turn]],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        model: Any = None,
    ) -> list[str]:
        """See `Workshop.sample`; an answer ends where the model's context does."""
        speaker = model or self.model
        rows = [self.template.prompt_ids(turns) for turns in prompts]
        context = self.context or sys.maxsize
        made = decode.sample(
            speaker,
            rows,
            temperature=temperature,
            seeds=[seed * 1_000_003 + place for place in range(len(prompts))],
            max_new_tokens=[max(0, min(max_new_tokens, context - len(row))) for row in rows],
            end_ids=decode.end_ids(speaker, self.template),
            pad_id=self.pad_id,
            token_budget=self.token_budget,
            progress=self.progress,
        )
        return [self.tokenizer.decode(each.token, skip_special_tokens=True).strip() for each in made.outputs]

    def encode(self, examples: Sequence[Example], role: str) -> Dataset:
        """See `Workshop.encode`; a made answer that is too long is cut."""
        return encode_all(
            examples,
            self.template,
            role=role,
            max_length=self.data.max_length,
            context=self.context,
            on_truncate="keep",
            supervise=self.data.supervise,
        )

    def passes(
        self,
        dataset: Dataset,
        *,
        model: Any = None,
        positions: Positions = "predict",
        hidden: int | None = None,
    ) -> Iterator[tuple[Batch, Scored]]:
        """See `Workshop.passes`."""
        speaker = model or self.model
        for rows in pack(dataset.lengths(), self.token_budget):
            batch = collate(dataset, rows, pad_id=self.pad_id, positions=positions).to(self.device)
            with torch.no_grad(), autocast(self.device):
                scored = score(speaker, batch, hidden=hidden)
            yield batch, scored

    def per_position(
        self, dataset: Dataset, parts: Sequence[tuple[Batch, Tensor]], *, positions: Positions = "predict"
    ) -> np.ndarray:
        """See `Workshop.per_position`."""
        offsets = empty_table(dataset, positions=positions).offsets
        first = parts[0][1].detach().cpu().numpy()
        sink = np.zeros((int(offsets[-1]), *first.shape[1:]), dtype=first.dtype)
        for batch, values in parts:
            scatter(sink, values.detach().cpu().numpy(), batch.rows.tolist(), offsets)
        return sink

    def fine_tuned(
        self,
        rows: Dataset | Sequence[Example],
        *,
        learning_rate: float,
        epochs: float,
        batch_size: int | None = None,
        from_scratch: bool = False,
        seed: int | None = None,
    ) -> Any:
        """See `Workshop.fine_tuned`."""
        own = self.seed if seed is None else seed
        dataset = rows if isinstance(rows, Dataset) else self.encode(rows, "train")
        model = self._new(own) if from_scratch else self._copy()
        for parameter in trainable(model).values():
            parameter.requires_grad_(True)
        batch = batch_size or self.train.global_batch_size
        settings = TrainSection(learning_rate=learning_rate, num_train_epochs=epochs, global_batch_size=batch)
        stream = PairedStream({"train": len(dataset.encoded)}, anchor="train", batch={"train": batch}, seed=own)
        engine = Engine(
            model,
            FineTune(),
            TrainingData({"train": dataset}, pad_id=self.pad_id),
            settings,
            stream=stream,
            total_steps=max(1, math.ceil(epochs * stream.steps_per_epoch)),
            token_budget=self.token_budget,
        )
        engine.fit(emit=self._advance)
        return model.requires_grad_(False)

    def gradient(self, dataset: Dataset, *, model: Any = None) -> dict[str, Tensor]:
        """See `Workshop.gradient`."""
        speaker = model or self.model
        named = {name: parameter for name, parameter in speaker.named_parameters() if parameter.requires_grad}
        sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        tokens = int(dataset.supervised().sum())
        for rows in pack(dataset.lengths(), self.token_budget):
            batch = collate(dataset, rows, pad_id=self.pad_id).to(self.device)
            with autocast(self.device):
                loss = nll_loss(score(speaker, batch).logps).sum() / tokens
            parts = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for total, part in zip(sums.values(), parts, strict=True):
                if part is not None:
                    total += part
        return sums

    def role_gradient(self, role: str) -> dict[str, Tensor]:
        """See `Workshop.role_gradient`."""
        if self.training is None:
            raise ValueError("a method's gradient is asked for before its data is ready")
        method, data = self.training
        roles = method.needs().roles
        sizes = {name: len(data.datasets[name].encoded) for name in roles}
        stream = PairedStream(sizes, anchor=roles[0], batch=sizes, seed=self.seed)
        engine = Engine(
            self.model, method, data, self.train, stream=stream, total_steps=1, token_budget=self.token_budget
        )
        return StepRun(engine, engine.splitter(stream.next())).gradient(role).tensors

    def note(self, text: str) -> None:
        """See `Workshop.note`."""
        event = {"event": "note", "text": text}
        self.record(event)
        self.progress(event)

    def _copy(self) -> Any:
        """The model again; where adapters are trained, on the same frozen weights."""
        own = trainable(self.model)
        shared = {id(p): p for name, p in self.model.named_parameters() if name not in own}
        return copy.deepcopy(self.model, shared)

    def _new(self, seed: int) -> Any:
        """New weights of the same shape."""
        config = self.model.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=config._attn_implementation, dtype=torch.float32
            ).to(self.device)

    def _advance(self, event: dict[str, Any]) -> None:
        self.progress({"event": "phase", "name": "fine-tune", "done": event["step"], "total": event["total"]})
