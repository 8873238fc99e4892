"""The loop: draw a step, forward and backward its micro-batches, clip, update, log, save.

It knows methods only through `needs()` and `losses()`, and runs through the runs directory only through two callables,
so any method works with any model, any batch geometry and any number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from expunge.config.schema import TrainSection
from expunge.data.encode import Dataset
from expunge.data.stream import PairedStream
from expunge.errors import StoppedError
from expunge.methods.base import Method
from expunge.models.blocks import recompute_blocks
from expunge.models.processes import processes
from expunge.models.reference_table import ReferenceTable
from expunge.models.score import obstacle
from expunge.train.checkpoint import Checkpoints
from expunge.train.deepspeed import Zero3, by_hand, large_logits
from expunge.train.interrupt import Stop, between_steps
from expunge.train.microbatch import MicroBatch, Splitter
from expunge.train.monitor import Monitor
from expunge.train.optim import Optimizers
from expunge.train.sharding import is_sharded, whole
from expunge.train.step import StepLosses, StepRun
from expunge.train.wrappers.base import Combine, GradientMask

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainingData:
    """Everything a method reads, by dataset name."""

    datasets: Mapping[str, Dataset]
    links: Mapping[str, np.ndarray] = field(default_factory=dict)
    tables: Mapping[str, ReferenceTable] = field(default_factory=dict)
    pad_id: int = 0
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method made once, on the model's device."""


class Supply(Protocol):
    """Where an engine's rows and tables come from when a method makes new ones between epochs."""

    def due(self, epoch: int) -> bool:
        """Whether the rows of this epoch are other ones than those of the epoch before."""

    def at(self, epoch: int, model: Any) -> TrainingData:
        """The data of an epoch; read back where it was made before, else made with `model`."""


class Verdict(NamedTuple):
    """What a watch asks of the engine after a step; the same on every process."""

    stop: bool = False
    """End the run here."""
    keep: bool = False
    """Save this step's checkpoint and keep it until a later one is kept instead."""


class Watch(Protocol):
    """What looks at the model between steps: evaluations, the best point so far, trackers."""

    def __call__(self, engine: Engine, event: dict[str, Any]) -> Verdict:
        """Told after each optimizer step, on every process, before that step's checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s result."""


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
        combine: turns the roles' gradients into one; their sum unless given.
        masks: which entries may move, in the order they act.
        supply: gives the data of later epochs; `data` serves all of them unless given.
        watch: looks on, and may end the run early.
        accelerator: processes and their gradients; one process unless given.
        zero3: DeepSpeed divides the model among the processes (`expunge.train.deepspeed`).
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
        combine: Combine | None = None,
        masks: Sequence[GradientMask] = (),
        supply: Supply | None = None,
        watch: Watch | None = None,
        accelerator: Accelerator | None = None,
        zero3: bool = False,
    ) -> None:
        self.method, self.settings = method, settings
        self.combine, self.masks, self.supply, self.watch = combine, tuple(masks), supply, watch
        self.stream, self.total_steps = stream, total_steps
        self.needs = method.needs()
        self.device = next(model.parameters()).device
        with by_hand():
            self.accelerator = accelerator or Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")
        self.model = model
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizers = Optimizers(model, settings, total_steps=total_steps)
        self.processes = processes()
        self.sharded = zero3 or is_sharded(model)
        """Whether each process holds a part of every weight (`expunge.train.sharding`, `expunge.train.deepspeed`)."""
        copied = self.processes.world > 1 and not self.sharded
        # Gradients are averaged over processes, our losses are already divided by global counts.
        self.forward_model = self.accelerator.prepare_model(model) if copied else model
        self.token_budget = token_budget
        self.logits_chunk = None if zero3 else settings.logits_chunk
        self.obstacle = (
            large_logits(model, settings, count=token_budget)
            if zero3
            else obstacle(model, settings.logits_chunk, count=token_budget, together=self.sharded)
        )
        """Why this model's logits are not made in chunks although they are large; empty otherwise."""
        self.zero3 = Zero3(model, self.optimizers, settings, self.trained) if zero3 else None
        if self.zero3:
            self.forward_model = self.zero3.model
        self.step = 0
        self.epoch = 0
        self.ended = False
        """Whether the watch has ended the run before its last step."""
        self.stopping = False
        """Whether some process was asked to stop during the step just taken."""
        for mask in self.masks:
            mask.begin(total_steps=total_steps)
        self.use(data)

    def use(self, data: TrainingData) -> None:
        """Draw rows and tables from `data` from now on."""
        self.data = data
        self.splitter = Splitter(
            data.datasets,
            data.links,
            self.needs,
            budget=self.token_budget,
            rank=self.processes.rank,
            world=self.processes.world,
        )

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
            recompute_blocks(self.model)
        every = self.settings.save_steps or self.stream.steps_per_epoch
        monitor = Monitor(self.device, self.step, self.total_steps)
        event: dict[str, Any] = {}
        if self.obstacle:
            emit({"event": "warning", "text": f"all logits of a micro-batch are held at once: {self.obstacle}"})
        with between_steps() as stop:
            while self.step < self.total_steps and not self.ended:
                event = self.train_step(monitor, stop)
                emit(event)
                verdict = self.watch(self, event) if self.watch else Verdict()
                self.ended = verdict.stop
                last = self.ended or self.step == self.total_steps
                stopping = self.stopping if self.processes.world > 1 else stop.requested
                if checkpoints and (verdict.keep or stopping or self.step % every == 0 or last):
                    checkpoints.save(self, keep=verdict.keep)
                if stopping:
                    raise KeyboardInterrupt
        self.forward_model.eval()
        return event

    def train_step(self, monitor: Monitor, stop: Stop | None = None) -> dict[str, Any]:
        """Draw and apply one optimizer step; the event to log.

        Args:
            monitor: measures speed and memory.
            stop: whether this process was asked to stop; `stopping` then says whether any process was.
        """
        started = time.perf_counter()
        drawn = self.stream.next()
        self._enter(drawn.epoch)
        run = StepRun(self, self.splitter(drawn))
        if self.combine is None:
            run.backward(*run.roles)
        else:
            self.combine(run)
        norm = self._mask_and_clip()
        reduced = self._gather(run.losses, norm, asked=stop is not None and stop.requested)
        self._require_finite(reduced, run.losses)
        learning_rate = self.optimizers.learning_rate
        (self.zero3 or self.optimizers).step()
        for mask in self.masks:
            mask.after_step(self.trained)
            run.logged |= mask.logged()
        self.step += 1
        return {
            "event": "step",
            "step": self.step,
            "total": self.total_steps,
            "epoch": drawn.epoch,
            "lr": learning_rate,
            **reduced,
            **run.logged,
            "tokens": run.plan.tokens,
            **monitor.measure(self.step, run.plan.tokens, time.perf_counter() - started),
        }

    def _enter(self, epoch: int) -> None:
        """Take up the rows of a new epoch, where a method makes its own."""
        if self.supply and epoch != self.epoch and self.supply.due(epoch):
            self.forward_model.eval()
            self.use(self.supply.at(epoch, self.model))
            self.forward_model.train()
        self.epoch = epoch

    def _mask_and_clip(self) -> Tensor:
        """The gradient's norm before clipping, over the entries that may move."""
        for mask in self.masks:
            if not mask.after_clip:
                mask.on_gradient(self.trained)
        norm = self._clip()
        for mask in self.masks:
            if mask.after_clip:
                mask.on_gradient(self.trained)
        return norm

    def _clip(self) -> Tensor:
        if self.zero3:  # It clips when it steps.
            return self.zero3.norm
        parameters = [p for p in self.trained.values() if p.grad is not None]
        limit = self.settings.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
        return whole(norm)

    def _gather(self, losses: StepLosses, norm: Tensor, *, asked: bool) -> dict[str, float]:
        """The step's losses summed over processes, with one transfer to the host."""
        # Every process must send the same names, also one whose share held no live micro-batch of a role.
        names = sorted(losses.terms)
        asks = torch.tensor(float(asked), device=self.device)
        values = torch.stack([asks, losses.total.float(), *(losses.terms[name].float() for name in names)])
        if self.processes.world > 1:
            values = self.accelerator.reduce(values, reduction="sum")
        numbers = torch.cat([values, norm.float().reshape(1).to(values.device)]).tolist()
        # A signal reaches the processes at different moments; they must all stop after the same step.
        self.stopping = numbers[0] > 0
        return dict(zip(("loss", *names, "grad_norm"), numbers[1:], strict=True))

    def _require_finite(self, reduced: Mapping[str, float], losses: StepLosses) -> None:
        if all(np.isfinite(list(reduced.values()))):
            return
        bad = {name: value for name, value in reduced.items() if not np.isfinite(value)}
        broken = [mb for mb, loss in losses.micro if not torch.isfinite(loss)]
        # The sums are the same everywhere, so all processes come here, and only some may know of guilty rows.
        every = self.processes.gather((self._rows(broken), self._rows([mb for mb, _ in losses.micro])))
        rows = [row for own, _ in every for row in own] or [row for _, own in every for row in own]
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        raise StoppedError(
            f"step {self.step + 1}: {', '.join(f'{k} is {v}' for k, v in bad.items())} (rows: {shown})",
            hint="earlier checkpoints are kept; lower train.learning_rate, or look at these rows"
            + ("" if self.step else ", or at the starting model's weights: no step was taken yet"),
        )

    def _rows(self, micro_batches: Sequence[MicroBatch]) -> list[str]:
        """Role and row of everything in some micro-batches."""
        return [f"{mb.role} {self.data.datasets[mb.role].examples[row].row}" for mb in micro_batches for row in mb.rows]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights and the optimizers."""
        return {
            "step": self.step,
            "ended": self.ended,
            "watch": self.watch.state_dict() if self.watch else {},
            "stream": self.stream.state(),
            "combine": self.combine.state_dict() if self.combine else {},
            "masks": [mask.state_dict() for mask in self.masks],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`'s result; weights and optimizers are restored by the checkpoint itself."""
        self.step, self.ended = int(state["step"]), bool(state["ended"])
        if self.watch:
            self.watch.load_state_dict(state["watch"])
        self.stream.load(state["stream"])
        if self.combine:
            self.combine.load_state_dict(state["combine"])
        for mask, saved in zip(self.masks, state["masks"], strict=True):
            mask.load_state_dict(saved)
        self.epoch = self.stream.epoch
        if self.supply and self.epoch:
            self.use(self.supply.at(self.epoch, self.model))
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
