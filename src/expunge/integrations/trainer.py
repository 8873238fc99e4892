"""Unlearning inside `transformers.Trainer`, for those who stay with it: a `compute_loss_func` and its collator.

Trainer forwards one batch per call and, with accumulation, several of them per optimizer step. A method's terms have
denominators of their own (rows of the forget set, tokens of the retain set), counted over the whole step. So the labels
made here count per role where Trainer counts them (`num_items_in_batch`), and the loss divides by those counts: a step
is the engine's step, however it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset as TorchDataset

from expunge.config.load import load_recipe
from expunge.config.schema import Recipe
from expunge.data.collate import Batch, collate
from expunge.data.encode import Dataset
from expunge.data.prepare import template_of
from expunge.errors import UsageError
from expunge.methods.base import Context, Method, Needs, makes_first
from expunge.models.fingerprint import model_digest
from expunge.models.load import context_length, padding_id, pick_device, require_vocabulary, vocabulary_size
from expunge.models.processes import processes
from expunge.models.reference import ReferenceValues
from expunge.models.reference_table import ReferenceTable, reference_table
from expunge.models.score import Scored
from expunge.train.reduce import Counts, counts, term_loss
from expunge.train.start import freeze, prepare_for, select, start_model

LossFunc = Callable[..., Tensor]
_BUDGET = 2048
"""Padded tokens of one forward while tables are built."""


class Pair(NamedTuple):
    """What Trainer's data set holds at one place: indices into the roles' rows."""

    forget: int
    retain: int | None


class Pairs(TorchDataset[Pair]):
    """As many items as forget rows; over the epochs they bring every retain row before one comes again.

    Which retain row an item brings follows from its place and the epoch alone: processes and resumed runs agree.

    Args:
        forget: rows to forget.
        retain: rows to keep; 0 where the method reads none.
        seed: of the order of the retain rows.
    """

    def __init__(self, forget: int, retain: int, *, seed: int = 0) -> None:
        self.forget, self.retain, self.seed, self.epoch = forget, retain, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer's data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.forget

    def __getitem__(self, index: int) -> Pair:
        if not self.retain:
            return Pair(index, None)
        turn, place = divmod(self.epoch * self.forget + index, self.retain)
        return Pair(index, int(np.random.default_rng([self.seed, turn]).permutation(self.retain)[place]))


class StepCounts:
    """Tokens and rows of every role in an optimizer step; what Trainer takes for `num_items_in_batch`."""

    def __init__(self, own: Mapping[str, Counts]) -> None:
        self.own = dict(own)
        self._all: dict[str, Counts] = {}

    def __add__(self, other: StepCounts) -> StepCounts:
        return StepCounts({role: counts([self.own[role], other.own[role]]) for role in self.own})

    def __radd__(self, start: int) -> StepCounts:
        """Trainer adds the batches of a step with `sum`, which starts from 0."""
        return self

    def everywhere(self) -> dict[str, Counts]:
        """The counts over every process; all processes ask once in a step."""
        if not self._all:
            parts = processes().gather(self.own)
            self._all = {role: counts(part[role] for part in parts) for role in self.own}
        return self._all

    def to(self, device: Any) -> StepCounts:
        """Refused: Trainer would add roles up that have denominators of their own.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "Trainer wants to add the counts of several processes up, which mixes forget and retain rows",
            hint="set TrainingArguments(average_tokens_across_devices=False): the loss adds them up by role itself",
        )


class Labels:
    """The scored positions of a micro-batch by role; counts itself where Trainer counts `labels[..., 1:] != -100`."""

    def __init__(self, batches: Mapping[str, Batch]) -> None:
        self.batches = dict(batches)

    def __getitem__(self, positions: Any) -> Self:
        return self

    def ne(self, ignored: int) -> Self:
        """Itself: it holds scored positions alone."""
        return self

    def sum(self) -> StepCounts:
        """What this micro-batch adds to the step's counts."""
        return StepCounts(
            {
                role: Counts(tokens=len(batch.targets), rows=len(batch.rows), answers=int(batch.answer.sum()))
                for role, batch in self.batches.items()
            }
        )

    def to(self, device: Any, **options: Any) -> Labels:
        """The same on a device."""
        return Labels({role: batch.to(device) for role, batch in self.batches.items()})


class Collator:
    """Pairs to one forward pass: forget rows, then retain rows, right-padded, logits at scored positions only.

    Args:
        datasets: encoded rows by role.
        needs: the method's declaration.
        pad_id: fills the padding; its value never matters.
    """

    def __init__(self, datasets: Mapping[str, Dataset], needs: Needs, *, pad_id: int) -> None:
        self.datasets, self.needs, self.pad_id = datasets, needs, pad_id

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """`input_ids` and `logits_to_keep` (B, T) for the model, `labels` for the loss."""
        batches = {
            role: collate(
                self.datasets[role],
                [getattr(pair, role) for pair in pairs],
                pad_id=self.pad_id,
                positions=self.needs.positions_of(role),
                skip_first=self.needs.skip_first.get(role, 0),
            )
            for role in self.needs.roles
        }
        width = max(batch.input_ids.shape[1] for batch in batches.values())

        def joined(name: str, fill: float) -> Tensor:
            each = (getattr(batch, name) for batch in batches.values())
            return torch.cat([pad(part, (0, width - part.shape[1]), value=fill) for part in each])

        return {
            "input_ids": joined("input_ids", self.pad_id),
            "logits_to_keep": joined("predict_mask", False),
            "use_cache": False,
            "labels": Labels(batches),
        }


def loss_func(method: Method, tables: Mapping[str, ReferenceTable] | None = None) -> LossFunc:
    """A method as Trainer's `compute_loss_func`.

    `L = sum_k w_k l_k`, each term divided by its role's counts over the optimizer step; the gradients of a step's calls
    add up to the engine's.

    Args:
        method: as configured.
        tables: by role, what it reads of the starting model.

    Returns:
        `f(outputs, labels, num_items_in_batch) -> scalar`, to be given with a `Collator`.

    Raises:
        UsageError: the method needs more than a forward of forget and retain rows; when called, with labels that are
            not the collator's or without counts.
    """
    _require_simple(method)
    found = dict(tables or {})

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
        if not (isinstance(labels, Labels) and isinstance(num_items_in_batch, StepCounts)):
            raise UsageError(
                f"Trainer gave labels of {type(labels).__name__} and counts of {type(num_items_in_batch).__name__}",
                hint="give it the Collator of expunge.integrations.trainer, and one process per GPU",
            )
        step = num_items_in_batch.everywhere()
        total: Tensor = outputs.logits.new_zeros(())
        parts = outputs.logits.split([len(batch.targets) for batch in labels.batches.values()])
        for (role, batch), logits in zip(labels.batches.items(), parts, strict=True):
            rows = len(batch.rows)
            scored = Scored(logits, batch.targets, batch.row, rows, answer=batch.answer)
            ref = found[role].values(batch) if role in found else ReferenceValues()
            for term in method.losses(Context(role, scored, ref)).values():
                value = term_loss(term, scored_row=batch.row, num_rows=rows, counts=step[role], answer=batch.answer)
                total = total + term.weight * value
        # DDP averages gradients over processes; the counts are already those of all of them.
        return total * processes().world

    return loss


def trainer_parts(recipe: str | Path | Mapping[str, Any] | Recipe, *overrides: str) -> dict[str, Any]:
    """What `Trainer` is made of, besides its arguments: `Trainer(args=TrainingArguments(...), **trainer_parts(...))`.

    Args:
        recipe: as for `expunge.api.unlearn`, with `model`, `data` and `method`; how to train is for TrainingArguments
            to say.
        overrides: `key=value`.

    Returns:
        `model`, `processing_class`, `train_dataset`, `data_collator` and `compute_loss_func`.

    Raises:
        UsageError: a recipe with a `train` section or wrappers, or a method that needs the engine.
        ExpungeError: a model or rows that cannot be used.
    """
    given = load_recipe(recipe, overrides)
    if extra := [key for key in ("train", "wrappers") if given.given.get(key)]:
        raise UsageError(f"a recipe for Trainer has no {extra[0]}", hint="TrainingArguments say how to train")
    chosen, wrapped = select(given.recipe)
    method = wrapped.method
    if wrapped.named:
        raise UsageError(f"{method.name} brings the wrapper {wrapped.named[0]['name']}", hint="use `expunge unlearn`")
    _require_simple(method)
    torch.manual_seed(chosen.seed)
    tokenizer, model, _ = start_model(chosen, pick_device(chosen.device))
    template, needs, size = template_of(chosen.data, tokenizer), method.needs(), vocabulary_size(model)
    datasets = prepare_for(chosen, needs, template, context_length(model.config)).datasets
    for dataset in datasets.values():
        require_vocabulary(dataset, tokenizer, size=size)
    pad_id = padding_id(tokenizer, size=size)
    tables = _tables(model, datasets, needs, pad_id)
    freeze(model, [], method.trainable())
    retained = len(datasets["retain"].encoded) if "retain" in needs.roles else 0
    return {
        "model": model,
        "processing_class": tokenizer,
        "train_dataset": Pairs(len(datasets["forget"].encoded), retained, seed=chosen.seed),
        "data_collator": Collator(datasets, needs, pad_id=pad_id),
        "compute_loss_func": loss_func(method, tables),
    }


def _tables(model: Any, datasets: Mapping[str, Dataset], needs: Needs, pad_id: int) -> dict[str, ReferenceTable]:
    key = model_digest(model) if needs.references else ""
    return {
        role: reference_table(
            model,
            datasets[role],
            asked,
            model_key=key,
            pad_id=pad_id,
            positions=needs.positions_of(role),
            skip_first=needs.skip_first.get(role, 0),
            token_budget=_BUDGET,
        )
        for role, asked in needs.references.items()
        if asked
    }


def _require_simple(method: Method) -> None:
    """Refuse a method that a forward of forget and retain rows does not feed."""
    needs = method.needs()
    wants = {
        "rows of its own": bool(needs.linked) or method.refresh_every is not None,
        "something made before the first step": makes_first(method),
        "the output of a block": bool(needs.hidden),
        "sums over a step before its losses": needs.totals is not None,
        "every position of a padded batch": "all" in needs.positions.values(),
        "rows that are not forwarded": bool(needs.unscored),
        "a last change to the weights": type(method).finish is not Method.finish,
        "other rows than forget and retain": not {"forget"} <= set(needs.roles) <= {"forget", "retain"},
    }
    if reasons := [what for what, wanted in wants.items() if wanted]:
        raise UsageError(
            f"{method.name} needs {' and '.join(reasons)}, which Trainer has no place for",
            hint="use `expunge unlearn`, or a method on forget and retain rows such as npo, simnpo or eua",
        )
