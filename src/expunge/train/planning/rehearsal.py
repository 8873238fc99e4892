"""A step of a run without its weights: the engine itself, on shapes, with every byte and product counted.

The step that is rehearsed is the run's own (`expunge.train.engine`), with its method, wrappers, adapters, optimizer and
chunked logits, on the micro-batches of the run that need most.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from expunge.config.schema import ModelSection, Recipe
from expunge.data.collate import collate, pack
from expunge.data.prepare import Prepared
from expunge.data.stream import PairedStream
from expunge.data.template import Template
from expunge.losses.place import acting_as
from expunge.methods.base import Needs
from expunge.models.adapters import attach
from expunge.models.blocks import blocks, recompute_blocks
from expunge.models.chunks import chunk_of
from expunge.models.head import Projected, frozen_head
from expunge.models.load import autocast, context_length, load_config
from expunge.models.reference import Reference
from expunge.models.score import score
from expunge.models.scratch import new_model
from expunge.train.engine import Engine, TrainingData
from expunge.train.microbatch import MicroBatch, Plan, Splitter
from expunge.train.monitor import Monitor
from expunge.train.planning.quantised import quantise
from expunge.train.planning.shadow import GRADIENTS, OPTIMIZER, Ledger
from expunge.train.planning.stand_ins import Alone, Blanks, Likelihood, blank_table
from expunge.train.planning.stopwatch import Operations
from expunge.train.start import freeze
from expunge.train.workshop import RunWorkshop
from expunge.train.wrappers.select import Wrapped

LOOKED_THROUGH = 256
"""Steps of a run among which the largest micro-batches are looked for."""

_ASKS_FOR_NUMBERS = (RuntimeError, IndexError, TypeError, ValueError, KeyError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Case:
    """What is rehearsed."""

    recipe: Recipe
    """With the settings its method decides."""
    wrapped: Wrapped
    tokenizer: Any
    template: Template
    prepared: Prepared
    """With stand-ins for rows a method would make."""
    stream: Callable[[], PairedStream]
    """The run's order of rows, from its beginning."""
    token_budget: int
    pad_id: int
    kind: str
    """Of the planned device: `cpu`, `cuda`, `mps`."""
    world: int = 1
    """Processes."""

    @property
    def needs(self) -> Needs:
        """What the method asks for."""
        return self.wrapped.method.needs()


class Rehearsal(NamedTuple):
    """What was counted, on one process that holds the whole model."""

    trained: int
    """Numbers that are trained."""
    parameters: int
    """Numbers of the whole model; a packed weight counts by its bytes."""
    largest_block: int
    """Bytes of the largest block's weights."""
    outside_blocks: int
    """Bytes of the weights in no block: embeddings, head, last norm."""
    packed_state: int
    """Bytes of an 8-bit optimizer's state; its kernels cannot be rehearsed, so `step` and `held` lack it."""
    loaded: int
    """Bytes of the weights as loaded."""
    step: Counter[str]
    """Bytes of a training step at its peak, by what they hold."""
    held: Counter[str]
    """Bytes between two steps, optimizer state included."""
    table: Counter[str]
    """Bytes of the forward pass that asks the starting model, at its peak; empty where nothing is asked."""
    flops: float
    """Of the rehearsed micro-batches, forward and backward."""
    operations: Operations
    """Of the rehearsed step."""
    asking: tuple[tuple[Operations, float], ...]
    """Of asking the starting model about one pack of rows of each dataset; in how many such packs all of them are."""
    largest: int
    """Padded tokens of the largest micro-batch."""
    share: float
    """Arithmetic of a step on one process, on average, in multiples of the rehearsed one's."""
    real: float
    """Real tokens of a step on all processes, on average."""
    plain: bool
    """Whether a likelihood stood in for the method's losses: they read numbers that only a run can make."""
    unwrapped: tuple[str, ...]
    """Wrappers left out, for the same reason."""


def rehearse(case: Case) -> Rehearsal:
    """Carry a step out on shapes; it finds the optimizers' state in place, as every step but the first does.

    Raises:
        ExpungeError: what the run would refuse before its first step.
    """
    *attempts, last = [(wrapped, plain) for wrapped in _either(case.wrapped.named) for plain in (False, True)]
    for wrapped, plain in attempts:
        with suppress(*_ASKS_FOR_NUMBERS), _unlogged():
            return _Stage(case).play(wrapped=wrapped, plain=plain)
    return _Stage(case).play(wrapped=last[0], plain=last[1])


def _either(wrappers: Sequence[Any]) -> tuple[bool, ...]:
    return (True, False) if wrappers else (True,)


@contextmanager
def _unlogged() -> Iterator[None]:
    """PyTorch prints a traceback of every operation on shapes that fails, also where the failure is caught."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def shaped_model(section: ModelSection, tokenizer: Any, *, seed: int) -> Any:
    """The starting model as a run loads it, adapters and packed weights included, on the `meta` device."""
    with torch.device("meta"):
        model = _plain_model(section, tokenizer, seed=seed).eval()
        if section.use_peft:
            attach(model, section, seed=seed)
        if section.load_in_4bit or section.load_in_8bit:
            quantise(model, bits=4 if section.load_in_4bit else 8)
    return model


def _plain_model(section: ModelSection, tokenizer: Any, *, seed: int) -> Any:
    if section.from_scratch is not None:
        return new_model(section.from_scratch, tokenizer, seed=seed, attn_implementation=section.attn_implementation)
    config = load_config(
        str(section.model_name_or_path),
        revision=section.model_revision,
        trust_remote_code=section.trust_remote_code,
    )
    return AutoModelForCausalLM.from_config(
        config,
        dtype=torch.float32,
        attn_implementation=section.attn_implementation,
        trust_remote_code=section.trust_remote_code,
    )


class _Stage:
    """A model of shapes, and the ledger of what is done with it."""

    def __init__(self, case: Case) -> None:
        self.case, self.ledger = case, Ledger()
        self.asking: list[tuple[Operations, float]] = []
        self.model = shaped_model(case.recipe.model, case.tokenizer, seed=case.recipe.seed)
        self.ledger.adopt(self.model)
        self.ledger.vocab = len(self.model.get_output_embeddings().weight)

    def play(self, *, wrapped: bool, plain: bool) -> Rehearsal:
        loaded = self.ledger.live.total()
        with self.ledger, acting_as(self.case.kind):
            steps = _steps(self.case, self.model)
            table = self._asked()
            engine = self._engine(wrapped=wrapped, plain=plain)
            self._take_up_state(engine, steps)
            held = Counter(self.ledger.live)
            self.ledger.restart()
            if steps.several and engine.combine is None:
                self._give_gradients(engine)
            self._train(engine, steps.largest)
        named = self.case.wrapped.named
        return Rehearsal(
            trained=sum(parameter.numel() for parameter in engine.trained.values()),
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            largest_block=max(map(_bytes, blocks(self.model))),
            outside_blocks=loaded - sum(map(_bytes, blocks(self.model))),
            packed_state=_packed_state(self.case.recipe, engine),
            loaded=loaded,
            step=self.ledger.peak,
            held=held,
            table=table,
            flops=self.ledger.flops,
            operations=self.ledger.operations,
            asking=tuple(self.asking),
            largest=max(_padded(self.case.prepared, each) for each in steps.largest.micro_batches),
            share=steps.share,
            real=steps.real,
            plain=plain,
            unwrapped=() if wrapped else tuple(str(item["name"]) for item in named),
        )

    def _take_up_state(self, engine: Engine, steps: _Steps) -> None:
        """What optimizers, rules and masks keep from the first step on."""
        if engine.combine is not None or engine.masks:
            self._train(engine, steps.smallest)
            return
        self._give_gradients(engine)
        engine.optimizers.step()

    def _give_gradients(self, engine: Engine) -> None:
        """Gradients as an earlier micro-batch leaves them."""
        for parameter in engine.trained.values():
            parameter.grad = torch.zeros_like(parameter)
            self.ledger.book(parameter.grad, GRADIENTS)

    def _train(self, engine: Engine, carried_out: Plan) -> None:
        # Whatever rows the step draws.
        engine.splitter = lambda drawn: carried_out  # type: ignore[assignment]
        engine.train_step(Monitor(engine.device, 0, engine.total_steps))

    @torch.no_grad()
    def _asked(self) -> Counter[str]:
        """The starting model is asked about the rows of every dataset, packed under the same budget."""
        most: Counter[str] = Counter()
        for name, items in self.case.needs.references.items():
            dataset = self.case.prepared.datasets[name]
            packs = pack(dataset.lengths(), self.case.token_budget)
            self.ledger.restart()
            rows = max(packs, key=lambda rows: int(dataset.supervised()[rows].sum()))
            self._ask(name, rows, items)
            scored = dataset.supervised()
            work = [_work(self.case, self.model, {name: each}, {name: scored}) for each in (rows, *packs)]
            self.asking.append((self.ledger.operations, sum(work[1:]) / work[0]))
            most = max(most, self.ledger.peak, key=Counter.total)
        return most

    def _ask(self, name: str, rows: list[int], items: tuple[Reference, ...]) -> None:
        needs = self.case.needs
        batch = collate(
            self.case.prepared.datasets[name],
            rows,
            pad_id=self.case.pad_id,
            positions=needs.positions_of(name),
            skip_first=needs.skip_first.get(name, 0),
        )
        layer = next((item.layer for item in items if item.kind == "block"), None)
        with autocast(batch.input_ids.device):
            scored = score(self.model, batch, hidden=layer)
        for item in items:
            if item.kind == "hidden":
                # Only the first pack of all is examined so: that needs memory, but next to no time.
                asked, self.ledger.operations = self.ledger.operations, Operations()
                head = frozen_head(self.model)
                again = Projected(scored.logps.new_empty(len(batch.targets), head.weight.shape[1]), head)
                scored.per_position(lambda logits, _, again: torch.isclose(again, logits).all(-1), again)
                self.ledger.operations = asked
            else:
                # Margins are computed in chunks as well, and need no more than log-probabilities do.
                _ = scored.logps

    def _engine(self, *, wrapped: bool, plain: bool) -> Engine:
        case, model = self.case, self.model
        method, rules = case.wrapped.method, case.wrapped
        workshop = self._workshop()
        combine = rules.combine.build(workshop, model) if rules.combine and wrapped else None
        masks = [mask.build(workshop, model) for mask in rules.masks] if wrapped else []
        freeze(model, masks, method.trainable())
        acting: Any = Likelihood(method) if plain else method
        alone: Any = Alone()
        engine = Engine(
            model,
            acting,
            self._data(),
            _without_packed_state(case.recipe).train,
            stream=case.stream(),
            total_steps=2,
            token_budget=case.token_budget,
            combine=combine,
            masks=masks,
            accelerator=alone,
        )
        for parameter in engine.trained.values():
            parameter.register_post_accumulate_grad_hook(self._book_gradient)
        for optimizer in engine.optimizers.each:
            optimizer.register_step_pre_hook(lambda *_: self.ledger.label(OPTIMIZER))
            optimizer.register_step_post_hook(lambda *_: self.ledger.label())
        model.train()
        if case.recipe.train.gradient_checkpointing:
            recompute_blocks(model)
        return engine

    def _workshop(self) -> RunWorkshop:
        case = self.case
        return RunWorkshop(
            model=self.model,
            tokenizer=case.tokenizer,
            template=case.template,
            datasets=case.prepared.datasets,
            data=case.recipe.data,
            train=case.recipe.train,
            seed=case.recipe.seed,
            device=torch.device("cpu"),
            pad_id=case.pad_id,
            token_budget=case.token_budget,
            context=context_length(self.model.config),
        )

    def _data(self) -> TrainingData:
        case, needs = self.case, self.case.needs
        tables = {
            name: blank_table(
                dataset,
                needs.references.get(name, ()),
                self.model,
                positions=needs.positions_of(name),
                skip_first=needs.skip_first.get(name, 0),
            )
            for name, dataset in case.prepared.datasets.items()
        }
        return TrainingData(case.prepared.datasets, case.prepared.links, tables, case.pad_id, Blanks())

    def _book_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.ledger.book(parameter.grad, GRADIENTS)


class _Steps(NamedTuple):
    """What the rehearsed steps carry out."""

    smallest: Plan
    """One row of each role."""
    largest: Plan
    """The largest micro-batch of each role."""
    several: bool
    """Whether steps have more than one micro-batch, so that most find gradients in place."""
    share: float
    """Arithmetic of one of the run's own steps on one process, on average, in multiples of that of `largest`."""
    real: float
    """Real tokens of such a step on all processes."""


def _steps(case: Case, model: Any) -> _Steps:
    needs, stream = case.needs, case.stream()
    splitter = Splitter(case.prepared.datasets, case.prepared.links, needs, budget=case.token_budget, world=case.world)
    count = min(LOOKED_THROUGH, stream.steps_per_epoch, case.recipe.train.max_steps or LOOKED_THROUGH)
    plans = [splitter(stream.next()) for _ in range(count)]
    size = partial(_size, case, splitter, model)
    own = [[each for plan in plans for each in plan.of(role)] for role in needs.roles]
    largest = [max(each, key=size) for each in own if each]
    small = [_one_row(each) for each in largest]
    several = max(len(plan.micro_batches) for plan in plans) > 1
    work = [[_work(case, model, _rows(each), splitter.scored) for each in plan.micro_batches] for plan in plans]
    share = sum(map(sum, work)) / len(plans) / sum(_work(case, model, _rows(each), splitter.scored) for each in largest)
    real = sum(plan.tokens for plan in plans) / len(plans)
    first = plans[0]
    return _Steps(first._replace(micro_batches=small), first._replace(micro_batches=largest), several, share, real)


def _one_row(batch: MicroBatch) -> MicroBatch:
    return batch._replace(rows=batch.rows[:1], linked={name: rows[:1] for name, rows in batch.linked.items()})


def _size(case: Case, splitter: Splitter, model: Any, batch: MicroBatch) -> float:
    """What of two micro-batches needs more: numbers kept of padded tokens, and logits of scored ones."""
    text, vocab = model.config.get_text_config(), len(model.get_output_embeddings().weight)
    kept = text.num_hidden_layers * text.hidden_size * (1 if case.recipe.train.gradient_checkpointing else 16)
    total = 0.0
    for name, rows in _rows(batch).items():
        scored = int(splitter.scored[name][rows].sum())
        chunk = chunk_of(case.recipe.train.logits_chunk, count=scored, vocab=vocab, device=torch.device("cpu"))
        total += kept * _padded_rows(case.prepared, name, rows) + 2 * vocab * (chunk or scored)
    return total


def _padded(prepared: Prepared, batch: MicroBatch) -> int:
    """Tokens of a micro-batch with its linked rows, each dataset padded to its own longest row."""
    return sum(_padded_rows(prepared, name, rows) for name, rows in _rows(batch).items())


def _work(case: Case, model: Any, rows: Mapping[str, list[int]], scored: Mapping[str, np.ndarray]) -> float:
    """Matrix products over rows of datasets: padded tokens through the blocks, scored ones through the head."""
    head = model.get_output_embeddings().weight.numel()
    inner = sum(parameter.numel() for block in blocks(model) for parameter in block.parameters())
    return float(
        sum(
            inner * _padded_rows(case.prepared, name, own) + head * int(scored[name][own].sum())
            for name, own in rows.items()
        )
    )


def _rows(batch: MicroBatch) -> dict[str, list[int]]:
    """Dataset -> rows, those that travel with them included."""
    return {batch.role: batch.rows, **batch.linked}


def _padded_rows(prepared: Prepared, name: str, rows: list[int]) -> int:
    return len(rows) * int(prepared.datasets[name].lengths()[rows].max())


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _packed_state(recipe: Recipe, engine: Engine) -> int:
    """Two numbers per weight in 8 bits with a float32 scale for every 256; small parameters keep theirs in float32."""
    if "8bit" not in recipe.train.optim:
        return 0
    sizes = [parameter.numel() for parameter in engine.trained.values()]
    return sum(2 * (size + 4 * -(-size // 256)) if size >= 4096 else 8 * size for size in sizes)


def _without_packed_state(recipe: Recipe) -> Recipe:
    """8-bit optimizers run on the device alone; their state is added to what is counted."""
    if "8bit" not in recipe.train.optim:
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"optim": "sgd"})})
