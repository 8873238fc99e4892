"""Decoding, greedy or sampled: prompts sorted by length, left-padded, one shared cache, finished rows dropped.

A sampled token is where a uniform number falls in the cumulated distribution, and the numbers of a prompt come from its
own seed alone: what shares its batch, and in which order, changes its draws only where rounding of the logits does.
A prompt that is sampled from several times goes through the model once in a batch, and its cache is copied.
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
from expunge.losses.logprobs import normalise
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
    logps: tuple[float, ...] = ()
    """Of sampled ones: log-probability of each, its end token included, under the model itself (temperature 1, nothing
    cut off), whatever it was sampled with."""


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
    temperature: float | Sequence[float],
    seeds: Sequence[int],
    max_new_tokens: int | list[int],
    end_ids: Collection[int],
    pad_id: int,
    top_p: float | Sequence[float] = 1.0,
    token_budget: int = 4096,
    phase: str = "generate",
    progress: Progress | None = None,
) -> Generations:
    """One draw from `softmax(z / T)`, token by token, after every prompt; greedy at temperature 0.

    Args:
        model: evaluation mode, on its device.
        prompts: token ids, none empty; equal ones that share a batch go through the model once.
        temperature: T >= 0, finite, for all or one per prompt; 0 is exactly `greedy`.
        seeds: one per prompt, >= 0; equal prompts with equal seeds get equal continuations in any batch.
        max_new_tokens: limit for all, or one per prompt.
        end_ids: ids that end an answer.
        pad_id: what fills the left; masked, so its value never matters.
        top_p: in [0, 1], for all or one per prompt; draws come from the fewest likeliest tokens whose probabilities at
            that temperature add up to it, 1: all of them, 0: the likeliest one.
        token_budget: padded prompt tokens of one batch, every copy of a prompt counted.
        phase: names the events.
        progress: see `greedy`.

    Raises:
        ValueError: a temperature below 0 or not finite, a top-p outside [0, 1], or another number of them or of seeds
            than of prompts.
        ModelError: logits that are not numbers.
    """
    temperatures, cuts = _each(temperature, prompts, "temperatures"), _each(top_p, prompts, "top-p values")
    if wrong := [value for value in temperatures if not 0 <= value < float("inf")]:
        raise ValueError(f"temperature must be finite and at least 0, found {wrong[0]}")
    if wrong := [value for value in cuts if not 0 <= value <= 1]:
        raise ValueError(f"top-p must lie in [0, 1], found {wrong[0]}")
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, found {len(seeds)}")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    sampler = _Sampler(seeds, limits, temperatures, cuts)
    made = _decode(
        model,
        prompts,
        limits,
        sampler,
        end_ids=end_ids,
        pad_id=pad_id,
        token_budget=token_budget,
        shared=True,
        phase=phase,
        progress=progress,
    )
    return made._replace(logps=tuple(sampler.logps.tolist()))


def _each(value: float | Sequence[float], prompts: list[list[int]], what: str) -> list[float]:
    """One value per prompt."""
    found = [float(value)] * len(prompts) if isinstance(value, int | float) else [float(each) for each in value]
    if len(found) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many {what}, found {len(found)}")
    return found


class _Sampler:
    """Draws the tokens of one batch after the other, and adds up their log-probabilities."""

    def __init__(self, seeds: Sequence[int], limits: list[int], temperatures: list[float], cuts: list[float]) -> None:
        self.seeds, self.limits = seeds, limits
        self.temperature = torch.tensor(temperatures, dtype=torch.float64)
        self.top_p = torch.tensor(cuts, dtype=torch.float64)
        self.logps = np.zeros(len(seeds))
        self.uniforms = torch.zeros(0, 0, dtype=torch.float64)
        self.place: dict[int, int] = {}

    def __call__(self, logits: Tensor, members: list[int], step: int) -> Tensor:
        if step == 0:
            self._begin(members)
        temperature = self.temperature[members].to(logits.device)
        greedy = temperature == 0
        if bool(greedy.all()):
            chosen = lowest_argmax(logits)
        else:
            uniform = self.uniforms[[self.place[member] for member in members], step].to(logits.device)
            top_p = self.top_p[members].to(logits.device)
            chosen = draw(logits, uniform, temperature=temperature.masked_fill(greedy, 1), top_p=top_p)
            chosen = torch.where(greedy, lowest_argmax(logits), chosen)
        self.logps[members] += normalise(logits, chosen).logp.double().cpu().numpy()
        return chosen

    def _begin(self, members: list[int]) -> None:
        """Only a batch's numbers are held: those of every continuation there is would take gigabytes."""
        self.place = {member: place for place, member in enumerate(members)}
        self.uniforms = torch.zeros(len(members), max(self.limits[member] for member in members), dtype=torch.float64)
        for member, place in self.place.items():
            limit = self.limits[member]
            whole = np.random.default_rng(self.seeds[member]).integers(_UNIFORM_STEPS, size=limit)
            self.uniforms[place, :limit] = torch.from_numpy(whole / _UNIFORM_STEPS)


def draw(
    logits: Tensor,  # (B, V), any float dtype
    uniform: Tensor,  # (B,) float64 in [0, 1 - 2^-52]
    *,
    temperature: float | Tensor,  # or (B,)
    top_p: float | Tensor = 1.0,  # or (B,)
) -> Tensor:  # (B,) int64
    """The token in whose share of `softmax(z / T)`, laid end to end by id, each uniform number falls.

    In float64, so that a vocabulary's rounding does not add up. A token of probability 0 is never chosen, nor, with
    top-p below 1, one beyond the fewest likeliest tokens whose probabilities add up to it (equal ones by their id).

    Raises:
        ModelError: logits that are not numbers.
    """
    wide = logits.double()
    scale = temperature[:, None] if isinstance(temperature, Tensor) else temperature
    mass = ((wide - wide.amax(-1, keepdim=True)) / scale).exp_()
    cut = top_p if isinstance(top_p, Tensor) else torch.full_like(uniform, top_p)
    if bool((cut < 1).any()):
        mass = _nucleus(mass, cut[:, None])
    total = mass.cumsum(-1)
    if not bool(torch.isfinite(total[:, -1]).all()):
        raise ModelError(
            "the model's logits are not finite numbers, so nothing can be sampled from them",
            hint="look at the model's weights; a run that diverged leaves such a model",
        )
    return torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True).squeeze(-1)


def _nucleus(mass: Tensor, top_p: Tensor) -> Tensor:
    """(B, V) without what lies beyond the fewest largest entries that make up a share `top_p` (B, 1) of each row."""
    ranked, order = mass.sort(stable=True, dim=-1, descending=True)
    before = ranked.cumsum(-1) - ranked
    keep = (before < top_p * ranked.sum(-1, keepdim=True)) | (top_p >= 1)
    # The first entry has nothing before it, but 0 < 0 is false where top-p is 0.
    keep[:, 0] = True
    return torch.zeros_like(mass).scatter(-1, order, torch.where(keep, ranked, 0))


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
    shared: bool = False,
    phase: str = "generate",
) -> Generations:
    outputs: list[Continuation] = [Continuation([], False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    tokens = done = 0
    while done < len(order):
        members = _take(order, done, prompts, token_budget)
        texts, most = [prompts[i] for i in members], [limits[i] for i in members]
        batch = _Batch(model, members, texts, most, pad_id, end_ids, shared=shared)
        for place, output in zip(members, batch.run(choose), strict=True):
            outputs[place] = output
        tokens += batch.tokens
        done += len(members)
        if progress:
            progress({"event": "phase", "name": phase, "done": done, "total": len(order)})
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
        *,
        shared: bool = False,
    ) -> None:
        self.model, self.places, self.limits = model, places, limits
        self.prompts, self.shared = prompts, shared
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
        members = [i for i, limit in enumerate(self.limits) if limit > 0]
        first, copies = self._first(members)
        self.ids, self.mask = self.ids[first], self.mask[first]
        cache, inputs = DynamicCache(config=self.model.config), self.ids
        position = self.mask.cumsum(-1).sub(1).clamp(min=0)
        step = 0
        while members:
            logits = self._next(inputs, position, cache)
            if step == 0 and copies is not None:
                logits, position, self.mask = logits[copies], position[copies], self.mask[copies]
                cache.batch_select_indices(copies)
            chosen = choose(logits, [self.places[i] for i in members], step)
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

    def _first(self, members: list[int]) -> tuple[Tensor, Tensor | None]:
        """The rows that go through the model first, and which of them each member is a copy of, where some are."""
        first: dict[tuple[int, ...], int] = {}
        for member in members:
            first.setdefault(tuple(self.prompts[member]), member)
        if not self.shared or len(first) == len(members):
            return torch.tensor(members, device=self.device, dtype=torch.long), None
        place = {prompt: number for number, prompt in enumerate(first)}
        copies = [place[tuple(self.prompts[member])] for member in members]
        return torch.tensor(list(first.values()), device=self.device), torch.tensor(copies, device=self.device)

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
