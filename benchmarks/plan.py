"""What `expunge plan` says of memory, beside what a run of the same recipe then needs.

Each run has a process of its own: it imports the libraries, carries out a tiny run (so that nothing is imported or set
up later), gives freed memory back, and then measures the peak of the resident set above what was there.
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

WORDS = [
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
    "was",
    "it",
    "first",
    "published",
    "there",
    "again",
]
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
}
"""Many narrow layers; a large vocabulary; few wide layers."""


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

    case: Case
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Share by which the plan is off; above 0: it said too much."""
        return self.predicted / self.measured - 1


def compare(case: Case, folder: Path) -> Row:
    """Plan a case here and measure it in a process of its own."""
    from expunge import api

    recipe = write_recipe(case.shape, case.method, folder)
    overrides = (*case.overrides, f"output_dir={folder / 'run'}")
    predicted = api.plan(str(recipe), *overrides).memory.total / 1e6
    environment = {**os.environ, "EXPUNGE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "benchmarks.plan", "--measure", str(folder), str(recipe), *overrides]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(found.stderr)
    return Row(case, predicted, float(found.stdout))


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
        "train": {"global_batch_size": 24, "max_steps": 3, "token_budget": 2048, "save_steps": 2},
        "device": "cpu",
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _rows(role: str, count: int = 64) -> list[dict[str, str]]:
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
    tiny = {**HEADS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    small = folder / "tiny"
    small.mkdir(exist_ok=True)
    SHAPES["tiny"] = {**tiny, "num_key_value_heads": 4, "vocab_size": 512}
    first = json.loads(Path(recipe).read_text(encoding="utf-8"))["method"]["name"]
    other = [each for each in overrides if not each.startswith(("output_dir=", "train.token_budget="))]
    api.unlearn(str(write_recipe("tiny", first, small)), *other, f"output_dir={small / 'run'}")
    memory = PeakMemory(torch.device("cpu"))
    api.unlearn(recipe, *overrides)
    return memory.mb()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="cases whose text holds this")
    given = parser.parse_args()
    if given.measure:
        folder, recipe, *overrides = given.measure
        sys.stdout.write(str(measure(Path(folder), recipe, overrides)))
        return
    print(f"{'shape':6} {'method':8} {'settings':38} {'plan MB':>9} {'measured':>9} {'error':>7}")
    for case in CASES:
        text = ", ".join(case.overrides)
        if given.only not in f"{case.shape} {case.method} {text}":
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = compare(case, Path(folder))
        error = f"{row.error:+.1%}"
        print(
            f"{case.shape:6} {case.method:8} {text:38} {row.predicted:9.1f} {row.measured:9.1f} {error:>7}", flush=True
        )


if __name__ == "__main__":
    main()
