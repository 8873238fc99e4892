"""The loop: draw a step, forward and backward its micro-batches, clip, update, log, save.

It knows methods only through `needs()` and `losses()`, and runs through the runs directory only through two callables,
so any method works with any model, any batch geometry and any number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from expunge.config.schema import TrainSection
from expunge.data.collate import Batch, collate
from expunge.data.encode import Dataset
from expunge.data.stream import PairedStream
from expunge.errors import StoppedError
from expunge.methods.base import Context, Method
from expunge.models.load import autocast
from expunge.models.reference import ReferenceValues
from expunge.models.reference_table import ReferenceTable
from expunge.models.score import score
from expunge.train.checkpoint import Checkpoints
from expunge.train.interrupt import between_steps
from expunge.train.microbatch import MicroBatch, Plan, Splitter
from expunge.train.monitor import Monitor
from expunge.train.optim import Optimizers
from expunge.train.reduce import Counts, term_loss

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainingData:
    """Everything a method reads, by dataset name."""

    datasets: Mapping[str, Dataset]
    links: Mapping[str, np.ndarray] = field(default_factory=dict)
    tables: Mapping[str, ReferenceTable] = field(default_factory=dict)
    pad_id: int = 0


class StepLosses(NamedTuple):
    """What one process's share of a step came to; each term reduced by global counts but not weighted."""

    total: Tensor  # ()
    terms: dict[str, Tensor]  # name -> ()
    micro: list[tuple[MicroBatch, Tensor]]  # the loss of each micro-batch, to name rows when one is not finite


class Engine:
    """Trains `model` by `method` on `data`.

    Args:
        model: float32, on its device; changed in place.
        method: what to minimise.
        data: encoded rows, links and reference tables.
        settings: the recipe's train section.
        stream: which rows each step draws.
        total_steps: optimizer steps of the whole run.
        token_budget: padded tokens of one micro-batch.
        accelerator: processes and their gradients; one process unless given.
    """

    def __init__(
        self,
        model: Any,
        method: Method,
        data: TrainingData,
        settings: TrainSection,
        *,
        stream: PairedStream,
        total_steps: int,
        token_budget: int,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.method, self.data, self.settings = method, data, settings
        self.stream, self.total_steps = stream, total_steps
        self.needs = method.needs()
        self.device = next(model.parameters()).device
        self.accelerator = accelerator or Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")
        self.model = model
        self.optimizers = Optimizers(model, settings, total_steps=total_steps)
        world = self.accelerator.num_processes
        # Gradients are averaged over processes by DDP, our losses are already divided by global counts.
        self.forward_model = self.accelerator.prepare_model(model) if world > 1 else model
        self.splitter = Splitter(
            data.datasets,
            data.links,
            self.needs,
            budget=token_budget,
            rank=self.accelerator.process_index,
            world=world,
        )
        self.step = 0

    def fit(self, *, emit: Emit, checkpoints: Checkpoints | None = None) -> dict[str, Any]:
        """Run from the current step to the last one.

        Args:
            emit: called with one event per optimizer step.
            checkpoints: where resumable state is saved; None: nowhere.

        Returns:
            The last step's event.

        Raises:
            StoppedError: a loss or gradient that is not finite (the weights before that step are kept), or a disk
                that is full.
            KeyboardInterrupt: asked to stop; the state after the last whole step has been saved.
        """
        self.forward_model.train()
        if self.settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        every = self.settings.save_steps or self.stream.steps_per_epoch
        monitor = Monitor(self.device, self.step, self.total_steps)
        event: dict[str, Any] = {}
        with between_steps() as stop:
            while self.step < self.total_steps:
                event = self.train_step(monitor)
                emit(event)
                if checkpoints and (stop.requested or self.step % every == 0 or self.step == self.total_steps):
                    checkpoints.save(self)
                if stop.requested:
                    raise KeyboardInterrupt
        self.forward_model.eval()
        return event

    def train_step(self, monitor: Monitor) -> dict[str, Any]:
        """Draw and apply one optimizer step; the event to log."""
        started = time.perf_counter()
        drawn = self.stream.next()
        plan = self.splitter(drawn)
        losses = self.backward(plan)
        norm = self._clip()
        reduced = self._gather(losses, norm)
        self._require_finite(reduced, losses)
        learning_rate = self.optimizers.learning_rate
        self.optimizers.step()
        self.step += 1
        return {
            "event": "step",
            "step": self.step,
            "total": self.total_steps,
            "epoch": drawn.epoch,
            "lr": learning_rate,
            **reduced,
            "tokens": plan.tokens,
            **monitor.measure(self.step, plan.tokens, time.perf_counter() - started),
        }

    def backward(self, plan: Plan) -> StepLosses:
        """Forward and backward every micro-batch of a plan; gradients accumulate in the parameters."""
        total = torch.zeros((), device=self.device)
        terms: dict[str, Tensor] = {}
        micro: list[tuple[MicroBatch, Tensor]] = []
        for place, micro_batch in enumerate(plan.micro_batches):
            last = place == len(plan.micro_batches) - 1
            sync = nullcontext() if last else self.accelerator.no_sync(self.forward_model)
            with sync:
                loss, parts = self._losses(micro_batch, plan.counts[micro_batch.role])
                if not micro_batch.live:
                    loss = loss * 0.0
                (loss * self.accelerator.num_processes).backward()
            if micro_batch.live:
                micro.append((micro_batch, loss.detach()))
                total = total + loss.detach()
                for name, value in parts.items():
                    terms[name] = terms[name] + value if name in terms else value
        return StepLosses(total, terms, micro)

    def _losses(self, micro_batch: MicroBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of a micro-batch's terms, and each term unweighted and detached."""
        context = self._context(micro_batch.role, micro_batch.rows, micro_batch.linked)
        loss = torch.zeros((), device=self.device)
        parts: dict[str, Tensor] = {}
        for name, term in self.method.losses(context).items():
            value = term_loss(term, scored_row=context.scored.row, num_rows=context.scored.num_rows, counts=counts)
            loss = loss + term.weight * value
            parts[name] = value.detach()
        return loss, parts

    def _context(self, name: str, rows: list[int], linked: Mapping[str, list[int]]) -> Context:
        batch: Batch = collate(
            self.data.datasets[name],
            rows,
            pad_id=self.data.pad_id,
            positions=self.needs.positions.get(name, "predict"),
        ).to(self.device)
        with autocast(self.device):
            scored = score(self.forward_model, batch)
        table = self.data.tables.get(name)
        reference = table.values(batch) if table else ReferenceValues()
        companions = {other: self._context(other, own, {}) for other, own in linked.items()}
        return Context(role=name, scores=scored, ref=reference, linked=companions)

    def _clip(self) -> Tensor:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.settings.max_grad_norm
        return torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)

    def _gather(self, losses: StepLosses, norm: Tensor) -> dict[str, float]:
        """The step's losses summed over processes, with one transfer to the host."""
        # Every process must send the same names, also one whose share held no live micro-batch of a role.
        names = sorted(losses.terms)
        values = torch.stack([losses.total.float(), *(losses.terms[name].float() for name in names)])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, reduction="sum")
        numbers = torch.cat([values, norm.float().reshape(1).to(values.device)]).tolist()
        return dict(zip(("loss", *names, "grad_norm"), numbers, strict=True))

    def _require_finite(self, reduced: Mapping[str, float], losses: StepLosses) -> None:
        if all(np.isfinite(list(reduced.values()))):
            return
        bad = {name: value for name, value in reduced.items() if not np.isfinite(value)}
        guilty = [mb for mb, loss in losses.micro if not torch.isfinite(loss)] or [mb for mb, _ in losses.micro]
        rows = [f"{mb.role} {self.data.datasets[mb.role].examples[row].row}" for mb in guilty for row in mb.rows]
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        raise StoppedError(
            f"step {self.step + 1}: {', '.join(f'{k} is {v}' for k, v in bad.items())} (rows: {shown})",
            hint="earlier checkpoints are kept; lower train.learning_rate, or look at these rows"
            + ("" if self.step else ", or at the starting model's weights: no step was taken yet"),
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights."""
        return {
            "step": self.step,
            "stream": self.stream.state(),
            "optimizers": self.optimizers.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`'s result; the weights are restored by the checkpoint itself."""
        self.step = int(state["step"])
        self.stream.load(state["stream"])
        self.optimizers.load_state_dict(state["optimizers"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
