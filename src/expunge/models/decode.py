"""Decoding, greedy or sampled: prompts sorted by length, left-padded, one shared cache, finished rows dropped.

A sampled token is where a uniform number falls in the cumulated distribution, and the numbers of a prompt come from its
own seed alone: what shares its batch, and in which order, changes its draws only where rounding of the logits does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from expunge.data.template import Template
from expunge.errors import ModelError
from expunge.models.load import autocast

Progress = Callable[[dict[str, Any]], None]
Choose = Callable[[Tensor, list[int], int], Tensor]
"""Logits (B, V), the prompts they belong to, and how many tokens those have so far -> (B,) next ids."""

_UNIFORM_STEPS = 1 << 52
"""Uniform numbers are multiples of 2^-52, so the largest times a total stays below the total in float64."""


class Continuation(NamedTuple):
    """What follows one prompt."""

    token: list[int]
    """Generated ids without the end token."""
    ended: bool
    """Whether an end token came within the limit."""


class Generations(NamedTuple):
    """Continuations in the order of the prompts, and what they cost."""

    outputs: list[Continuation]
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
    return _decode(
        model,
        prompts,
        limits,
        _likeliest,
        end_ids=end_ids,
        pad_id=pad_id,
        token_budget=token_budget,
        progress=progress,
    )


@torch.inference_mode()
def sample(
    model: Any,
    prompts: list[list[int]],
    *,
    temperature: float,
    seeds: Sequence[int],
    max_new_tokens: int | list[int],
    end_ids: Collection[int],
    pad_id: int,
    token_budget: int = 4096,
    progress: Progress | None = None,
) -> Generations:
    """One draw from `softmax(z / T)`, token by token, after every prompt; greedy at temperature 0.

    Args:
        model: evaluation mode, on its device.
        prompts: token ids, none empty.
        temperature: T >= 0, finite; 0 is exactly `greedy`.
        seeds: one per prompt, >= 0; equal prompts with equal seeds get equal continuations in any batch.
        max_new_tokens: limit for all, or one per prompt.
        end_ids: ids that end an answer.
        pad_id: what fills the left; masked, so its value never matters.
        token_budget: padded prompt tokens of one batch.
        progress: see `greedy`.

    Raises:
        ValueError: a temperature below 0 or not finite, or another number of seeds than of prompts.
        ModelError: logits that are not numbers.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be finite and at least 0, found {temperature}")
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, found {len(seeds)}")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    uniforms = torch.zeros(len(prompts), max(limits, default=0), dtype=torch.float64)
    for row, seed in enumerate(seeds):
        whole = np.random.default_rng(seed).integers(_UNIFORM_STEPS, size=limits[row])
        uniforms[row, : limits[row]] = torch.from_numpy(whole / _UNIFORM_STEPS)

    def drawn(logits: Tensor, members: list[int], step: int) -> Tensor:
        return draw(logits, uniforms[members, step].to(logits.device), temperature=temperature)

    return _decode(
        model,
        prompts,
        limits,
        drawn if temperature > 0 else _likeliest,
        end_ids=end_ids,
        pad_id=pad_id,
        token_budget=token_budget,
        progress=progress,
    )


def draw(
    logits: Tensor,  # (B, V), any float dtype
    uniform: Tensor,  # (B,) float64 in [0, 1 - 2^-52]
    *,
    temperature: float,
) -> Tensor:  # (B,) int64
    """The token in whose share of `softmax(z / T)`, laid end to end by id, each uniform number falls.

    In float64, so that a vocabulary's rounding does not add up. A token of probability 0 is never chosen.

    Raises:
        ModelError: logits that are not numbers.
    """
    wide = logits.double()
    total = ((wide - wide.amax(-1, keepdim=True)) / temperature).exp_().cumsum(-1)
    if not bool(torch.isfinite(total[:, -1]).all()):
        raise ModelError(
            "the model's logits are not finite numbers, so nothing can be sampled from them",
            hint="look at the model's weights; a run that diverged leaves such a model",
        )
    return torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True).squeeze(-1)


def _decode(
    model: Any,
    prompts: list[list[int]],
    limits: list[int],
    choose: Choose,
    *,
    end_ids: Collection[int],
    pad_id: int,
    token_budget: int,
    progress: Progress | None,
) -> Generations:
    outputs: list[Continuation] = [Continuation([], False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    tokens = done = 0
    while done < len(order):
        members = _take(order, done, prompts, token_budget)
        batch = _Batch(model, members, [prompts[i] for i in members], [limits[i] for i in members], pad_id, end_ids)
        for place, output in zip(members, batch.run(choose), strict=True):
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
        self,
        model: Any,
        places: list[int],
        prompts: list[list[int]],
        limits: list[int],
        pad_id: int,
        end_ids: Collection[int],
    ) -> None:
        self.model, self.places, self.limits = model, places, limits
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

    def run(self, choose: Choose) -> list[Continuation]:
        alive = torch.tensor(
            [i for i, limit in enumerate(self.limits) if limit > 0], device=self.device, dtype=torch.long
        )
        self.ids, self.mask = self.ids[alive], self.mask[alive]
        cache, inputs = DynamicCache(config=self.model.config), self.ids
        position = self.mask.cumsum(-1).sub(1).clamp(min=0)
        members: list[int] = alive.tolist()
        step = 0
        while members:
            chosen = choose(self._next(inputs, position, cache), [self.places[i] for i in members], step)
            values, ends = chosen.tolist(), torch.isin(chosen, self.end).tolist()
            keep: list[int] = []
            for place, (member, value, end) in enumerate(zip(members, values, ends, strict=True)):
                if end:
                    self.ended[member] = True
                    continue
                self.produced[member].append(value)
                if len(self.produced[member]) < self.limits[member]:
                    keep.append(place)
            position = position[:, -1:] + 1
            step += 1
            if len(keep) < len(members):
                members = [members[place] for place in keep]
                index = torch.tensor(keep, device=self.device, dtype=torch.long)
                chosen, position, self.mask = chosen[index], position[index], self.mask[index]
                if keep:
                    cache.batch_select_indices(index)
            inputs = chosen[:, None]
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(members), 1)], -1)
        return [Continuation(token, ended) for token, ended in zip(self.produced, self.ended, strict=True)]

    def _next(self, inputs: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
        self.tokens += inputs.numel()
        with autocast(self.device):
            logits: Tensor = self.model(
                input_ids=inputs,
                attention_mask=self.mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return logits


def _likeliest(logits: Tensor, members: list[int], step: int) -> Tensor:
    return lowest_argmax(logits)


def lowest_argmax(logits: Tensor) -> Tensor:
    """(B,) the lowest id among the largest logits of each row."""
    return (logits == logits.max(-1, keepdim=True).values).int().argmax(-1)


def end_ids(model: Any, template: Template) -> frozenset[int]:
    """Ids that end an answer: the template's and those the model's generation config names."""
    configured = model.generation_config.eos_token_id
    extra = configured if isinstance(configured, list) else [configured]
    return template.end_ids | {int(item) for item in extra if item is not None}
