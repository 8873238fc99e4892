"""Training steps: expunge's engine against a straightforward trainer, on the same rows and weights.

    python -m benchmarks.train                                   # all three methods, tiny Llama, CPU, one thread
    python -m benchmarks.train --method eua --repeat-retain      # forward the retain rows twice, as released
    python -m benchmarks.train --shape 1b --device cuda --data synthetic

Both sides start from the same weights and see the same rows in every round, so their losses must agree along the way.
Time is the median ratio of interleaved pairs; memory is the peak of a fresh process above the imported libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from transformers.utils import logging

from benchmarks.baselines.train import IGNORE, Objective, Row, Trainer
from benchmarks.common import (
    PAD,
    Ratio,
    Stopwatch,
    Work,
    build_model,
    flops,
    gemm_rate,
    interleaved,
    peak_rate,
    profile,
    ratio_of,
    seconds,
    shared_folder,
    synthetic_rows,
    tofu_rows,
    write_json,
)
from expunge.bench.memory import PeakMemory
from expunge.catalog import METHODS
from expunge.config.schema import TrainSection
from expunge.data.collate import collate
from expunge.data.encode import Dataset
from expunge.data.stream import Step
from expunge.methods.base import Method
from expunge.models.reference_table import ReferenceTable, reference_table
from expunge.models.score import score
from expunge.train import step as step_module
from expunge.train.engine import Engine, TrainingData
from expunge.train.microbatch import Plan
from expunge.train.monitor import Monitor

OBJECTIVES = {
    "eua": Objective("eua", gamma=0.05),
    "npo": Objective("npo"),
    "grad_diff": Objective("grad_diff"),
}
SPEED_TARGETS = {"eua": 2.5, "npo": 1.7, "grad_diff": 1.25}
REPEATED_TARGET = 3.0
MEMORY_TARGET = 0.6
LEARNING_RATE = 1e-5
BUDGETS = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384, 32768)}
WARM_UP = 2
MEMORY_STEPS = 3
RUN_STEPS = 65
"""Steps over which a run of five epochs spreads the cost of the tables: 400 forget rows, 32 a step."""
TABLE_ROWS = {"forget": 400, "retain": 3600}


class Rounds:
    """Stands in for the engine's stream: round i is rows 32 i to 32 i + 31 of every role, in dataset order."""

    steps_per_epoch = 1

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.round = batch_size, 0

    def next(self) -> Step:
        first = self.round * self.batch_size
        rows = list(range(first, first + self.batch_size))
        return Step(0, {"forget": list(rows), "retain": list(rows)})


class World(NamedTuple):
    """What both sides are given."""

    datasets: dict[str, Dataset]
    folder: Path | None
    """The starting weights; None: random ones."""
    device: torch.device
    shape: str
    batch_size: int

    def model(self) -> Any:
        return build_model(self.shape, self.device, folder=self.folder)

    def rows(self, role: str, number: int) -> list[Row]:
        """Round `number`'s rows as the baseline takes them."""
        first = number * self.batch_size
        return [
            Row(item.input_ids.tolist(), np.where(item.supervised, item.input_ids, IGNORE).tolist())
            for item in self.datasets[role].encoded[first : first + self.batch_size]
        ]

    def work(self, number: int) -> Work:
        """Real tokens and answer tokens of a round."""
        first = number * self.batch_size
        items = [i for d in self.datasets.values() for i in d.encoded[first : first + self.batch_size]]
        return Work(sum(len(i.input_ids) for i in items), sum(int(i.supervised.sum()) for i in items))


def make_world(args: argparse.Namespace, rounds: int) -> World:
    device, count = torch.device(args.device), rounds * args.batch_size
    tofu = args.data == "tofu" or (args.data == "auto" and args.shape == "tiny" and args.shared.is_dir())
    if not tofu:
        vocab = {"tiny": 4096, "1b": 128256}[args.shape]
        datasets = synthetic_rows(("forget", "retain"), vocab=vocab, count=count)
        return World(datasets, None, device, args.shape, args.batch_size)
    datasets = tofu_rows(args.shared, {"forget": "forget10", "retain": "retain90"}, count=count)
    return World(datasets, args.shared / "models" / "tofu_tiny_full", device, "tiny", args.batch_size)


# The two sides


def make_engine(world: World, method_name: str, budget: int) -> Engine:
    """expunge's side. Tables go to the cache folder, where a second engine finds them."""
    model, method = world.model(), METHODS.load(method_name)()
    tables = {role: make_table(world, model, method, role, budget) for role in method.needs().references}
    settings = TrainSection(
        learning_rate=LEARNING_RATE, global_batch_size=world.batch_size, lr_scheduler_type="constant", max_grad_norm=1.0
    )
    data = TrainingData(world.datasets, {}, tables, PAD)
    stream: Any = Rounds(world.batch_size)
    engine = Engine(model, method, data, settings, stream=stream, total_steps=1000, token_budget=budget)
    model.train()
    return engine


def make_table(world: World, model: Any, method: Method, role: str, budget: int) -> ReferenceTable:
    """What the starting model says about a role's rows; every model of a comparison starts alike."""
    return reference_table(
        model,
        world.datasets[role],
        method.needs().references[role],
        model_key="the starting model",
        pad_id=PAD,
        positions="predict",
        token_budget=budget,
    )


def our_step(engine: Engine, number: int, losses: list[float] | None = None) -> None:
    stream: Any = engine.stream
    stream.round = number
    event = engine.train_step(Monitor(engine.device, 0, 1))
    if losses is not None:
        losses.append(event["loss"])


def make_trainer(world: World, method_name: str, args: argparse.Namespace) -> Trainer:
    return Trainer(
        world.model(),
        OBJECTIVES[method_name],
        pad_id=PAD,
        learning_rate=LEARNING_RATE,
        repeat_retain=args.repeat_retain,
    )


def their_step(trainer: Trainer, world: World, number: int, losses: list[float] | None = None) -> None:
    loss = trainer.step(world.rows("forget", number), world.rows("retain", number))
    if losses is not None:
        losses.append(loss)


def pick_budget(world: World, method_name: str, args: argparse.Namespace) -> tuple[int, dict[int, float]]:
    """The budget asked for, or the fastest of a few over two steps each."""
    if args.token_budget != "auto":
        return int(args.token_budget), {}
    engine, tried = make_engine(world, method_name, BUDGETS[world.device.type][0]), {}
    our_step(engine, 0)
    for budget in BUDGETS[world.device.type]:
        engine.splitter.budget = budget
        try:
            tried[budget] = min(seconds(partial(our_step, engine, 0), world.device) for _ in range(2))
        except torch.OutOfMemoryError:
            break
    return min(tried, key=lambda budget: tried[budget]), tried


# Measurements


def compare(method_name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one method."""
    world = make_world(args, args.pairs + WARM_UP)
    budget, tried = pick_budget(world, method_name, args)
    result = {"method": method_name, "budgets_tried_s": tried} | timings(world, method_name, budget, args)
    if args.memory:
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        used = {side: memory_of(side, method_name, budget, args) for side in ("ours", "baseline")}
        result |= {"memory_mb": used, "memory_ratio": used["ours"] / used["baseline"]}
    return result


def timings(world: World, method_name: str, budget: int, args: argparse.Namespace) -> dict[str, Any]:
    """The pairs, and what explains them."""
    ours, again = (make_engine(world, method_name, budget) for _ in range(2))
    theirs = make_trainer(world, method_name, args)
    our_losses: list[float] = []
    their_losses: list[float] = []
    sides = {
        "ours": lambda i: our_step(ours, i, our_losses),
        "baseline": lambda i: their_step(theirs, world, i, their_losses),
        "ours_again": lambda i: our_step(again, i),
    }
    interleaved(sides, rounds=range(WARM_UP), device=world.device)
    theirs.forwards = 0
    rounds = range(WARM_UP, WARM_UP + args.pairs)
    spent = interleaved(sides, rounds=rounds, device=world.device)
    forwards = theirs.forwards / args.pairs
    work = [world.work(number) for number in rounds]
    plans = [plan_of(ours, number) for number in rounds]
    result: dict[str, Any] = {
        "repeat_retain": args.repeat_retain and method_name == "eua",
        "device": device_name(world.device),
        "data": "TOFU" if world.folder else "synthetic",
        "parameters": sum(p.numel() for p in ours.model.parameters()),
        "token_budget": budget,
        "rows_per_step": 2 * world.batch_size,
        "tokens_per_step": statistics.mean(w.tokens for w in work),
        "seconds": spent,
        "speedup": ratio_of(spent["baseline"], spent["ours"])._asdict(),
        "control": ratio_of(spent["ours_again"], spent["ours"])._asdict(),
        "tokens_per_s": {side: sum(w.tokens for w in work) / sum(spent[side]) for side in ("ours", "baseline")},
        "forwards_per_step": {
            "ours": statistics.mean(len(plan.micro_batches) for plan in plans),
            "baseline": forwards,
        },
        "losses": {"ours": our_losses, "baseline": their_losses},
        "loss_difference": max(
            abs(one - two) / max(abs(two), 0.1) for one, two in zip(our_losses, their_losses, strict=True)
        ),
        "floor": floor(ours, world, plans, work, spent),
        "parts": parts(ours, theirs, world),
        "table": table_cost(ours, world, spent),
    }
    if args.profile:
        result["profile"] = {
            "ours": profile(lambda: our_step(ours, WARM_UP), world.device),
            "baseline": profile(lambda: their_step(theirs, world, WARM_UP), world.device),
        }
    return result


def plan_of(engine: Engine, number: int) -> Plan:
    """The micro-batches of a round."""
    stream: Any = engine.stream
    stream.round = number
    return engine.splitter(stream.next())


def floor(engine: Engine, world: World, plans: list[Plan], work: list[Work], spent: dict[str, Any]) -> dict[str, Any]:
    """How far a step is from bare matmuls of its real tokens, at the rate that its own micro-batches' shapes reach."""
    passes = [
        Work(
            len(mb.rows) * int(engine.splitter.lengths[mb.role][mb.rows].max()),
            int(engine.splitter.scored[mb.role][mb.rows].sum()),
        )
        for mb in plans[0].micro_batches
    ]
    rate = gemm_rate(engine.model, passes, world.device)
    needed = statistics.mean(flops(engine.model, w) for w in work)
    step = {side: statistics.median(spent[side]) for side in ("ours", "baseline")}
    found: dict[str, Any] = {
        "gemm_flops_per_s": rate,
        "padding": sum(p.tokens for p in passes) / work[0].tokens,
        "seconds": needed / rate,
        "step_over_floor": {side: step[side] * rate / needed for side in step},
    }
    if world.device.type == "cuda":
        peak = peak_rate(world.device, size=8192)
        found["peak_flops_per_s"] = peak
        found["share_of_peak"] = {side: needed / step[side] / peak for side in step}
    return found


def parts(engine: Engine, trainer: Trainer, world: World) -> dict[str, dict[str, float]]:
    """Seconds of one step by part, on both sides; the rest is Python."""
    number, watch = WARM_UP, Stopwatch(world.device)
    with ExitStack() as stack:
        stack.enter_context(patch.object(step_module, "collate", watch.wrap("collate", collate)))
        stack.enter_context(patch.object(step_module, "score", watch.wrap("forward", score)))
        stack.enter_context(patch.object(engine, "_clip", watch.wrap("clip and optimizer", engine._clip)))
        update = engine.optimizers.step
        stack.enter_context(patch.object(engine.optimizers, "step", watch.wrap("clip and optimizer", update)))
        backward = torch.Tensor.backward
        stack.enter_context(patch.object(torch.Tensor, "backward", watch.wrap("backward", backward)))
        whole = seconds(lambda: our_step(engine, number), world.device)
    ours = dict(watch.totals) | {"losses, tables, the rest": whole - sum(watch.totals.values())}
    trainer.watch = watch = Stopwatch(world.device)
    whole = seconds(lambda: their_step(trainer, world, number), world.device)
    trainer.watch = None
    return {"ours": ours, "baseline": dict(watch.totals) | {"the rest": whole - sum(watch.totals.values())}}


def table_cost(engine: Engine, world: World, spent: dict[str, list[float]]) -> dict[str, float]:
    """What the tables of a whole run cost once, and the speed-up with that spread over five epochs."""
    whole = 0.0
    engine.model.eval()
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, EXPUNGE_CACHE=folder):
        for role in engine.needs.references:
            build = partial(make_table, world, engine.model, engine.method, role, engine.splitter.budget)
            whole += seconds(build, world.device) / len(world.datasets[role].encoded) * TABLE_ROWS[role]
    engine.model.train()
    step = {side: statistics.median(spent[side]) for side in ("ours", "baseline")}
    return {"seconds": whole, "speedup_with_table": step["baseline"] / (step["ours"] + whole / RUN_STEPS)}


# Memory: each side alone in a fresh process


def memory_of(side: str, method_name: str, budget: int, args: argparse.Namespace) -> float:
    """Peak of `side` in megabytes."""
    command = [sys.executable, "-m", "benchmarks.train", "--memory-side", side, "--method", method_name]
    command += ["--shape", args.shape, "--device", args.device, "--data", args.data, "--shared", str(args.shared)]
    command += ["--batch-size", str(args.batch_size), "--token-budget", str(budget), "--threads", str(args.threads)]
    command += ["--repeat-retain"] if args.repeat_retain else []
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "EXPUNGE_CACHE": folder}, check=False
        )
    if done.returncode:
        raise SystemExit(f"the memory run of {side} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1])["mb"])


def memory_run(args: argparse.Namespace) -> None:
    """The body of that process."""
    peak = PeakMemory(torch.device(args.device))
    world = make_world(args, MEMORY_STEPS)
    if args.memory_side == "ours":
        engine = make_engine(world, args.method, int(args.token_budget))
        for number in range(MEMORY_STEPS):
            our_step(engine, number)
    else:
        trainer = make_trainer(world, args.method, args)
        for number in range(MEMORY_STEPS):
            their_step(trainer, world, number)
    print(json.dumps({"mb": peak.mb()}))


# Output


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, bf16 autocast"
    return f"CPU, float32, {torch.get_num_threads()} thread(s)"


def show(result: dict[str, Any]) -> None:
    """One method for people."""
    name, ours, theirs = result["method"], "ours", "baseline"
    target = REPEATED_TARGET if result["repeat_retain"] else SPEED_TARGETS[name]
    floor_of, seconds_of = result["floor"], {k: statistics.median(v) for k, v in result["seconds"].items()}
    print(f"\n{name}{' (retain rows twice)' if result['repeat_retain'] else ''}: {result['device']},", end=" ")
    print(f"{result['parameters'] / 1e6:.1f} M parameters, {result['rows_per_step']} {result['data']} rows", end=" ")
    print(f"({result['tokens_per_step']:.0f} tokens) a step, token budget {result['token_budget']}")
    if result["budgets_tried_s"]:
        print("  budgets tried: " + ", ".join(f"{b}: {s * 1e3:.0f} ms" for b, s in result["budgets_tried_s"].items()))
    print(f"  {'':24}{'ours':>12}{'baseline':>12}")
    line = "  {:24}{:>12}{:>12}  {}"
    print(line.format("ms per step", *(f"{seconds_of[s] * 1e3:.0f}" for s in (ours, theirs)), ""))
    rates = result["tokens_per_s"]
    print(line.format("tokens per second", f"{rates[ours]:.0f}", f"{rates[theirs]:.0f}", ""))
    forwards = result["forwards_per_step"]
    print(line.format("forwards per step", f"{forwards[ours]:.1f}", f"{forwards[theirs]:.1f}", "ours: micro-batches"))
    last = {side: values[-1] for side, values in result["losses"].items()}
    difference = f"largest relative difference {result['loss_difference']:.1e}"
    print(line.format("loss of the last step", f"{last[ours]:.5f}", f"{last[theirs]:.5f}", difference))
    over = floor_of["step_over_floor"]
    rate = f"floor {floor_of['seconds'] * 1e3:.0f} ms at {floor_of['gemm_flops_per_s'] / 1e9:.0f} GFLOP/s"
    print(line.format("step / matmul floor", f"{over[ours]:.2f}", f"{over[theirs]:.2f}", rate))
    if "share_of_peak" in floor_of:
        share, peak = floor_of["share_of_peak"], f"of {floor_of['peak_flops_per_s'] / 1e12:.0f} TFLOP/s, 8192 cubed"
        print(line.format("share of matmul peak", f"{share[ours]:.0%}", f"{share[theirs]:.0%}", peak))
    if "memory_mb" in result:
        used, met = result["memory_mb"], f"ratio {result['memory_ratio']:.2f}, target <= {MEMORY_TARGET}"
        print(line.format("peak memory, MB", f"{used[ours]:.0f}", f"{used[theirs]:.0f}", met))
    print(f"  speed-up {Ratio(**result['speedup'])}, target >= {target}x; control {Ratio(**result['control'])}")
    table = result["table"]
    if table["seconds"]:
        print(f"  tables of a whole run: {table['seconds']:.1f} s once;", end=" ")
        print(f"spread over {RUN_STEPS} steps the speed-up is {table['speedup_with_table']:.2f}x")
    for side, found in result["parts"].items():
        print(f"  {side:9} " + ", ".join(f"{part} {s * 1e3:.0f} ms" for part, s in found.items()))
    for side, shares in result.get("profile", {}).items():
        print(f"  {side:9} " + ", ".join(f"{part} {share:.0%}" for part, share in shares.items()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["all", *OBJECTIVES], default="all")
    parser.add_argument("--repeat-retain", action="store_true", help="EUA's baseline forwards the retain rows twice")
    parser.add_argument("--shape", choices=["tiny", "1b"], default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", choices=["auto", "tofu", "synthetic"], default="auto")
    parser.add_argument("--shared", type=Path, default=shared_folder(), help="folder with data/tofu and models/")
    parser.add_argument("--batch-size", type=int, default=32, help="rows per role and step")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--token-budget", default="auto", help="padded tokens of one micro-batch; auto: the fastest")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--profile", action="store_true", help="share of each step by category of operation")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-side", choices=["ours", "baseline"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    if args.memory_side:
        memory_run(args)
        return
    results = []
    for name in OBJECTIVES if args.method == "all" else [args.method]:
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, EXPUNGE_CACHE=folder):
            results.append(compare(name, args))
        show(results[-1])
    write_json(args.json, results)


if __name__ == "__main__":
    main()
