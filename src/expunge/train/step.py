"""One optimizer step's losses: micro-batches forward and backward, all at once or role by role."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.collate import Batch, collate
from expunge.methods.base import Context
from expunge.models.load import autocast
from expunge.models.reference import ReferenceValues
from expunge.models.score import Scored, score
from expunge.train.microbatch import MicroBatch, Plan
from expunge.train.reduce import Counts, term_loss
from expunge.train.wrappers.base import Gradient

if TYPE_CHECKING:
    from expunge.train.engine import Engine


class StepLosses(NamedTuple):
    """What one process's share of some roles came to; each term reduced by global counts but not weighted."""

    total: Tensor  # ()
    terms: dict[str, Tensor]  # name -> ()
    micro: list[tuple[MicroBatch, Tensor]]  # the loss of each micro-batch, to name rows when one is not finite


class StepRun:
    """The forward and backward passes of one step, for the engine and for a combining rule (a `StepPass`).

    Args:
        engine: model, method, data and settings.
        plan: this process's share of the step.
    """

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine, self.plan = engine, plan
        self.roles = engine.needs.roles
        self.named: Mapping[str, nn.Parameter] = engine.trained
        self.step, self.total_steps = engine.step, engine.total_steps
        self.epoch, self.steps_per_epoch = plan.epoch, engine.stream.steps_per_epoch
        self.logged: dict[str, float] = {}
        self.losses = StepLosses(torch.zeros((), device=engine.device), {}, [])
        """Of every role where it was asked first, so at the weights the step began with."""
        self._seen: set[str] = set()
        self.totals = self._totals()

    def backward(self, *roles: str) -> StepLosses:
        """Forward and backward these roles' micro-batches; gradients accumulate in the parameters."""
        total = torch.zeros((), device=self.engine.device)
        terms: dict[str, Tensor] = {}
        micro: list[tuple[MicroBatch, Tensor]] = []
        accelerator = self.engine.accelerator
        batches = self.plan.of(*roles)
        for place, micro_batch in enumerate(batches):
            last = place == len(batches) - 1
            # A divided model adds its gradients up after each micro-batch: keeping whole ones would undo the division.
            every = last or self.engine.sharded
            with nullcontext() if every else accelerator.no_sync(self.engine.forward_model):
                loss, parts = self._losses(micro_batch)
                if not micro_batch.live:
                    loss = loss * 0.0
                if loss.requires_grad:
                    self._backward(loss * self.engine.processes.world, last=last)
            if micro_batch.live:
                micro.append((micro_batch, loss.detach()))
                total = total + loss.detach()
            for name, part in parts.items():
                # A process that only repeats a row for the others' sake still has to know the terms' names.
                value = part if micro_batch.live else torch.zeros_like(part)
                terms[name] = terms[name] + value if name in terms else value
        losses = StepLosses(total, terms, micro)
        if not self._seen.intersection(roles):
            self.losses = StepLosses(
                self.losses.total + total, self.losses.terms | terms, [*self.losses.micro, *losses.micro]
            )
        self._seen.update(roles)
        return losses

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        if self.engine.zero3:
            self.engine.zero3.backward(loss, last=last)
        else:
            torch.autograd.backward(loss)

    def gradient(self, *roles: str) -> Gradient:
        """See `StepPass.gradient`."""
        unknown = [role for role in roles if role not in self.roles]
        if unknown:
            raise ValueError(f"no role {unknown[0]!r} in this step, only {self.roles}")
        losses = self.backward(*roles)
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.named.items():
            tensors[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None
        names = sorted(losses.terms)
        values = torch.stack([losses.total.float(), *(losses.terms[name].float() for name in names)])
        if self.engine.processes.world > 1:
            values = self.engine.accelerator.reduce(values, reduction="sum")
        loss, *terms = values.tolist()
        return Gradient(tensors, dict(zip(names, terms, strict=True)), loss)

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """See `StepPass.set`."""
        for name, tensor in tensors.items():
            self.named[name].grad = tensor

    def log(self, name: str, value: float) -> None:
        """See `StepPass.log`."""
        self.logged[name] = float(value)

    def _totals(self) -> dict[str, float]:
        """`Method.totals` added up over the step and every process."""
        engine = self.engine
        if engine.needs.totals is None:
            return {}
        sums: dict[str, Tensor] = {}
        with torch.no_grad():
            for micro_batch in self.plan.micro_batches:
                context = self._context(
                    micro_batch.role, micro_batch.rows, micro_batch.linked, {}, forward=engine.needs.totals == "scored"
                )
                for name, value in engine.method.totals(context).items():
                    value = value.double() if micro_batch.live else torch.zeros_like(value, dtype=torch.float64)
                    sums[name] = sums[name] + value if name in sums else value
        names = sorted(sums)
        values = torch.stack([sums[name] for name in names])
        if engine.processes.world > 1:
            values = engine.accelerator.reduce(values, reduction="sum")
        return dict(zip(names, values.tolist(), strict=True))

    def _losses(self, micro_batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of a micro-batch's terms, and each term unweighted and detached."""
        context = self._context(micro_batch.role, micro_batch.rows, micro_batch.linked, self.totals)
        loss = torch.zeros((), device=self.engine.device)
        parts: dict[str, Tensor] = {}
        for name, term in self.engine.method.losses(context).items():
            over = context if term.dataset is None else context.linked[term.dataset]
            counts: Counts = self.plan.counts[over.role]
            value = term_loss(
                term,
                scored_row=over.scored.row,
                num_rows=over.scored.num_rows,
                counts=counts,
                answer=over.scored.answer,
            )
            loss = loss + term.weight * value
            parts[name] = value.detach()
        return loss, parts

    def _context(
        self,
        name: str,
        rows: list[int],
        linked: Mapping[str, list[int]],
        totals: Mapping[str, float],
        *,
        forward: bool = True,
    ) -> Context:
        engine, data = self.engine, self.engine.data
        batch: Batch = collate(
            data.datasets[name],
            rows,
            pad_id=data.pad_id,
            positions=engine.needs.positions_of(name),
            skip_first=engine.needs.skip_first.get(name, 0),
        ).to(engine.device)
        table = data.tables.get(name)
        return Context(
            role=name,
            scores=self._scored(name, batch) if forward and name not in engine.needs.unscored else None,
            ref=table.values(batch) if table else ReferenceValues(),
            linked={other: self._context(other, own, {}, totals, forward=forward) for other, own in linked.items()},
            totals=totals,
            constants=data.constants,
            epoch=self.epoch,
            progress=self.step / self.total_steps,
        )

    def _scored(self, name: str, batch: Batch) -> Scored:
        needs = self.engine.needs
        with autocast(self.engine.device):
            return score(
                self.engine.forward_model,
                batch,
                hidden=needs.hidden.get(name),
                # Gradients are synchronised at the end of a whole forward, so only a lone process may cut it short.
                truncate=needs.truncate and self.engine.processes.world == 1,
                logits_chunk=self.engine.logits_chunk,
            )
