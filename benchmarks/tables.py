"""Reference tables: what they weigh, what they take to build and to reuse, and what a step costs without them.

    python -m benchmarks.tables                  # every kind, TOFU forget10 and retain90, a tiny Llama; CPU, one thread
    python -m benchmarks.tables --rows 100       # a minute

Steps with a table and with a second model in memory are interleaved, on the same rows and weights, and their losses are
compared. Reusing a table is opening it and comparing its checksum. Seconds are the processor's (one thread), so that
what else a machine does counts little; on a GPU they are wall seconds.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from benchmarks.common import (
    PAD,
    Ratio,
    build_model,
    interleaved,
    ratio_of,
    seconds,
    shared_folder,
    tofu_rows,
    write_json,
)
from expunge.catalog import METHODS
from expunge.config.schema import TrainSection
from expunge.data.encode import Dataset
from expunge.data.stream import PairedStream
from expunge.methods.base import Method
from expunge.models.fingerprint import model_digest
from expunge.models.reference import Reference
from expunge.models.reference_table import ReferenceTable, reference_table
from expunge.runs.text import size
from expunge.testing.live import with_live_references
from expunge.train.engine import Engine, TrainingData
from expunge.train.monitor import Monitor

ROLES = {"forget": "forget10", "retain": "retain90"}
KINDS = (
    Reference("seq_logp"),
    Reference("token_logp"),
    Reference("eua_margin"),
    Reference("hidden"),
    Reference("block", layer=2),
)
METHOD_KEYS: Mapping[str, Mapping[str, Any]] = {
    "npo": {},
    "tnpo": {},
    "eua": {},
    "kl_min": {},
    "undial": {},
    "rmu": {"layer": 2},
}
BATCH = 32


class World(NamedTuple):
    """What every measurement starts from."""

    model: Any
    datasets: dict[str, Dataset]
    key: str
    budget: int
    device: torch.device

    @property
    def clock(self) -> Callable[[], float]:
        """What seconds are counted by."""
        return time.process_time if self.device.type == "cpu" else time.perf_counter


class TableRow(NamedTuple):
    """One kind of table over one role's rows."""

    kind: str
    role: str
    rows: int
    num_bytes: int
    build_seconds: float
    reuse_seconds: float


class StepRow(NamedTuple):
    """A method's step with a second model in memory, against one with tables."""

    method: str
    table_seconds: float
    live_seconds: float
    ratio: Ratio
    largest_difference: float
    """Of the two sides' losses, relative."""


def table_of(world: World, role: str, references: tuple[Reference, ...], **settings: Any) -> ReferenceTable:
    """Built, or read from the cache."""
    return reference_table(
        world.model,
        world.datasets[role],
        references,
        model_key=world.key,
        pad_id=PAD,
        token_budget=world.budget,
        **({"positions": "predict"} | settings),
    )


def measure_tables(world: World) -> list[TableRow]:
    """Every kind of table over every role."""
    found = []
    for kind in KINDS:
        for role, dataset in world.datasets.items():
            ask = partial(table_of, world, role, (kind,))
            build, reuse = (seconds(ask, world.device, clock=world.clock) for _ in range(2))
            found.append(TableRow(kind.kind, role, len(dataset.encoded), ask().num_bytes, build, reuse))
    return found


def make_engine(world: World, method: Method, *, live: bool) -> Engine:
    """An engine on a copy of the model, with tables or with another copy in their place."""
    needs = method.needs()
    tables = {
        role: table_of(
            world,
            role,
            references,
            positions=needs.positions_of(role),
            skip_first=needs.skip_first.get(role, 0),
        )
        for role, references in needs.references.items()
        if references
    }
    # A method's preparation reads no more of the workshop than this, for the methods measured here.
    bench: Any = SimpleNamespace(model=world.model, seed=0, train=SimpleNamespace(), datasets=world.datasets)
    datasets = {role: world.datasets[role] for role in needs.roles}
    data = TrainingData(datasets, {}, tables, PAD, method.prepare(bench).constants)
    if live:
        data = with_live_references(data, copy.deepcopy(world.model).requires_grad_(False), needs.references)
    sizes = {role: len(dataset.encoded) for role, dataset in datasets.items()}
    stream = PairedStream(sizes, anchor="forget", batch=dict.fromkeys(sizes, BATCH), seed=0)
    settings = TrainSection(learning_rate=1e-5, global_batch_size=BATCH, lr_scheduler_type="constant")
    engine = Engine(
        copy.deepcopy(world.model),
        method,
        data,
        settings,
        stream=stream,
        total_steps=1000,
        token_budget=world.budget,
    )
    engine.model.train()
    return engine


def measure_steps(world: World, name: str, rounds: int) -> StepRow:
    """Interleaved steps of both sides, after two to warm up."""
    method: Method = METHODS.load(name)(**METHOD_KEYS[name])
    engines = {"table": make_engine(world, method, live=False), "live": make_engine(world, method, live=True)}
    monitor = Monitor(world.device, 0, 1000)
    losses: dict[str, list[float]] = {side: [] for side in engines}

    def step(side: str, number: int) -> None:
        losses[side].append(engines[side].train_step(monitor)["loss"])

    sides: dict[str, Callable[[int], object]] = {side: partial(step, side) for side in engines}
    interleaved(sides, rounds=range(2), device=world.device)
    spent = interleaved(sides, rounds=range(rounds), device=world.device, clock=world.clock)
    pairs = zip(losses["table"], losses["live"], strict=True)
    return StepRow(
        name,
        sorted(spent["table"])[rounds // 2],
        sorted(spent["live"])[rounds // 2],
        ratio_of(spent["live"], spent["table"]),
        max(abs(one - two) / max(abs(two), 1e-12) for one, two in pairs),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000, help="at most so many rows of each role")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of steps")
    parser.add_argument("--budget", type=int, default=1024, help="padded tokens of a forward")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="keep every number")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device, folder = torch.device(args.device), shared_folder()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["EXPUNGE_CACHE"] = cache
        model = build_model("tiny", device, folder=folder / "models" / "tofu_tiny_full").eval()
        world = World(model, tofu_rows(folder, ROLES, count=args.rows), model_digest(model), args.budget, device)
        tables = measure_tables(world)
        print("| table | rows | size | built in | opened and compared in |\n|---|--:|--:|--:|--:|")
        for row in tables:
            print(
                f"| `{row.kind}` of {ROLES[row.role]} | {row.rows} | {size(row.num_bytes)} | "
                f"{row.build_seconds:.2f} s | {row.reuse_seconds * 1000:.0f} ms |",
                flush=True,
            )
        print("\n| step of | with tables | with a second model | ratio | losses differ by |\n|---|--:|--:|--:|--:|")
        steps = []
        for name in METHOD_KEYS:
            step = measure_steps(world, name, args.rounds)
            steps.append(step)
            print(
                f"| {name} | {step.table_seconds * 1000:.0f} ms | {step.live_seconds * 1000:.0f} ms | {step.ratio} | "
                f"{step.largest_difference:.0e} |",
                flush=True,
            )
    write_json(args.json, {"tables": [row._asdict() for row in tables], "steps": [row._asdict() for row in steps]})


if __name__ == "__main__":
    main()
