"""The teacher-forced pass: one forward per unique text, a few numbers per answer token, no vocabulary-sized result."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from expunge.data.collate import Batch, collate, pack
from expunge.data.encode import Dataset
from expunge.data.example import prompt_text
from expunge.evals.jobs import Plan
from expunge.losses.logprobs import CHUNK_BYTES, rows_per_chunk, wide_dtype
from expunge.losses.place import kind_of
from expunge.metrics.temperatures import lse_column
from expunge.models.chunks import LogitsChunk
from expunge.models.load import autocast, vocabulary_size
from expunge.models.processes import processes
from expunge.models.score import score
from expunge.runs.tables import trace_schema

Progress = Callable[[dict[str, Any]], None]

MIN_CHUNK = 128
"""Positions of a chunk of logits on a CPU, at least: fewer would read the output head too often."""


class TokenStats(NamedTuple):
    """What is kept of (N, V) logits, per position."""

    logp: Tensor  # (N,) float32
    lse: Tensor  # (N,) float32
    hit: Tensor  # (N,) bool
    rank: Tensor | None = None  # (N,) int64
    mu: Tensor | None = None  # (N,) float32
    var: Tensor | None = None  # (N,) float32
    tempered: Tensor | None = None  # (N, K) float32, log-sum-exp of the logits over each of K temperatures


class TracePass(NamedTuple):
    """The table and what it cost."""

    table: pa.Table
    tokens: int
    """Padded tokens sent through the model."""


def token_stats(
    logits: Tensor,  # (N, V)
    targets: Tensor,  # (N,)
    *,
    moments: bool,
    temperatures: Sequence[float] = (),
) -> TokenStats:
    """Log-probability, log-sum-exp, greedy hit and, with `moments`, rank, mean and variance of log p under p.

    With `temperatures` also `logsumexp(z / T)` for each of them.

    Computed in float32 chunks in one sweep; ties of the argmax go to the lowest id. `var` is clamped at 0; where p
    underflows, p log p counts as 0.
    """
    wide, step = wide_dtype(logits.dtype), rows_per_chunk(logits)
    parts = [
        _chunk_stats(logits[start : start + step].to(wide), targets[start : start + step], moments, temperatures)
        for start in range(0, logits.shape[0], step)
    ]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    basic = TokenStats(joined("logp"), joined("lse"), joined("hit"))
    if temperatures:
        basic = basic._replace(tempered=joined("tempered"))
    return basic._replace(rank=joined("rank"), mu=joined("mu"), var=joined("var")) if moments else basic


def several_stats(
    logits: Tensor,  # (N, V)
    targets: Tensor,  # (N,)
    others: Tensor,  # (N, K)
    *,
    temperatures: Sequence[float] = (),
) -> TokenStats:
    """`token_stats` of K + 1 targets at each position: `logp` and `hit` are (N, K + 1), `targets` first."""
    first = token_stats(logits, targets, moments=False, temperatures=temperatures)
    parts = [first, *(token_stats(logits, column, moments=False) for column in others.unbind(-1))]
    return first._replace(
        logp=torch.stack([part.logp for part in parts], -1), hit=torch.stack([part.hit for part in parts], -1)
    )


def _chunk_stats(z: Tensor, y: Tensor, moments: bool, temperatures: Sequence[float]) -> TokenStats:
    best = z.amax(-1)
    chosen = z.gather(-1, y[:, None])
    shifted = z - best[:, None]
    # Before the exponential takes the place of its argument.
    each = [(shifted / t).exp_().sum(-1).log() + best / t for t in temperatures]
    tempered = torch.stack(each, -1) if each else None
    q = shifted.exp() if moments else shifted.exp_()
    total = q.sum(-1)
    # Not chosen - lse: for a memorised token both are near the maximum and their difference is all rounding.
    logp = (chosen.squeeze(-1) - best) - total.log()
    lse = best + total.log()
    hit = _greedy_hit(z, y, best, chosen)
    if not moments:
        return TokenStats(logp, lse, hit, tempered=tempered)
    rank = (z > chosen).sum(-1, dtype=torch.int32).long() + 1
    logq = shifted.sub_(total.log()[:, None])
    q = q.div_(total[:, None])
    weighted = torch.where(q > 0, q * logq, 0)
    mu = weighted.sum(-1)
    second = torch.where(q > 0, weighted * logq, 0).sum(-1)
    return TokenStats(logp, lse, hit, rank, mu, (second - mu * mu).clamp(min=0), tempered)


def _greedy_hit(z: Tensor, y: Tensor, best: Tensor, chosen: Tensor) -> Tensor:
    """(N,) whether the target is the lowest id among the largest logits.

    A maximum without its place costs a twentieth of one with it on a CPU, so the place is looked up only where the
    target is on top and does not stand there alone.
    """
    hit = chosen.squeeze(-1) == best
    top = hit.nonzero().squeeze(-1)
    if len(top):
        rivals = z[top].scatter_(-1, y[top, None], -torch.inf).amax(-1)
        shared = top[rivals == best[top]]
        hit[shared] = (z[shared] == best[shared, None]).int().argmax(-1) == y[shared]
    return hit


@torch.inference_mode()
def trace(
    model: Any,
    plan: Plan,
    *,
    pad_id: int,
    token_budget: int,
    temperatures: Sequence[float] = (),
    lockstep: bool = False,
    progress: Progress | None = None,
) -> TracePass:
    """Run every unique text once and lay the results out as the trace table, in job order.

    Texts that differ in their last token alone (letters of a multiple choice) share one forward pass. Several
    processes share the passes out and give each other the results, so that all return the same.

    Args:
        model: evaluation mode, on its device.
        plan: the jobs.
        pad_id: padding token id (its value never matters).
        token_budget: padded tokens of one forward.
        temperatures: T > 0 other than 1 for which `logsumexp(z / T)` is stored as well, in columns `lse_tT`.
        lockstep: every process runs every text, because a forward pass of this model needs all of them
            (`train.fsdp`).
        progress: called with `{"event": "phase", "name": "trace", "done", "total"}` in texts of this process.
    """
    where = processes()
    twins = _twins(plan)
    batches = _batches(plan, twins, token_budget)
    own = batches if lockstep else where.share(batches)
    total = sum(1 + len(twins.get(row, ())) for _, rows in own for row in rows)
    # The head of a divided model is whole within the forward pass only.
    chunk: LogitsChunk = "auto" if lockstep else _positions_per_chunk(model)
    results: dict[int, dict[str, np.ndarray]] = {}
    tokens = 0
    for moments, rows in own:
        batch = collate(plan.dataset, rows, pad_id=pad_id).to(next(model.parameters()).device)
        results |= _run(
            model, batch, rows, plan.dataset, twins, moments=moments, temperatures=temperatures, chunk=chunk
        )
        tokens += batch.num_tokens
        if progress:
            progress({"event": "phase", "name": "trace", "done": len(results), "total": total})
    if not lockstep:
        shares = where.gather((results, tokens))
        results = {row: values for part, _ in shares for row, values in part.items()}
        tokens = sum(count for _, count in shares)
    return TracePass(_table(plan, results, temperatures), tokens)


class _Texts(NamedTuple):
    """Unique texts that share a forward pass."""

    moments: bool
    rows: list[int]


Twins = Mapping[int, Sequence[int]]
"""A text -> those that need no forward pass of their own beside it."""


def _twins(plan: Plan) -> dict[int, list[int]]:
    """Texts that differ in their last token alone: what the model says before it is the same for all of them."""
    first: dict[tuple[bytes, bytes, bool], int] = {}
    found: dict[int, list[int]] = {}
    for index, item in enumerate(plan.dataset.encoded):
        if index in plan.stats or not item.supervised[-1]:
            continue
        key = (item.input_ids[:-1].tobytes(), item.supervised.tobytes(), bool(item.is_end[-1]))
        leader = first.setdefault(key, index)
        if leader != index:
            found.setdefault(leader, []).append(index)
    return found


def _batches(plan: Plan, twins: Twins, token_budget: int) -> list[_Texts]:
    # Texts that need moments are packed apart: they cost twice the sweep over the vocabulary.
    lengths = plan.dataset.lengths()
    apart = plan.stats.union(*twins.values())
    groups = [sorted(plan.stats), [i for i in range(len(lengths)) if i not in apart]]
    return [
        _Texts(moments, [members[place] for place in places])
        for moments, members in zip((True, False), groups, strict=True)
        for places in pack([int(lengths[i]) for i in members], token_budget)
    ]


def _positions_per_chunk(model: Any) -> LogitsChunk:
    """Positions whose logits exist at one time: without a backward pass no chunk is made twice, so they may be few."""
    if kind_of(next(model.parameters()).device) != "cpu":
        return "auto"
    return max(MIN_CHUNK, CHUNK_BYTES // (4 * vocabulary_size(model)))


def _run(
    model: Any,
    batch: Batch,
    rows: list[int],
    dataset: Dataset,
    twins: Twins,
    *,
    moments: bool,
    temperatures: Sequence[float],
    chunk: LogitsChunk,
) -> dict[int, dict[str, np.ndarray]]:
    """Column -> values of each text of a batch, and of those that share its forward pass."""
    with autocast(batch.input_ids.device):
        scored = score(model, batch, logits_chunk=chunk)
    others = _last_tokens(dataset, rows, twins, scored.targets)
    if others is None:
        quantity = partial(token_stats, moments=moments, temperatures=temperatures)
        stats, token = scored.per_position(quantity), scored.targets
    else:
        stats = scored.per_position(partial(several_stats, temperatures=temperatures), others)
        token = torch.cat([scored.targets[:, None], others], -1)
    columns = {
        name: value.cpu().numpy()
        for name, value in [*_by_column(stats, temperatures), ("token", token), ("is_end", batch.is_end)]
        if value is not None
    }
    ends = np.cumsum(scored.seq_lengths.cpu().numpy())
    return {
        text: {
            name: value[start:stop] if value.ndim == 1 else value[start:stop, column] for name, value in columns.items()
        }
        for row, start, stop in zip(rows, [0, *ends[:-1]], ends, strict=True)
        for column, text in enumerate((row, *twins.get(row, ())))
    }


def _by_column(stats: TokenStats, temperatures: Sequence[float]) -> list[tuple[str, Tensor | None]]:
    """The numbers under the names of the table's columns."""
    each = () if stats.tempered is None else stats.tempered.unbind(-1)
    named = [(lse_column(t), value) for t, value in zip(temperatures, each, strict=True)]
    return [*((name, value) for name, value in stats._asdict().items() if name != "tempered"), *named]


def _last_tokens(dataset: Dataset, rows: list[int], twins: Twins, targets: Tensor) -> Tensor | None:
    """(N, K) tokens of the texts that share each text's forward pass: its own but for the last; None without any."""
    width = max(len(twins.get(row, ())) for row in rows)
    if width == 0:
        return None
    found = np.repeat(targets.cpu().numpy()[:, None], width, axis=1)
    place = 0
    for row in rows:
        place += int(dataset.encoded[row].supervised.sum())
        for column, other in enumerate(twins.get(row, ())):
            found[place - 1, column] = dataset.encoded[other].input_ids[-1]
    return torch.from_numpy(found).to(targets.device)


def _table(plan: Plan, results: Mapping[int, dict[str, np.ndarray]], temperatures: Sequence[float]) -> pa.Table:
    found = [results[job.unique] for job in plan.jobs]
    encoded = [plan.dataset.encoded[job.unique] for job in plan.jobs]
    columns: dict[str, Any] = {
        "split": [job.split for job in plan.jobs],
        "row": [job.row for job in plan.jobs],
        "variant": [job.variant for job in plan.jobs],
        "id": [job.example.id for job in plan.jobs],
        "group": [job.example.group for job in plan.jobs],
        "prompt": [prompt_text(job.example) for job in plan.jobs],
        "target": [job.text for job in plan.jobs],
        "target_zlib": [len(zlib.compress(job.text.encode())) for job in plan.jobs],
        "target_chars": [len(job.text) for job in plan.jobs],
        "num_prompt": [int(np.argmax(item.supervised)) for item in encoded],
        "truncated": [item.truncated for item in encoded],
    }
    schema = trace_schema(temperatures)
    columns |= {name: [values.get(name) for values in found] for name in schema.names if name not in columns}
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)
