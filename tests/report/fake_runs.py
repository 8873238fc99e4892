"""Evaluated runs of a world suite that no model ever made: every split of the suite, written as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from expunge.metrics.score import Score
from expunge.runs.manifest import DataInfo, ModelInfo, TemplateInfo, new_manifest
from expunge.runs.run import resume_key
from expunge.testing.tables import Row, answer_row, make_tables, text_row

TEMPLATE = "ba" * 32
FORMS = ("paraphrased", "cloze", "inverted", "multi_hop", "multiple_choice")
DIRECT = ("forget", "retain", "holdout", "neighbours")
SPLITS = (*DIRECT, *(f"{side}_{form}" for side in ("forget", "retain") for form in FORMS))
ROWS = {"forget": 12, "retain": 24, "holdout": 8, "neighbours": 6}
HOSTILE = "<script>alert(1)</script> & \u202etxet\u202c \x00 \"quoted\" <b onclick='x'>" + "word " * 200


class Made(NamedTuple):
    start: Path
    unlearned: Path
    retrained: Path


def strengths(*, forget: float, other: float, retain: float) -> dict[str, float]:
    """Extraction strength of every split: `forget` as trained, `other` in the other forms."""
    found = {"forget": forget, "retain": retain, "neighbours": retain * 0.98, "holdout": 0.03}
    found |= {f"forget_{form}": other for form in FORMS}
    return found | {f"retain_{form}": retain * 0.95 for form in FORMS}


START = strengths(forget=0.98, other=0.9, retain=0.97)
UNLEARNED = strengths(forget=0.02, other=0.04, retain=0.95)
RETRAINED = strengths(forget=0.03, other=0.05, retain=0.97)


def make_runs(root: Path, *, unlearned: Mapping[str, float] = UNLEARNED, **extra: Score) -> Made:
    """A starting, an unlearned and a retrained run, evaluated on the same rows."""
    made = Made(root / "start", root / "eua", root / "retrained")
    write_run(made.retrained, RETRAINED, model="c" * 64, kind="train", energy=0.6)
    write_run(made.start, START, model="a" * 64, kind="train", reference="c" * 64, energy=0.1)
    write_run(made.unlearned, unlearned, model="b" * 64, start=made.start, reference="c" * 64, energy=1.0, extra=extra)
    return made


def write_run(
    path: Path,
    values: Mapping[str, float],
    *,
    model: str,
    kind: Any = "unlearn",
    start: Path | None = None,
    start_digest: str = "a" * 64,
    reference: str | None = None,
    energy: float = 0.0,
    hostile: bool = True,
    status: str = "finished",
    template: str = TEMPLATE,
    rows_digest: str = "0",
    extra: Mapping[str, Score] | None = None,
) -> Path:
    """One run directory with its manifest, events, model folder and evaluation."""
    resolved: dict[str, Any] = {
        "kind": kind,
        "output_dir": str(path),
        "eval": {"suite": "world"},
        "model": {"model_name_or_path": None if start is None else str(start / "model")},
        "method": {"name": "eua" if kind == "unlearn" else "finetune", "gamma": 0.05},
        "train": {"learning_rate": 2e-3, "num_train_epochs": 10.0, "global_batch_size": 16, "optim": "adamw"},
    }
    name = "from_scratch" if start is None else str(start / "model")
    manifest = new_manifest(kind, given=resolved, resolved=resolved, resume_key=resume_key(resolved)).changed(
        status=status,
        model=ModelInfo(name=name, digest=start_digest),
        template=TemplateInfo(name="auto", digest=template),
        data=(DataInfo(role="forget", origin="forget.jsonl", digest="f" * 64, rows=12, format="question/answer"),),
        seeds={"seed": 0},
        steps=60 if status == "finished" else 20,
        total_steps=60,
    )
    (path / "model").mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(manifest.to_json()), encoding="utf-8")
    (path / "events.jsonl").write_text("".join(_events()), encoding="utf-8")
    folder = path / "evals" / f"world-canonical-{template[:8]}"
    folder.mkdir(parents=True)
    write_evaluation(folder, values, model=model, reference=reference, energy=energy, hostile=hostile,
                     template=template, rows_digest=rows_digest, extra=extra)  # fmt: skip
    return path


def write_evaluation(
    folder: Path,
    values: Mapping[str, float],
    *,
    model: str,
    reference: str | None,
    energy: float,
    hostile: bool,
    template: str = TEMPLATE,
    rows_digest: str = "0",
    extra: Mapping[str, Score] | None = None,
) -> None:
    texts, answers = _rows(values, energy=energy, hostile=hostile)
    tables = make_tables(texts, answers)
    pq.write_table(tables.trace, folder / "trace.parquet")
    pq.write_table(tables.generations, folder / "generations.parquet")
    spec = {
        "schema": 1,
        "suite": "world",
        "profile": "canonical",
        "template": {"name": "auto", "digest": template},
        "splits": {split: {"rows": ROWS.get(split, 12), "digest": rows_digest * 64} for split in values},
        "model_digest": model,
        "dtype": "float32",
    }
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    scores = {f"{split}.extraction_strength": score(value) for split, value in values.items()}
    scores |= {"energy.auroc": score(0.99), "forget_quality": Score(1e-9, None, None, 12, 12, 1.0, "higher")}
    scores |= extra or {}
    metrics = {
        "schema": 1,
        "suite": "world",
        "profile": "canonical",
        "metrics": {name: one.to_json() for name, one in scores.items()},
        "skipped": {"guard.over_refusal_rate": "a guard needs 500 retain prompts; half of those here are 42"},
        "start": {"model_digest": "a" * 64} if model == "b" * 64 else None,
        "reference": reference and {"evaluation": folder.name, "model_digest": reference, "dtype": "float32"},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def score(value: float, *, width: float = 0.02, n: int = 12) -> Score:
    return Score(value, max(0.0, value - width), min(1.0, value + width), n, n, 0.03, "lower")


def _events() -> list[str]:
    steps = [
        {"event": "step", "step": n, "total": 60, "epoch": n // 6, "lr": 1e-3, "loss": 9.0 / n, "forget": 100.0 / n**2,
         "retain": 0.1 + 0.01 * n, "grad_norm": 1.0, "tokens": 100, "seconds": 0.1, "eta_s": 1.0, "memory_mb": 100.0}
        for n in range(1, 61)
    ]  # fmt: skip
    return [json.dumps(event) + "\n" for event in steps]


def _rows(values: Mapping[str, float], *, energy: float, hostile: bool) -> tuple[list[Row], list[Row]]:
    numbers = np.random.default_rng(7)
    texts: list[Row] = []
    answers: list[Row] = []
    for split, value in values.items():
        shift = energy * 6 if split.startswith("forget") else 0.0
        for row in range(ROWS.get(split, 12)):
            hits = [False] * round(10 * (1 - value)) + [True] * round(10 * value) + [True]
            lse = [float(numbers.normal(20 - shift, 1))] + [10.0] * 10
            group, prompt = f"{split.split('_')[0]} person {row // 3}", f"{split} query {row}?"
            target = f"{split} reply {row} in its own words"
            texts.append(text_row(split, row, "answer", [-0.1] * 11, hit=hits, group=group, prompt=prompt,
                                  target=target, lse=lse))  # fmt: skip
            if split in DIRECT:
                output = HOSTILE if hostile else target
                answers.append(answer_row(split, row, group=group, prompt=prompt, reference=target, output=output))
    return texts, answers
