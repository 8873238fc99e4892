"""Evaluation: expunge's two passes over the TOFU suite against an evaluator that runs the model for every metric.

    python -m benchmarks.evaluate               # forget10, tiny Llama, CPU, one thread: every row, some minutes
    python -m benchmarks.evaluate --rows 40     # the first rows of each split

Tokens are counted where they enter the model, padding and generation included. The values of both sides are printed
side by side and must agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from benchmarks.baselines.evaluate import Evaluator, Item
from benchmarks.common import PAD, build_model, shared_folder, write_json
from expunge.data.example import Example
from expunge.data.template import build_template
from expunge.evals.generate import generation_table
from expunge.evals.jobs import plan_jobs
from expunge.evals.suite import Suite, SuiteData, Tables
from expunge.evals.suites.tofu import tofu
from expunge.evals.trace import trace
from expunge.models.decode import end_ids

TOKEN_TARGET, SPEED_TARGET = 0.5, 2.5
TOLERANCE = 1e-4


class Meter:
    """Tokens that enter a model, and forwards."""

    def __init__(self) -> None:
        self.tokens = self.forwards = 0

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.tokens += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel()
            self.forwards += 1

        hook = model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def run_ours(model: Any, tokenizer: Any, suite: Suite, token_budget: int) -> dict[str, Any]:
    """Plan, trace, generate, measure."""
    marks, meter, cpu = [("", time.perf_counter())], Meter(), time.process_time()
    with meter.on(model):
        template = build_template("auto", tokenizer)
        plan = plan_jobs(suite, template, max_length=512)
        marks.append(("tokenise", time.perf_counter()))
        traced = trace(model, plan, pad_id=PAD, token_budget=token_budget)
        marks.append(("trace", time.perf_counter()))
        traced_tokens = meter.tokens
        generated, _ = generation_table(model, suite, template, tokenizer, end_ids=end_ids(model, template), pad_id=PAD)
        marks.append(("generate", time.perf_counter()))
    measured = suite.measure(Tables(traced.table, generated))
    marks.append(("measure", time.perf_counter()))
    return {
        "seconds": marks[-1][1] - marks[0][1],
        "cpu_seconds": time.process_time() - cpu,
        "parts": {name: now - before for (_, before), (name, now) in pairwise(marks)},
        "tokens": meter.tokens,
        "generation_tokens": meter.tokens - traced_tokens,
        "forwards": meter.forwards,
        "values": {name: score.value for name, score in measured.scores.items()},
    }


def item(example: Example) -> Item:
    """A row as the baseline takes it."""
    extra = example.extra
    wrong = list(extra.get("perturbed_answer", []))
    return Item(example.prompt[-1].content, example.answer, extra.get("paraphrased_answer"), wrong)


def run_baseline(model: Any, tokenizer: Any, suite: Suite) -> dict[str, Any]:
    """Every metric by itself."""
    splits = {split.name: [item(example) for example in split.examples] for split in suite.splits}
    meter, generation = Meter(), Meter()
    evaluator = Evaluator(model, tokenizer, max_new_tokens=suite.max_new_tokens)
    generate = evaluator.generate

    def metered(items: Any) -> list[str]:
        with generation.on(model):
            return generate(items)

    evaluator.generate = metered  # type: ignore[method-assign]
    with meter.on(model):
        start, cpu = time.perf_counter(), time.process_time()
        values = evaluator.run(splits)
        spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "seconds": spent,
        "cpu_seconds": cpu,
        "tokens": meter.tokens,
        "generation_tokens": generation.tokens,
        "forwards": meter.forwards,
        "values": values,
    }


def show(result: dict[str, Any]) -> None:
    ours, theirs = result["ours"], result["baseline"]
    print(f"{'':36}{'ours':>12}{'baseline':>12}{'difference':>14}")
    for name, value in ours["values"].items():
        other = theirs["values"].get(name)
        shown = "-" if other is None else f"{other:.6f}"
        mark = "" if other is None else f"{abs(value - other):.1e}{' !' if abs(value - other) > TOLERANCE else ''}"
        print(f"{name:36}{value:12.6f}{shown:>12}{mark:>14}")
    print()
    for key in ("forwards", "tokens", "generation_tokens"):
        print(f"{key.replace('_', ' '):36}{ours[key]:12d}{theirs[key]:12d}{ours[key] / theirs[key]:13.2f}x")
    for key in ("seconds", "cpu_seconds"):
        print(f"{key.replace('_', ' '):36}{ours[key]:12.1f}{theirs[key]:12.1f}{theirs[key] / ours[key]:13.2f}x")
    print(f"ours: {', '.join(f'{part} {spent:.1f} s' for part, spent in ours['parts'].items())}")
    print(f"tokens {result['token_ratio']:.2f}x, target <= {TOKEN_TARGET}x", end="; ")
    print(f"{result['speedup']:.2f}x faster, target >= {SPEED_TARGET}x")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="only the first rows of each split")
    parser.add_argument("--model", default="tofu_tiny_full", help="folder in SHARED/models")
    parser.add_argument("--shared", type=Path, default=shared_folder(), help="folder with data/tofu and models/")
    parser.add_argument("--token-budget", type=int, default=2048, help="padded tokens of one traced batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    if not args.shared.is_dir():
        raise SystemExit(f"no folder {args.shared}: give --shared or set EXPUNGE_SHARED")
    folder = args.shared / "models" / args.model
    model = build_model("tiny", torch.device("cpu"), folder=folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    suite = tofu(SuiteData(tofu=str(args.shared / "data" / "tofu"), limit=args.rows))
    ours = run_ours(model, tokenizer, suite, args.token_budget)
    theirs = run_baseline(model, tokenizer, suite)
    result = {
        "rows": {split.name: len(split.examples) for split in suite.splits},
        "ours": ours,
        "baseline": theirs,
        "token_ratio": ours["tokens"] / theirs["tokens"],
        "speedup": theirs["seconds"] / ours["seconds"],
    }
    show(result)
    write_json(args.json, result)


if __name__ == "__main__":
    main()
