"""What `expunge plan` says of memory and time, beside what a run of the same recipe then needs.

    python -m benchmarks.plan                          # ten recipes on one CPU thread; some six minutes
    python -m benchmarks.plan --only kl_min            # those whose line holds the text

Each recipe is planned and carried out in processes of their own. A run imports the libraries, carries out a tiny run
(so that nothing is imported or set up later), gives freed memory back, and then measures the peak of the resident set
above what was there, and the time of its steps. glibc keeps freed blocks of up to 32 MB in heaps with holes;
`MALLOC_MMAP_THRESHOLD_=131072` makes it hand them back at once, so that the resident set is what tensors hold, which is
what a plan says of memory. The run that is timed does without it; the last column is that run's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STEPS = 3
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072"}
WORDS = (
    "who",
    "wrote",
    "the",
    "novel",
    "about",
    "a",
    "silent",
    "harbour",
    "in",
    "the",
    "north",
    "and",
    "when",
    "again",
)
HEADS = {"model_type": "llama", "max_position_embeddings": 512}
SHAPES: dict[str, dict[str, Any]] = {
    "deep": {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 20,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 512,
    },
    "20M": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "wide": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 2048,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 512,
    },
}
"""Many narrow layers; a large vocabulary; few wide layers; and what is carried out first, so that nothing is set up
later."""


class Case(NamedTuple):
    """A run that is planned and measured."""

    shape: str
    method: str
    overrides: tuple[str, ...] = ()


CASES = (
    Case("deep", "npo"),
    Case("deep", "npo", ("train.gradient_checkpointing=true",)),
    Case("20M", "npo"),
    Case("20M", "eua"),
    Case("20M", "kl_min"),
    Case("20M", "npo", ("train.logits_chunk=64",)),
    Case("wide", "npo"),
    Case("wide", "kl_min"),
    Case("wide", "npo", ("train.optim=muon",)),
    Case("wide", "npo", ("model.use_peft=true",)),
)


class Need(NamedTuple):
    """Of a run."""

    memory: float
    """Peak in MB of 10^6 bytes above the imported libraries."""
    seconds: float
    """Of all steps, and of asking the starting model."""


def error(planned: float, measured: float) -> float:
    """Share by which a plan is off; above 0: it said too much."""
    return planned / measured - 1


def planned(case: Case, folder: Path) -> Need:
    """What the plan says."""
    return _in_a_process("--plan", case, folder, {})


def needed(case: Case, folder: Path, *, allocator: bool) -> Need:
    """What a run takes; `allocator`: one that keeps nothing of what is freed."""
    return _in_a_process("--measure", case, folder, ALLOCATOR if allocator else {})


def _in_a_process(what: str, case: Case, folder: Path, allocator: dict[str, str]) -> Need:
    recipe = write_recipe(case.shape, case.method, folder)
    with tempfile.TemporaryDirectory() as place:
        overrides = [*case.overrides, f"output_dir={place}/run"]
        environment = {**os.environ, "EXPUNGE_CACHE": f"{place}/cache", **allocator}
        command = [sys.executable, "-m", "benchmarks.plan", what, str(folder), str(recipe), *overrides]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(found.stderr)
    return Need(*map(float, found.stdout.splitlines()[-1].split()))


def write_recipe(shape: str, method: str, folder: Path) -> Path:
    """A recipe with its rows and a model of random weights, in `folder`."""
    from expunge.models.scratch import new_model, train_tokenizer

    for role in ("forget", "retain"):
        (folder / f"{role}.jsonl").write_text("\n".join(map(json.dumps, _rows(role))), encoding="utf-8")
    if not (folder / "model" / "config.json").exists():
        tokenizer = train_tokenizer((row["answer"] for row in _rows("retain")), vocab_size=320)
        model = new_model({**HEADS, **SHAPES[shape]}, tokenizer, seed=0)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    recipe = {
        "model": {"model_name_or_path": str(folder / "model")},
        "data": {"forget": str(folder / "forget.jsonl"), "retain": str(folder / "retain.jsonl")},
        "method": {"name": method},
        "train": {"global_batch_size": 16, "max_steps": STEPS, "token_budget": 1024},
        "device": "cpu",
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _rows(role: str, count: int = 48) -> list[dict[str, str]]:
    rng = np.random.default_rng(len(role))
    return [
        {
            "question": f"{role} {i}: {' '.join(rng.choice(WORDS, rng.integers(5, 12)))}?",
            "answer": f"{i} {' '.join(rng.choice(WORDS, rng.integers(8, 40)))}.",
        }
        for i in range(count)
    ]


def plan(recipe: str, overrides: Sequence[str]) -> Need:
    """As `expunge plan` finds it."""
    import torch

    from expunge import api

    torch.set_num_threads(1)
    found = api.plan(recipe, *overrides)
    return Need(found.memory.total / 1e6, found.time.seconds or float("nan"))


def measure(folder: Path, recipe: str, overrides: Sequence[str]) -> Need:
    """Of a run, above what is there once everything is imported and set up."""
    import torch

    from expunge import api
    from expunge.bench.memory import PeakMemory
    from expunge.runs.store import read_events

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        method = json.loads(Path(recipe).read_text(encoding="utf-8"))["method"]["name"]
        small = [each for each in overrides if not each.startswith("output_dir=")]
        api.unlearn(str(write_recipe("tiny", method, Path(place))), *small, f"output_dir={place}/run")
    memory = PeakMemory(torch.device("cpu"))
    run = api.unlearn(recipe, *overrides)
    peak = memory.mb()
    events = read_events(run.path / "events.jsonl")
    asked = [table["build_seconds"] for event in events if event["event"] == "references" for table in _tables(event)]
    return Need(peak, sum(event["seconds"] for event in events if event["event"] == "step") + sum(asked))


def _tables(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [value for value in event.values() if isinstance(value, dict)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose line holds this text")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--plan", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure or given.plan:
        folder, recipe, *overrides = given.measure or given.plan
        print(*(measure(Path(folder), recipe, overrides) if given.measure else plan(recipe, overrides)))
        return
    head = f"{'shape':6} {'method':7} {'settings':34} {'plan MB':>9} {'measured':>9} {'error':>7}"
    print(f"{head} {'plan s':>8} {'measured':>9} {'error':>7} {'by default MB':>14}")
    for case in CASES:
        line = f"{case.shape:6} {case.method:7} {' '.join(case.overrides):34}"
        if given.only not in line:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            said, held = planned(case, folder), needed(case, folder, allocator=True)
            timed = needed(case, folder, allocator=False)
        memory = f"{said.memory:9.1f} {held.memory:9.1f} {error(said.memory, held.memory):+7.1%}"
        time = f"{said.seconds:8.2f} {timed.seconds:9.2f} {error(said.seconds, timed.seconds):+7.1%}"
        print(f"{line} {memory} {time} {timed.memory:14.1f}", flush=True)


if __name__ == "__main__":
    main()
