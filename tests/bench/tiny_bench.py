"""`expunge bench methods` on models that learn for a handful of steps. As a program it takes the command's options."""

from __future__ import annotations

import sys

from expunge.bench import plan, run
from expunge.cli.main import main
from expunge.demo.plan import Size


def tiny_size(people: int) -> Size:
    train = ("train.max_steps=3", "train.global_batch_size=8", "model.from_scratch.num_hidden_layers=1", "eval.limit=3")
    return Size(people=people, rate=0.05, train=train)


def shrink() -> None:
    """Everything that a cell or a base model takes seconds for; what a bench does with them stays."""
    run.bench_size = tiny_size
    plan.COMMON = {**plan.COMMON, "train.max_steps": 2, "train.global_batch_size": 8, "eval.limit": 3}


if __name__ == "__main__":
    shrink()
    sys.exit(main(["bench", "methods", *sys.argv[1:]]))
