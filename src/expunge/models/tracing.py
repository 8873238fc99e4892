"""Causal tracing: where in a model the answer to a question about a subject is recalled.

The subject's embeddings are corrupted with noise, and parts of the clean run are put back into the corrupted one:
where that brings the answer's first token back, the fact passes through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.encode import Dataset
from expunge.errors import DataError, UsageError
from expunge.models.blocks import blocks

Kind = Literal["block", "mlp", "self_attn"]
_NAMES = {"mlp": ("mlp", "feed_forward", "ffn"), "self_attn": ("self_attn", "attn", "attention", "self_attention")}


class Fact(NamedTuple):
    """One question with its subject marked, and the token its answer begins with."""

    prompt: tuple[int, ...]
    """Token ids up to the answer."""
    subject: tuple[int, int]
    """First token of the subject and the one after its last, in the prompt."""
    answer: int
    """First token id of the answer."""


@dataclass(frozen=True)
class Trace:
    """Probabilities of one answer's first token."""

    clean: float
    """p*, of the undisturbed prompt."""
    corrupted: float
    """p_c, mean over the corrupted copies."""
    restored: Tensor  # (tokens, layers) float64 on the CPU, mean over the copies with that state put back

    @property
    def effects(self) -> Tensor:
        """(tokens, layers) indirect effects `restored - corrupted`."""
        return self.restored - self.corrupted


@dataclass(frozen=True)
class Located:
    """Where facts were found."""

    effects: tuple[float, ...]
    """Per layer: the indirect effect of the best token, averaged over the facts."""
    facts: int
    """How many were traced."""

    def top(self, count: int) -> tuple[int, ...]:
        """The layers with the largest effects, ascending; of equal ones the lower."""
        return tuple(sorted(sorted(range(len(self.effects)), key=lambda layer: (-self.effects[layer], layer))[:count]))


def facts_of(dataset: Dataset, tokenizer: Any) -> list[Fact]:
    """The rows whose prompt names their subject: the column `subject`, else the row's `group`, where it is found.

    Args:
        dataset: encoded conversations.
        tokenizer: turns the prompts back into text.

    Returns:
        One fact per such row, in row order; other rows are left out.
    """
    facts = []
    for example, item in zip(dataset.examples, dataset.encoded, strict=True):
        name = example.extra.get("subject") or example.group
        first = int(item.supervised.argmax())
        prompt = tuple(int(token) for token in item.input_ids[:first])
        span = subject_span(prompt, str(name), tokenizer) if name and prompt else None
        if span is not None:
            facts.append(Fact(prompt, span, int(item.input_ids[first])))
    return facts


def subject_span(prompt: Sequence[int], subject: str, tokenizer: Any) -> tuple[int, int] | None:
    """The tokens of the last place where `subject` stands in a prompt; None where it does not.

    Args:
        prompt: token ids.
        subject: as it is written there.
        tokenizer: a Hugging Face one.
    """
    ends = [
        len(tokenizer.decode(list(prompt[: count + 1]), clean_up_tokenization_spaces=False))
        for count in range(len(prompt))
    ]
    start = tokenizer.decode(list(prompt), clean_up_tokenization_spaces=False).rfind(subject) if subject else -1
    if start < 0:
        return None
    first = next(place for place, end in enumerate(ends) if end > start)
    last = next(place for place, end in enumerate(ends) if end >= start + len(subject))
    return first, last + 1


def noise_scale(model: Any, facts: Sequence[Fact], *, factor: float = 3.0) -> float:
    """`factor` times the standard deviation of all entries of all subjects' token embeddings."""
    tokens = [token for fact in facts for token in fact.prompt[slice(*fact.subject)]]
    with torch.no_grad():
        embedded = model.get_input_embeddings()(torch.tensor([tokens], device=_device(model)))
    return factor * float(embedded.double().std())


@torch.no_grad()
def trace(
    model: Any,
    fact: Fact,
    *,
    noise: float,
    kind: Kind = "block",
    window: int = 10,
    samples: int = 10,
    seed: int = 1,
    token_budget: int = 2048,
) -> Trace:
    """Restore every (token, layer) of a corrupted run, one at a time.

    Args:
        model: a causal LM in evaluation mode.
        fact: what is asked.
        noise: standard deviation of what is added to the subject's embeddings (`noise_scale`); 0 corrupts nothing.
        kind: what is restored at a layer: the block's output, or the outputs of the `mlp` or `self_attn` modules in a
            window of layers.
        window: layers of that window, centred on the layer and cut at the ends; a block goes alone.
        samples: corrupted copies, the same noise for every state.
        seed: of the noise.
        token_budget: tokens of one forward pass.

    Raises:
        UsageError: the model's blocks have no such module.

    Source:
        Meng et al., Locating and Editing Factual Associations in GPT, arXiv 2202.05262; used by Agrawal & Huang,
        arXiv 2504.12996, with windows of 10.
    """
    bench = _Bench(model, fact, noise=noise, samples=samples, seed=seed, token_budget=token_budget)
    tokens, layers = len(fact.prompt), len(blocks(model))
    restored = torch.empty(tokens, layers, dtype=torch.float64)
    for layer in range(layers):
        modules = [part(model, each, kind) for each in _window(layer, layers, 1 if kind == "block" else window)]
        restored[:, layer] = bench.restoring(modules, [[token] for token in range(tokens)])
    undisturbed, *disturbed = bench.unrestored().tolist()
    return Trace(undisturbed, sum(disturbed) / samples, restored)


@torch.no_grad()
def restored_probability(
    model: Any,
    fact: Fact,
    *,
    tokens: Sequence[int],
    layers: Sequence[int],
    noise: float,
    kind: Kind = "block",
    samples: int = 10,
    seed: int = 1,
    token_budget: int = 2048,
) -> float:
    """The answer's probability with several tokens of several layers restored at once; arguments as in `trace`."""
    bench = _Bench(model, fact, noise=noise, samples=samples, seed=seed, token_budget=token_budget)
    return float(bench.restoring([part(model, layer, kind) for layer in layers], [list(tokens)]))


@torch.no_grad()
def locate(
    model: Any,
    facts: Sequence[Fact],
    *,
    kind: Kind = "mlp",
    window: int = 10,
    noise: float = 3.0,
    samples: int = 10,
    limit: int | None = None,
    seed: int = 1,
    token_budget: int = 2048,
) -> Located:
    """The indirect effect of each layer, over the facts whose answer the model would begin greedily.

    Args:
        model: a causal LM; traced in evaluation mode and left in the mode it was in.
        facts: at least one.
        kind: what is restored.
        window: layers restored together.
        noise: in standard deviations of the subjects' embeddings.
        samples: corrupted copies.
        limit: at most so many facts, the first ones.
        seed: of the noise.
        token_budget: tokens of one forward pass.

    Raises:
        DataError: the model begins no answer as its row does: it does not know these facts.
        UsageError: the model's blocks have no such module.
    """
    was_training = model.training
    model.eval()
    try:
        known = [fact for fact in facts if _greedy(model, fact) == fact.answer][:limit]
        if not known:
            raise DataError(
                f"the model begins none of {len(facts)} answers as their rows do, so there is nothing to trace",
                hint="start from a model that knows the forget set, or name the layers",
            )
        scale = noise_scale(model, known, factor=noise)
        effects = [
            trace(
                model,
                fact,
                noise=scale,
                kind=kind,
                window=window,
                samples=samples,
                seed=seed,
                token_budget=token_budget,
            ).effects.amax(0)
            for fact in known
        ]
    finally:
        model.train(was_training)
    return Located(tuple(torch.stack(effects).mean(0).tolist()), len(known))


def part(model: Any, layer: int, kind: Kind) -> nn.Module:
    """The module of a layer whose output is restored.

    Raises:
        UsageError: the block has none of that kind.
    """
    block = blocks(model)[layer]
    if kind == "block":
        return block
    found = next((getattr(block, name) for name in _NAMES[kind] if hasattr(block, name)), None)
    if not isinstance(found, nn.Module):
        raise UsageError(
            f"{type(block).__name__} has no {kind} module",
            hint=f"it has {', '.join(name for name, _ in block.named_children())}; trace the kind block instead",
        )
    return found


def _window(layer: int, layers: int, width: int) -> range:
    start = layer - width // 2
    return range(max(0, start), min(layers, start + width))


def _greedy(model: Any, fact: Fact) -> int:
    return int(_last_logits(model, torch.tensor([fact.prompt], device=_device(model)))[0].argmax())


def _last_logits(model: Any, input_ids: Tensor) -> Tensor:
    """(B, V) logits after the prompt."""
    logits: Tensor = model(input_ids=input_ids, logits_to_keep=1, use_cache=False).logits[:, -1]
    return logits


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


class _Bench:
    """One fact with its noise. Row 0 of a forward is clean; each state that is tried has `samples` corrupted rows."""

    def __init__(self, model: Any, fact: Fact, *, noise: float, samples: int, seed: int, token_budget: int) -> None:
        self.model, self.fact, self.samples = model, fact, samples
        start, stop = fact.subject
        width = model.get_input_embeddings().weight.shape[1]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(samples, stop - start, width, generator=generator)
        self.noise = noise * drawn.to(_device(model), model.get_input_embeddings().weight.dtype)
        self.states = max(1, (token_budget // len(fact.prompt) - 1) // samples)
        """How many fit into one forward."""

    def unrestored(self) -> Tensor:
        """(1 + samples,) float64: of the clean row and of the corrupted ones."""
        return self._probabilities([], [[]])

    def restoring(self, modules: Sequence[nn.Module], states: Sequence[Sequence[int]]) -> Tensor:
        """(states,) float64: for each list of tokens, the mean with the modules' clean outputs put back there."""
        parts = []
        for start in range(0, len(states), self.states):
            chunk = states[start : start + self.states]
            parts.append(self._probabilities(modules, chunk)[1:].reshape(len(chunk), self.samples).mean(1))
        return torch.cat(parts)

    def _probabilities(self, modules: Sequence[nn.Module], states: Sequence[Sequence[int]]) -> Tensor:
        """(1 + states * samples,) float64 on the CPU: of the clean row and of the corrupted ones."""
        device = _device(self.model)
        rows = 1 + len(states) * self.samples
        input_ids = torch.tensor([self.fact.prompt], device=device).expand(rows, -1)
        restored = torch.zeros(rows, len(self.fact.prompt), dtype=torch.bool, device=device)
        for number, tokens in enumerate(states):
            for token in tokens:
                restored[1 + number * self.samples : 1 + (number + 1) * self.samples, token] = True
        with _corrupted(self.model, self.fact, self.noise.repeat(len(states), 1, 1)), _restored(modules, restored):
            logits = _last_logits(self.model, input_ids)
        return logits.double().softmax(-1)[:, self.fact.answer].cpu()


@contextmanager
def _corrupted(model: Any, fact: Fact, noise: Tensor) -> Iterator[None]:
    """Inside, the embeddings of the subject are disturbed in every row but the first."""

    def disturb(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[1:, slice(*fact.subject)] += noise
        return output

    handle = model.get_input_embeddings().register_forward_hook(disturb)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _restored(modules: Sequence[nn.Module], where: Tensor) -> Iterator[None]:
    """Inside, the modules' outputs are row 0's at the marked (row, token) places."""

    def put_back(module: Any, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        states = torch.where(where[..., None], states[:1], states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles = [module.register_forward_hook(put_back) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
