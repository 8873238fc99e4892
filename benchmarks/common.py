"""What the benchmarks share: models and rows that need no download, paired timing, memory, and the matmul floor."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from expunge.config.schema import SourceSpec
from expunge.data.encode import Dataset, Encoded, encode_all
from expunge.data.example import Example, Turn
from expunge.data.source import load_examples
from expunge.data.template import build_template

TINY = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "rope_theta": 500000.0,
}
SHAPES = {"tiny": TINY, "1b": LLAMA_1B}
PAD = 0


def shared_folder() -> Path:
    """The folder of models and data: `EXPUNGE_SHARED`, else `../shared` beside the repository."""
    return Path(os.environ.get("EXPUNGE_SHARED") or Path(__file__).resolve().parents[2] / "shared")


# Models and rows


def build_model(shape: str, device: torch.device, *, folder: Path | None = None) -> Any:
    """A float32 Llama: the weights in `folder`, or the same random ones on every call."""
    if folder is not None:
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(device)
    config = LlamaConfig(
        **SHAPES[shape],
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=PAD,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with device:
            return LlamaForCausalLM(config)


def tofu_examples(folder: Path, name: str) -> list[Example]:
    """The rows of one TOFU file, in its order."""
    return load_examples(SourceSpec(path=f"tofu:{name}"), tofu=str(folder / "data" / "tofu"), role=name).examples


def tofu_rows(folder: Path, names: dict[str, str], *, count: int) -> dict[str, Dataset]:
    """The first `count` rows of each role's TOFU file, encoded with the tiny models' tokenizer and chat template."""
    template = build_template("auto", AutoTokenizer.from_pretrained(folder / "models" / "tofu_tiny_full"))
    return {
        role: encode_all(tofu_examples(folder, name)[:count], template, role=role, max_length=512)
        for role, name in names.items()
    }


def synthetic_rows(roles: Sequence[str], *, vocab: int, count: int) -> dict[str, Dataset]:
    """Random ids in rows as long as TOFU's: a question of 15 to 40 tokens, an answer of 20 to 90."""
    rng = np.random.default_rng(0)
    return {role: _synthetic(role, rng, vocab, count) for role in roles}


def _synthetic(role: str, rng: np.random.Generator, vocab: int, count: int) -> Dataset:
    encoded = []
    for _ in range(count):
        question, answer = int(rng.integers(15, 41)), int(rng.integers(20, 91))
        ids = rng.integers(2, vocab, question + answer).astype(np.int32)
        encoded.append(Encoded(ids, np.arange(len(ids)) >= question, np.arange(len(ids)) == len(ids) - 1))
    examples = tuple(Example(f"{role}:{i}", i, (Turn("user", str(i)), Turn("assistant", str(i)))) for i in range(count))
    return Dataset(role, examples, tuple(encoded), digest=f"synthetic {role} {vocab} {count}")


# Time


class Ratio(NamedTuple):
    """How many times longer the second of a pair took."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f}-{self.high:.2f})"


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """The ratios of paired measurements."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    work: Callable[[], object], device: torch.device, *, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one call: wall seconds, or of another clock."""
    synchronize(device)
    start = clock()
    work()
    synchronize(device)
    return clock() - start


def interleaved(
    sides: dict[str, Callable[[int], object]],
    *,
    rounds: range,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every side in every round; the order turns round each time, so that drift hits all sides alike."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for number in rounds:
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in names:
            measured[name].append(seconds(partial(sides[name], number), device, clock=clock))
    return measured


@dataclass
class Stopwatch:
    """Seconds by part. Waits for the GPU at every boundary, so it slows what it measures: never used inside a pair."""

    device: torch.device
    totals: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the block's time to `name`."""
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.totals[name] += time.perf_counter() - start

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed under `name`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed


_CATEGORIES = (
    ("optimizer", ("adam", "clip", "foreach_norm", "linalg_vector_norm")),
    ("attention", ("scaled_dot_product", "flash", "efficient_attention")),
    ("matmul", ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul", "mkldnn")),
    ("vocabulary", ("logsumexp", "softmax", "nll_loss", "topk", "gather", "scatter", "_Normalise")),
    ("copies and indexing", ("copy_", "index", "cat", "clone", "embedding", "fill_", "zero_", "nonzero", "masked")),
)


def profile(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Share of one call's device time by category of operation; what matches none is `elementwise and rest`."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        work()
        synchronize(device)
    totals: Counter[str] = Counter()
    for event in recorded.key_averages():
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        match = (name for name, words in _CATEGORIES if any(word in event.key for word in words))
        totals[next(match, "elementwise and rest")] += spent
    whole = sum(totals.values()) or 1
    return {name: spent / whole for name, spent in totals.most_common()}


# The matmul floor


class Work(NamedTuple):
    """One forward and backward pass: tokens through the layers, positions through the output head."""

    tokens: int
    scored: int


def flops(model: Any, work: Work) -> float:
    """Multiplications and additions of the weight matrices, forward and backward: 6 per weight and token."""
    layers, head = _matrices(model)
    per_token = sum(a * b * count for (a, b), count in layers.items())
    return 6.0 * (per_token * work.tokens + head[0] * head[1] * work.scored)


def gemm_rate(model: Any, passes: Sequence[Work], device: torch.device, *, repeats: int = 3) -> float:
    """FLOP/s of bare matmuls of the model's shapes (forward and both backward ones), best of `repeats`."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    layers, head = _matrices(model)
    best = float("inf")
    for _ in range(repeats):
        spent = 0.0
        for work in passes:
            for (inner, outer), count in layers.items():
                spent += count * _gemm_seconds(work.tokens, inner, outer, device, dtype)
            spent += _gemm_seconds(work.scored, *head, device, dtype)
        best = min(best, spent)
    return sum(flops(model, work) for work in passes) / best


def peak_rate(device: torch.device, *, size: int, duration: float = 1.0) -> float:
    """FLOP/s of one large square matmul in the dtype of the computation, over about `duration` seconds."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    once = max(min(seconds(lambda: a @ b, device) for _ in range(3)), 1e-6)
    count = max(1, round(duration / once))
    spent = seconds(lambda: [torch.mm(a, b) for _ in range(count)], device)
    return 2.0 * size**3 * count / spent


def _matrices(model: Any) -> tuple[Counter[tuple[int, int]], tuple[int, int]]:
    """(in, out) -> how many, of the layers' linear maps; and the head's."""
    head = model.get_output_embeddings()
    layers = Counter(
        (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    return layers, (head.in_features, head.out_features)


def _gemm_seconds(rows: int, inner: int, outer: int, device: torch.device, dtype: torch.dtype) -> float:
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(outer, inner, device=device, dtype=dtype)
    upstream = torch.randn(rows, outer, device=device, dtype=dtype)

    def work() -> None:
        torch.mm(x, weight.T)
        torch.mm(upstream, weight)
        torch.mm(upstream.T, x)

    work()
    return seconds(work, device)


# Output


def write_json(path: Path | None, result: Any) -> None:
    """Keep the numbers, if asked to."""
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
