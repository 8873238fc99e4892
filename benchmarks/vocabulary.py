"""A large vocabulary: one step's forward and backward with all logits at once, and with logits in chunks.

    python -m benchmarks.vocabulary                       # 128,256 entries, 2 layers; two minutes on a CPU
    python -m benchmarks.vocabulary --method npo --hidden 512
    python -m benchmarks.vocabulary --device cuda --batch-size 64

Every side runs alone in a fresh process on the same weights and rows, with the starting model's tables already in the
cache, so that their losses and gradients must agree. Memory is the peak above the imported libraries. One side runs
after the other, so compare times on a machine that does nothing else. The naive side is a plain trainer, with the
logits of every position.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers.utils import logging

from benchmarks import common
from benchmarks.baselines.train import Objective, Trainer, pad_right
from benchmarks.common import PAD, seconds, synthetic_rows, write_json
from benchmarks.train import LEARNING_RATE, Rounds, World, make_table
from expunge.bench.memory import PeakMemory
from expunge.catalog import METHODS
from expunge.config.schema import TrainSection
from expunge.train.engine import Engine, TrainingData
from expunge.train.step import StepRun

VOCAB = 128_256
METHOD_NAMES = ("npo", "grad_diff", "eua", "kl_min")
NAIVE = "grad_diff"
"""What the plain trainer is run with: no copy of the starting model, so that its logits are all that differs."""
SIDES = ("full", "chunks", "naive")
MEMORY_TARGET = 0.5


def make_world(args: argparse.Namespace) -> World:
    """A model of two layers under another name, and rows as long as TOFU's."""
    common.SHAPES["vocabulary"] = common.TINY | {
        "vocab_size": VOCAB,
        "hidden_size": args.hidden,
        "intermediate_size": 3 * args.hidden,
        "num_hidden_layers": 2,
    }
    datasets = synthetic_rows(("forget", "retain"), vocab=VOCAB, count=args.batch_size)
    return World(datasets, None, torch.device(args.device), "vocabulary", args.batch_size)


def make_engine(world: World, method_name: str, *, budget: int, chunk: str | None) -> Engine:
    """expunge's sides; the tables are built where the cache has none."""
    model, method = world.model(), METHODS.load(method_name)()
    tables = {role: make_table(world, model, method, role, budget) for role in method.needs().references}
    settings = TrainSection(learning_rate=LEARNING_RATE, global_batch_size=world.batch_size, logits_chunk=chunk)
    data = TrainingData(world.datasets, {}, tables, PAD)
    stream: Any = Rounds(world.batch_size)
    engine = Engine(model, method, data, settings, stream=stream, total_steps=1000, token_budget=budget)
    model.train()
    return engine


def run_side(args: argparse.Namespace) -> dict[str, Any]:
    """The body of a process: what one side needs and comes to."""
    peak, world = PeakMemory(torch.device(args.device)), make_world(args)
    if args.side == "naive":
        trainer = Trainer(world.model(), Objective(args.method), pad_id=PAD, learning_rate=LEARNING_RATE)
        model = trainer.model

        def work() -> float:
            batches = [pad_right(world.rows(role, 0), pad_id=PAD, device=world.device) for role in ("forget", "retain")]
            loss = trainer.loss(*batches)
            loss.backward()
            return float(loss.detach())

    else:
        chunk = "auto" if args.side == "chunks" else None
        engine = make_engine(world, args.method, budget=args.token_budget, chunk=chunk)
        model, plan = engine.model, engine.splitter(engine.stream.next())

        def work() -> float:
            run = StepRun(engine, plan)
            return float(run.backward(*run.roles).total)

    losses: list[float] = []
    before = time.process_time()
    spent = seconds(lambda: losses.append(work()), world.device)
    processor = time.process_time() - before
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    found = {"mb": peak.mb(), "seconds": spent, "cpu_seconds": processor}
    return found | {"loss": losses[0], "grad_norm": float(norm)}


def alone(args: argparse.Namespace, method_name: str, side: str) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.vocabulary", "--side", side, "--method", method_name]
    for name in ("device", "hidden", "batch_size", "token_budget", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the process of {method_name}, {side} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(args: argparse.Namespace, method_name: str) -> dict[str, Any]:
    """Every side of one method."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, EXPUNGE_CACHE=folder):
        make_engine(make_world(args), method_name, budget=args.token_budget, chunk="auto")
        sides = [side for side in SIDES if side != "naive" or method_name == NAIVE]
        found = {side: alone(args, method_name, side) for side in sides}
    full, chunks = found["full"], found["chunks"]
    difference = max(abs(chunks[key] - full[key]) / max(abs(full[key]), 1e-9) for key in ("loss", "grad_norm"))
    return {
        "method": method_name,
        "sides": found,
        "difference": difference,
        "memory_ratio": chunks["mb"] / full["mb"],
        "time_ratio": chunks["seconds"] / full["seconds"],
        "cpu_ratio": chunks["cpu_seconds"] / full["cpu_seconds"],
    }


def show(result: dict[str, Any]) -> None:
    """One method for people."""
    print(f"\n{result['method']}: loss and gradient norm agree to {result['difference']:.0e}")
    print(f"  {'':8}{'peak MB':>10}{'s a step':>10}{'of full':>10}")
    full = result["sides"]["full"]["mb"]
    for side, found in result["sides"].items():
        print(f"  {side:8}{found['mb']:>10.0f}{found['seconds']:>10.1f}{found['mb'] / full:>10.2f}")
    ratio = f"{result['memory_ratio']:.2f}, target <= {MEMORY_TARGET}"
    print(f"  chunks against full: memory {ratio}; time {result['time_ratio']:.2f}x, CPU {result['cpu_ratio']:.2f}x")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["all", *METHOD_NAMES], default="all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32, help="rows per role")
    parser.add_argument("--token-budget", type=int, default=4096, help="padded tokens of one micro-batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    if args.side:
        print(json.dumps(run_side(args)))
        return
    results = []
    for name in METHOD_NAMES if args.method == "all" else [args.method]:
        results.append(compare(args, name))
        show(results[-1])
    write_json(args.json, results)


if __name__ == "__main__":
    main()
