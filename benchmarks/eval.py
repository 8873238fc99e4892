"""Evaluation: expunge's passes over the TOFU suite against an evaluator that runs the model for every metric.

    python -m benchmarks.eval                        # forget10, tiny Llama, CPU, one thread: every row, a quarter hour
    python -m benchmarks.eval --rows 40 --pairs 1    # the first rows of each split, a minute

All metrics of TOFU, extraction strength and exact memorisation, and six membership attacks. What is counted are tokens
that enter a model, with padding and without. Each side first runs alone in a process of its own, which gives tokens,
values and peak memory; then both run by turns in one process, which gives the times. Gradient norms are timed apart.
The values of both sides are printed and must agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from benchmarks.baselines.eval import GENERATION, LIKELIHOOD, PARTS, PERTURBED, REFERENCE, RIGHT, Evaluator, Item
from benchmarks.common import PAD, build_model, ratio_of, shared_folder, write_json
from expunge.bench.memory import PeakMemory
from expunge.data.collate import collate
from expunge.data.example import Example
from expunge.data.template import build_template
from expunge.evals.drafts import drafts_of
from expunge.evals.generate import generation_table
from expunge.evals.jobs import Job, Plan, plan_jobs
from expunge.evals.suite import Suite, SuiteData, Tables
from expunge.evals.suites.tofu import tofu
from expunge.evals.trace import trace
from expunge.metrics.auc import auc
from expunge.metrics.membership import reference_score
from expunge.metrics.view import view_split
from expunge.models.decode import end_ids
from expunge.models.head import projection
from expunge.models.score import score

LIKELIHOOD_TARGET, TOKEN_TARGET, SPEED_TARGET, MEMORY_TARGET = 5.0, 0.45, 3.0, 0.5
TOLERANCE = 1e-4
SIDES = ("ours", "baseline")
MEMBERS = ("forget", "holdout")


class World(NamedTuple):
    """What both sides measure."""

    model: Any
    reference: Any
    tokenizer: Any
    suite: Suite
    token_budget: int


class Meter:
    """Tokens that enter models, by what they are for."""

    def __init__(self, texts: Mapping[bytes, str] | None = None) -> None:
        self.texts = texts or {}
        """Token ids -> what a row is for, where it is not the whole batch's."""
        self.padded: Counter[str] = Counter()
        self.real: Counter[str] = Counter()
        self.forwards = 0
        self._label = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What every forward pass in the block is for."""
        before, self._label = self._label, name
        try:
            yield
        finally:
            self._label = before

    @contextmanager
    def on(self, *models: Any) -> Iterator[None]:
        """Count what enters these."""
        hooks = [model.register_forward_pre_hook(self._count, with_kwargs=True) for model in models]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.forwards += 1
        for row in ids:
            real = row[row != PAD]
            label = self._label or self.texts[real.numpy().astype(np.int32).tobytes()]
            self.padded[label] += row.numel()
            self.real[label] += len(real)

    def counts(self) -> dict[str, Any]:
        """Everything counted."""
        return {"padded": dict(self.padded), "real": dict(self.real), "forwards": self.forwards}


def part_of(job: Job) -> str:
    """What the forward pass over a traced text is for."""
    if job.variant.startswith("perturbed"):
        return PERTURBED
    return LIKELIHOOD if job.split in MEMBERS and job.variant == "answer" else RIGHT


def part_labels(plan: Plan) -> dict[bytes, str]:
    """Token ids of every text -> what it is run for; what two splits share counts as the first one's."""
    found: dict[bytes, str] = {}
    for job in plan.jobs:
        found.setdefault(plan.dataset.encoded[job.unique].input_ids.astype(np.int32).tobytes(), part_of(job))
    return found


def our_plan(world: World) -> Plan:
    return plan_jobs(world.suite, build_template("auto", world.tokenizer), max_length=512)


def members(suite: Suite) -> Suite:
    """The answers that membership attacks compare."""
    splits = [replace(split, variants=("answer",), stats=False) for split in suite.splits if split.name in MEMBERS]
    return replace(suite, splits=tuple(splits))


@dataclass
class Ours:
    """Plan, trace, generate, measure; the reference model's answers are traced once as well."""

    world: World
    meter: Meter

    def run(self) -> dict[str, float]:
        """Every score but the gradient norms'."""
        world, template = self.world, build_template("auto", self.world.tokenizer)
        traced = trace(world.model, our_plan(world), pad_id=PAD, token_budget=world.token_budget).table
        with self.meter.part(REFERENCE):
            plan = plan_jobs(members(world.suite), template, max_length=512)
            other = trace(world.reference, plan, pad_id=PAD, token_budget=world.token_budget).table
        with self.meter.part(GENERATION):
            answers = generation_table(
                world.model,
                world.suite,
                template,
                world.tokenizer,
                end_ids=end_ids(world.model, template),
                pad_id=PAD,
                drafts=drafts_of(traced),
            ).table
        scores = {name: each.value for name, each in world.suite.measure(Tables(traced, answers)).scores.items()}
        losses = {name: [view_split(table, answers, name).loss for table in (traced, other)] for name in MEMBERS}
        scores["membership.reference_auc"] = auc(*(reference_score(*losses[name]) for name in MEMBERS))
        return scores

    def gradient_auc(self) -> float:
        """The gradient-norm attack: one row, one backward pass."""
        plan = plan_jobs(members(self.world.suite), build_template("auto", self.world.tokenizer), max_length=512)
        norms: dict[str, list[float]] = {name: [] for name in MEMBERS}
        parameters = list(self.world.model.parameters())
        for job in plan.jobs:
            batch = collate(plan.dataset, [job.unique], pad_id=PAD)
            loss = -score(self.world.model, batch).logps[~batch.is_end].mean()
            grads = torch.autograd.grad(loss, parameters)
            norms[job.split].append(-float(torch.stack([grad.norm() for grad in grads]).norm()))
        return auc(*(np.array(norms[name]) for name in MEMBERS))


@dataclass
class Baseline:
    """Every metric by itself."""

    world: World
    meter: Meter

    def _evaluator(self) -> Evaluator:
        world = self.world
        limit = world.suite.max_new_tokens
        return Evaluator(world.model, world.tokenizer, world.reference, max_new_tokens=limit, part=self.meter.part)

    def _items(self) -> dict[str, list[Item]]:
        return {split.name: [item(example) for example in split.examples] for split in self.world.suite.splits}

    def run(self) -> dict[str, float]:
        """Every score but the gradient norms'."""
        return self._evaluator().run(self._items())

    def gradient_auc(self) -> float:
        """The gradient-norm attack."""
        evaluator, items = self._evaluator(), self._items()
        return auc(*(evaluator.gradnorm(items[name]) for name in MEMBERS))


def item(example: Example) -> Item:
    """A row as the baseline takes it."""
    extra = example.extra
    wrong = list(extra.get("perturbed_answer", []))
    return Item(example.prompt[-1].content, example.answer, extra.get("paraphrased_answer"), wrong)


def side_of(name: str, world: World, *, metered: bool) -> Ours | Baseline:
    """A side by its name; what is asked of a model once (four tokens, how its head works) is asked here."""
    if name == "baseline":
        return Baseline(world, Meter())
    for model in (world.model, world.reference):
        projection(model)
    return Ours(world, Meter(part_labels(our_plan(world)) if metered else None))


class Spent(NamedTuple):
    """What a call took."""

    seconds: float
    cpu_seconds: float


def timed(work: Callable[[], object]) -> Spent:
    """Wall seconds, and those of the processor, which the machine's other work does not lengthen as much."""
    start, before = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - start, time.process_time() - before)


def run_alone(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The body of a side's process: tokens, values, peak memory above libraries, models and rows, gradient norms."""
    world = make_world(args)
    side = side_of(name, world, metered=True)
    peak = PeakMemory(torch.device("cpu"))
    with side.meter.on(world.model, world.reference):
        values = side.run()
    found = {"values": values, "mb": peak.mb(), **side.meter.counts()}
    spent = timed(lambda: values.update({"membership.gradnorm_auc": side.gradient_auc()}))
    return found | {"gradients": spent._asdict()}


def alone(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.eval", "--side", name]
    for option in ("rows", "model", "reference", "shared", "token_budget", "threads"):
        value = getattr(args, option)
        command += [] if value is None else [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the process of {name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def by_turns(world: World, *, pairs: int) -> dict[str, list[Spent]]:
    """Times of both sides, the order turned round each time, after a warm-up on two rows of each split."""
    few = tuple(replace(split, examples=split.examples[:2]) for split in world.suite.splits)
    found: dict[str, list[Spent]] = {name: [] for name in SIDES}
    for name in SIDES:
        side_of(name, world._replace(suite=replace(world.suite, splits=few)), metered=False).run()
    for number in range(pairs):
        for name in SIDES if number % 2 == 0 else reversed(SIDES):
            found[name].append(timed(side_of(name, world, metered=False).run))
        last = [f"{found[name][-1].seconds:.1f} ({found[name][-1].cpu_seconds:.1f})" for name in SIDES]
        print(f"pair {number + 1}, seconds (CPU seconds): {' / '.join(last)}", flush=True)
    return found


def disagreeing(result: dict[str, Any]) -> list[str]:
    """Metrics whose values differ by more than the tolerance."""
    ours, theirs = (result[name]["values"] for name in SIDES)
    return [name for name, value in theirs.items() if not abs(ours[name] - value) <= TOLERANCE]


def show_values(result: dict[str, Any]) -> None:
    """Both sides' values of what both measure."""
    ours, theirs = (result[name]["values"] for name in SIDES)
    wrong = disagreeing(result)
    print(f"{'':36}{'ours':>12}{'baseline':>12}{'difference':>14}")
    for name, value in theirs.items():
        gap = abs(ours[name] - value)
        print(f"{name:36}{ours[name]:12.6f}{value:12.6f}{gap:14.1e}{' !' if name in wrong else ''}")
    print(f"{len(theirs) - len(wrong)} of {len(theirs)} values agree to {TOLERANCE:g}\n")


def show_tokens(result: dict[str, Any]) -> None:
    """Tokens by what they are for."""
    print(f"{'tokens through a model':30}{'padded':>22}{'':12}{'without padding':>22}")
    print(f"{'':30}{'ours':>11}{'baseline':>11}{'ratio':>12}{'ours':>11}{'baseline':>11}{'ratio':>12}")
    for part in (*PARTS, "total"):
        cells = ""
        for kind in ("padded", "real"):
            ours, theirs = (tokens(result[name][kind], part) for name in SIDES)
            cells += f"{ours:11d}{theirs:11d}{ours / theirs:12.3f}"
        print(f"{part:30}{cells}")
    print(f"{'forwards':30}{result['ours']['forwards']:11d}{result['baseline']['forwards']:11d}")


def tokens(counts: Mapping[str, int], part: str) -> int:
    """Those of a part, or of all."""
    return sum(counts.values()) if part == "total" else counts.get(part, 0)


def show_costs(result: dict[str, Any]) -> None:
    """Memory and gradient norms."""
    ours, theirs = (result[name] for name in SIDES)
    print(f"peak memory above libraries, models and rows, MB: {ours['mb']:.0f} / {theirs['mb']:.0f}")
    grads = [[f"{side['gradients'][clock]:.1f}" for side in (ours, theirs)] for clock in Spent._fields]
    print(f"gradient norms: seconds {' / '.join(grads[0])}, CPU seconds {' / '.join(grads[1])}", flush=True)


def show_targets(result: dict[str, Any]) -> None:
    """What was to be reached."""
    ratios = result["ratios"]
    print(f"likelihood {1 / ratios['likelihood']:.2f}x fewer tokens, target {LIKELIHOOD_TARGET:g}")
    print(f"all tokens {ratios['total']:.3f} of the baseline's, target {TOKEN_TARGET}")
    print(f"peak memory {ratios['memory']:.2f} of the baseline's, target {MEMORY_TARGET}")
    for clock, ratio in result["times"].items():
        print(f"{clock.replace('_', ' ')}: {ratio['text']} faster, target {SPEED_TARGET:g}")


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides alone, then by turns; printed as it comes."""
    result: dict[str, Any] = {name: alone(name, args) for name in SIDES}
    for show in (show_values, show_tokens, show_costs):
        show(result)
    ours, theirs = (result[name] for name in SIDES)
    world = make_world(args)
    measured = by_turns(world, pairs=args.pairs)
    for name in SIDES:
        result[name]["times"] = {clock: [getattr(spent, clock) for spent in measured[name]] for clock in Spent._fields}
    ratios = {clock: ratio_of(theirs["times"][clock], ours["times"][clock]) for clock in Spent._fields if args.pairs}
    result["times"] = {clock: ratio._asdict() | {"text": str(ratio)} for clock, ratio in ratios.items()}
    result["ratios"] = {
        "likelihood": tokens(ours["padded"], LIKELIHOOD) / tokens(theirs["padded"], LIKELIHOOD),
        "total": tokens(ours["padded"], "total") / tokens(theirs["padded"], "total"),
        "memory": ours["mb"] / theirs["mb"],
    }
    show_targets(result)
    return result | {"rows": {split.name: len(split.examples) for split in world.suite.splits}}


def make_world(args: argparse.Namespace) -> World:
    """Models and rows."""
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    if not args.shared.is_dir():
        raise SystemExit(f"no folder {args.shared}: give --shared or set EXPUNGE_SHARED")
    folders = [args.shared / "models" / name for name in (args.model, args.reference)]
    model, reference = (build_model("tiny", torch.device("cpu"), folder=folder).eval() for folder in folders)
    suite = tofu(SuiteData(tofu=str(args.shared / "data" / "tofu"), limit=args.rows))
    return World(model, reference, AutoTokenizer.from_pretrained(folders[0]), suite, args.token_budget)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="only the first rows of each split")
    parser.add_argument("--pairs", type=int, default=3, help="how often both sides are timed; 0: not at all")
    parser.add_argument("--model", default="tofu_tiny_full", help="folder in SHARED/models")
    parser.add_argument("--reference", default="tofu_tiny_retain90", help="the reference attack's model, likewise")
    parser.add_argument("--shared", type=Path, default=shared_folder(), help="folder with data/tofu and models/")
    parser.add_argument("--token-budget", type=int, default=2048, help="padded tokens of one traced batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.side:
        print(json.dumps(run_alone(args.side, args)))
        return
    result = compare(args)
    write_json(args.json, result)
    if wrong := disagreeing(result):
        raise SystemExit(f"the sides disagree on {', '.join(wrong)}")


if __name__ == "__main__":
    main()
