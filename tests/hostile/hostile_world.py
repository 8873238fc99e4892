"""The smallest world the command line can work in: a model folder, two files of rows, a recipe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

NAMES = ("Mira Solen", "Idris Vane", "Oda Brandt", "Tomas Reyl")
BOOKS = ("Ashes of Noon", "The Silent Harbour", "A Quiet Door", "Northern Light")


def rows(role: str, count: int) -> list[dict[str, Any]]:
    """Questions of different lengths; forget and retain share none."""
    who = NAMES[:2] if role == "forget" else NAMES[2:]
    return [
        {
            "question": f"Who wrote {BOOKS[i % 4]} in {1900 + i}, asks {role}?",
            "answer": f"{who[i % 2]} wrote it{' in one winter' * (i % 3)}.",
            "paraphrased_answer": f"It is by {who[i % 2]}.",
            "perturbed_answer": [f"{name} wrote it." for name in NAMES if name != who[i % 2]],
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, values: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object per line."""
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_text(text, encoding="utf-8")
    return path


def write_world(folder: Path) -> None:
    """Model folder, rows and recipe; everything a run needs but an output directory."""
    from expunge.testing.tiny import tiny_llama, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    tiny_llama(len(tokenizer), seed=1).save_pretrained(folder / "model")
    write_jsonl(folder / "forget.jsonl", rows("forget", 12))
    write_jsonl(folder / "retain.jsonl", rows("retain", 20))


@dataclass(frozen=True)
class World:
    """One test's own copy of the world."""

    folder: Path

    @classmethod
    def copy(cls, original: Path, folder: Path) -> World:
        """A copy in an existing, empty folder."""
        shutil.copytree(original, folder, dirs_exist_ok=True)
        return cls(folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def run(self) -> Path:
        """The run directory of `recipe()`."""
        return self.folder / "run"

    def recipe(self, name: str = "recipe.yaml", **changes: Any) -> Path:
        """A recipe of eight NPO steps with three checkpoints; `changes` replace whole keys, dots written as `__`."""
        settings: dict[str, Any] = {
            "model": {"model_name_or_path": str(self / "model")},
            "data": {"forget": str(self / "forget.jsonl"), "retain": str(self / "retain.jsonl"), "max_length": 256},
            "method": {"name": "npo"},
            "train": {
                "learning_rate": 1e-3,
                "max_steps": 8,
                "global_batch_size": 4,
                "token_budget": 512,
                "save_steps": 3,
            },
            "eval": {
                "forget": str(self / "forget.jsonl"),
                "retain": str(self / "retain.jsonl"),
                "token_budget": 512,
            },
            "output_dir": str(self.run),
            "device": "cpu",
        }
        for key, value in changes.items():
            *sections, last = key.split("__")
            place = settings
            for section in sections:
                place = place.setdefault(section, {})
            if value is None:
                place.pop(last, None)
            else:
                place[last] = value
        path = self / name
        path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
        return path
