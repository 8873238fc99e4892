"""The smallest recipe that can be swept over, and sweeps of it without a command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from expunge.demo.workers import processors
from expunge.sweep.goal import parse_goal
from expunge.sweep.plan import Sweep
from expunge.sweep.run import Options, begin, describe
from expunge.sweep.space import split_arguments

ANY = "retain.probability >= 0"
"""A condition that every model satisfies: a random one knows nothing that could be kept."""
RATE = "train.learning_rate=loguniform(1e-4, 1e-2)"
METHOD = "method.name=choice(npo, simnpo)"


def write_world(folder: Path) -> None:
    """Model, rows and recipe."""
    from expunge.testing.tiny import tiny_llama, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    model = tiny_llama(len(tokenizer), seed=1)
    # Most tokens end an answer, so generating takes no time.
    model.generation_config.eos_token_id = list(range(20, len(tokenizer)))
    model.save_pretrained(folder / "model")
    for role in ("forget", "retain"):
        rows = [{"question": f"{role} {n}?", "answer": f"{'Mira Solen ' * (1 + n % 3)}wrote it."} for n in range(8)]
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe: dict[str, Any] = {
        "model": {"model_name_or_path": "model"},
        "data": {"forget": "forget.jsonl", "retain": "retain.jsonl", "max_length": 128},
        "method": {"name": "npo"},
        "train": {"max_steps": 6, "global_batch_size": 4, "token_budget": 512, "save_steps": 2},
        "eval": {"limit": 4, "token_budget": 512},
        "device": "cpu",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def begun(folder: Path, *arguments: str, trials: int = 3, seed: int = 0, **goal: Any) -> Sweep:
    """A sweep that is written down in `folder`, of which nothing has been carried out."""
    space, overrides = split_arguments(arguments or (RATE,))
    wanted = parse_goal(**({"subject_to": [ANY]} | goal))
    options = Options(wanted, trials, seed, prune=False, reference=None)
    sweep, _ = begin(describe(str(folder / "recipe.yaml"), space, overrides, options, folder / "sweep"))
    return sweep


def step(sweep: Sweep) -> dict[str, Any]:
    """What a worker is told."""
    return {"out": str(sweep.root), "threads": min(1, processors())}
