"""Greedy decoding: prompts sorted by length, left-padded, one shared cache, finished rows dropped as they end."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from expunge.data.template import Template
from expunge.models.load import autocast

Progress = Callable[[dict[str, Any]], None]


class Greedy(NamedTuple):
    """One greedy continuation."""

    token: list[int]
    """Generated ids without the end token."""
    ended: bool
    """Whether an end token came within the limit."""


class Generations(NamedTuple):
    """Continuations in the order of the prompts, and what they cost."""

    outputs: list[Greedy]
    tokens: int
    """Padded tokens sent through the model: prompts and decoded positions."""


@torch.inference_mode()
def greedy(
    model: Any,
    prompts: list[list[int]],
    *,
    max_new_tokens: int | list[int],
    end_ids: Collection[int],
    pad_id: int,
    token_budget: int = 4096,
    progress: Progress | None = None,
) -> Generations:
    """Greedy decoding of every prompt; equal to decoding them one by one up to rounding.

    Args:
        model: evaluation mode, on its device.
        prompts: token ids, none empty.
        max_new_tokens: limit for all, or one per prompt.
        end_ids: ids that end an answer.
        pad_id: what fills the left; masked, so its value never matters.
        token_budget: padded prompt tokens of one batch.
        progress: called with `{"event": "phase", "name": "generate", "done", "total"}` in prompts.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    outputs: list[Greedy] = [Greedy([], False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    tokens = done = 0
    while done < len(order):
        members = _take(order, done, prompts, token_budget)
        batch = _Batch(model, [prompts[i] for i in members], [limits[i] for i in members], pad_id, end_ids)
        for place, output in zip(members, batch.run(), strict=True):
            outputs[place] = output
        tokens += batch.tokens
        done += len(members)
        if progress:
            progress({"event": "phase", "name": "generate", "done": done, "total": len(order)})
    return Generations(outputs, tokens)


def _take(order: list[int], start: int, prompts: list[list[int]], budget: int) -> list[int]:
    """The next prompts, ascending in length, whose padded size stays under the budget (at least one)."""
    stop = start + 1
    while stop < len(order) and (stop + 1 - start) * len(prompts[order[stop]]) <= budget:
        stop += 1
    return order[start:stop]


class _Batch:
    """One batch being decoded; rows leave as they end, so late steps are small."""

    def __init__(
        self, model: Any, prompts: list[list[int]], limits: list[int], pad_id: int, end_ids: Collection[int]
    ) -> None:
        self.model, self.limits = model, limits
        self.device = next(model.parameters()).device
        width = max(len(prompt) for prompt in prompts)
        rows = [[pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
        self.ids = torch.tensor(rows, device=self.device)
        self.mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device
        )
        self.end = torch.tensor(sorted(end_ids), device=self.device)
        self.produced: list[list[int]] = [[] for _ in prompts]
        self.ended = [False] * len(prompts)
        self.tokens = 0

    def run(self) -> list[Greedy]:
        alive = torch.tensor([i for i, limit in enumerate(self.limits) if limit > 0], device=self.device)
        self.ids, self.mask = self.ids[alive], self.mask[alive]
        cache, inputs = DynamicCache(config=self.model.config), self.ids
        position = self.mask.cumsum(-1).sub(1).clamp(min=0)
        while len(alive):
            chosen = self._next(inputs, position, cache)
            finished = torch.isin(chosen, self.end)
            members, values, ends = alive.tolist(), chosen.tolist(), finished.tolist()
            keep: list[int] = []
            for place, (member, value, end) in enumerate(zip(members, values, ends, strict=True)):
                if end:
                    self.ended[member] = True
                    continue
                self.produced[member].append(value)
                if len(self.produced[member]) < self.limits[member]:
                    keep.append(place)
            position = position[:, -1:] + 1
            if len(keep) < len(members):
                index = torch.tensor(keep, device=self.device, dtype=torch.long)
                alive, chosen, position, self.mask = alive[index], chosen[index], position[index], self.mask[index]
                if keep:
                    cache.batch_select_indices(index)
            inputs = chosen[:, None]
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(alive), 1)], -1)
        return [Greedy(token, ended) for token, ended in zip(self.produced, self.ended, strict=True)]

    def _next(self, inputs: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
        self.tokens += inputs.numel()
        with autocast(self.device):
            logits = self.model(
                input_ids=inputs,
                attention_mask=self.mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return lowest_argmax(logits)


def lowest_argmax(logits: Tensor) -> Tensor:
    """(B,) the lowest id among the largest logits of each row."""
    return (logits == logits.max(-1, keepdim=True).values).int().argmax(-1)


def end_ids(model: Any, template: Template) -> frozenset[int]:
    """Ids that end an answer: the template's and those the model's generation config names."""
    configured = model.generation_config.eos_token_id
    extra = configured if isinstance(configured, list) else [configured]
    return template.end_ids | {int(item) for item in extra if item is not None}
