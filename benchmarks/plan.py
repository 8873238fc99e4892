"""What `expunge plan` says of memory, beside what a run of the same recipe then needs.

    python -m benchmarks.plan                          # ten runs on one CPU thread; some three minutes
    python -m benchmarks.plan --only kl_min            # those whose line holds the text
    python -m benchmarks.plan --default-allocator      # also with what glibc keeps of freed memory

Each run has a process of its own: it imports the libraries, carries out a tiny run (so that nothing is imported or set
up later), gives freed memory back, and then measures the peak of the resident set above what was there. glibc keeps
freed blocks of up to 32 MB in heaps with holes; `MALLOC_MMAP_THRESHOLD_=131072` makes it hand them back at once, so
that the resident set is what tensors hold, which is what a plan says. The last column is the same run without it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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


class Row(NamedTuple):
    """Predicted and measured peak, in MB of 10^6 bytes above the imported libraries."""

    predicted: float
    measured: float
    default: float | None
    """With glibc's allocator as it is; None where not asked for."""

    @property
    def error(self) -> float:
        """Share by which the plan is off; above 0: it said too much."""
        return self.predicted / self.measured - 1


def compare(case: Case, folder: Path, *, default_allocator: bool = False) -> Row:
    """Plan a case here and measure it in a process of its own."""
    from expunge import api

    recipe = write_recipe(case.shape, case.method, folder)
    predicted = api.plan(str(recipe), *case.overrides).memory.total / 1e6
    measured = _measured(case, folder, recipe, ALLOCATOR)
    return Row(predicted, measured, _measured(case, folder, recipe, {}) if default_allocator else None)


def _measured(case: Case, folder: Path, recipe: Path, allocator: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory() as place:
        overrides = [*case.overrides, f"output_dir={place}/run"]
        environment = {**os.environ, "EXPUNGE_CACHE": f"{place}/cache", **allocator}
        command = [sys.executable, "-m", "benchmarks.plan", "--measure", str(folder), str(recipe), *overrides]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(found.stderr)
    return float(found.stdout.split()[-1])


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
        "train": {"global_batch_size": 16, "max_steps": 3, "token_budget": 1024},
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


def measure(folder: Path, recipe: str, overrides: Sequence[str]) -> float:
    """Peak of a run in MB above what is there once everything is imported and set up."""
    import torch

    from expunge import api
    from expunge.bench.memory import PeakMemory

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        method = json.loads(Path(recipe).read_text(encoding="utf-8"))["method"]["name"]
        small = [each for each in overrides if not each.startswith("output_dir=")]
        api.unlearn(str(write_recipe("tiny", method, Path(place))), *small, f"output_dir={place}/run")
    memory = PeakMemory(torch.device("cpu"))
    api.unlearn(recipe, *overrides)
    return memory.mb()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose line holds this text")
    parser.add_argument("--default-allocator", action="store_true", help="measure with glibc's own settings as well")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        folder, recipe, *overrides = given.measure
        print(measure(Path(folder), recipe, overrides))
        return
    print(f"{'shape':6} {'method':7} {'settings':34} {'plan MB':>9} {'measured':>9} {'error':>7} {'by default':>11}")
    for case in CASES:
        line = f"{case.shape:6} {case.method:7} {' '.join(case.overrides):34}"
        if given.only not in line:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = compare(case, Path(folder), default_allocator=given.default_allocator)
        default = "" if row.default is None else f"{row.default:.1f}"
        print(f"{line} {row.predicted:9.1f} {row.measured:9.1f} {row.error:+7.1%} {default:>11}", flush=True)


if __name__ == "__main__":
    main()
