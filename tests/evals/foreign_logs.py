"""Small logs in the published formats of other software, and commands run on them in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from expunge.cli.main import main

Log = dict[str, Any]


class Said(NamedTuple):
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


class Shell(NamedTuple):
    """Runs command lines."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: object) -> Said:
        self.capsys.readouterr()
        code = main([str(word) for word in words])
        return Said(code, *self.capsys.readouterr())

    def metrics(self, *words: object) -> Log:
        """`metrics` of `expunge metrics ... --json`."""
        said = self("metrics", *words, "--json")
        assert said.code == 0, said.err
        found: Log = json.loads(said.out)["metrics"]
        return found

    def refused(self, *words: object) -> str:
        """The error of a command that must be refused without a traceback."""
        said = self(*words)
        assert said.code in (2, 3), (said.code, said.err)
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "\nhint: " in said.err
        return said.err


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def questions(rows: int, *, topic: str = "colour") -> list[str]:
    return [f"What is the {topic} of house number {row}?" for row in range(rows)]


def indexed(values: Sequence[Any]) -> Log:
    return {str(row): value for row, value in enumerate(values)}


def metric(name: str, values: Sequence[Any], *, aggregate: float | None = None) -> Log:
    """One metric of OpenUnlearning with one field."""
    found = float(np.mean(values)) if aggregate is None else aggregate
    return {"agg_value": found, "value_by_index": indexed([{name: value} for value in values])}


def likelihood(losses: Sequence[Any]) -> Log:
    probs = [np.exp(-np.asarray(loss)).tolist() for loss in losses]
    return {
        "agg_value": float(np.mean([np.mean(prob) for prob in probs])),
        "value_by_index": indexed([{"prob": prob, "avg_loss": loss} for prob, loss in zip(probs, losses, strict=True)]),
    }


def open_log(rows: int = 6, *, seed: int = 0, asked: list[str] | None = None) -> Log:
    """A log of OpenUnlearning with forget and holdout rows."""
    numbers = np.random.default_rng(seed)

    def losses() -> list[float]:
        return [float(value) for value in numbers.uniform(0.1, 3, rows)]

    wrong = [[float(value) for value in numbers.uniform(1, 4, 5)] for _ in range(rows)]
    answer, paraphrase, holdout = losses(), losses(), losses()
    recalls = [float(value) for value in numbers.uniform(0, 1, rows)]
    generated = [
        {
            "rouge1_recall": recall,
            "rougeL_f1": recall,
            "rougeL_recall": recall,
            "input": f"system\n\nYou are a helpful assistant.user\n\n{question}assistant\n\n",
            "ground_truth": f"Colour number {row}.",
            "generation": "Green.",
        }
        for row, (recall, question) in enumerate(zip(recalls, asked or questions(rows), strict=True))
    ]
    area = float(np.mean(np.subtract.outer(holdout, answer) > 0))
    sides = {"forget": metric("score", answer), "holdout": metric("score", holdout)}
    return {
        "forget_Q_A_Prob": likelihood(answer),
        "forget_Q_A_PARA_Prob": likelihood(paraphrase),
        "forget_Q_A_PERT_Prob": likelihood(wrong),
        "forget_Q_A_ROUGE": {"agg_value": float(np.mean(recalls)), "value_by_index": indexed(generated)},
        "exact_memorization": metric("score", recalls),
        "mia_loss": sides | {"agg_value": area},
        "mia_min_k": sides | {"agg_value": area},
        "forget_quality": {"agg_value": None},
    }


def tofu_file(losses: Log, asked: list[str] | None = None) -> Log:
    """One of TOFU's files, from the four lists of a recorded one."""
    names = ("avg_gt_loss", "average_perturb_loss", "avg_paraphrased_loss", "rougeL_recall")
    count = len(losses["avg_gt_loss"])
    texts = [[f"[INST] {question} [/INST]", "out", "right"] for question in asked or questions(count)]
    return {name: indexed(losses[name]) for name in names} | {"generated_text": indexed(texts)}
