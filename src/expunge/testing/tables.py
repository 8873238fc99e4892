"""Evaluation tables without a model: rows written by hand, or a whole random TOFU-like evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from expunge.evals.suite import Tables
from expunge.runs.tables import GENERATIONS, trace_schema

Row = dict[str, Any]


def text_row(
    split: str,
    row: int,
    variant: str,
    logp: Sequence[float],
    *,
    hit: Sequence[bool] | None = None,
    ends: bool = True,
    group: str | None = None,
    moments: bool = False,
    **columns: Any,
) -> Row:
    """One row of a trace.

    Args:
        split: the split.
        row: its row number.
        variant: `answer`, `paraphrase`, `perturbed_0`, ...
        logp: nats per token; its length is the number of tokens.
        hit: greedy hits; all False unless given.
        ends: whether the last token is the end token.
        group: person or author.
        moments: store mu = -1 and var = 1 (or the given ones) and rank 1.
        columns: any other column of the schema, in place of its default.
    """
    n = len(logp)
    made: Row = {
        "split": split,
        "row": row,
        "variant": variant,
        "id": f"{split}:{row}",
        "group": group,
        "prompt": f"question {row}",
        "target": f"answer {row}",
        "target_zlib": 50,
        "target_chars": 10,
        "num_prompt": 5,
        "truncated": False,
        "token": list(range(n)),
        "is_end": [ends and i == n - 1 for i in range(n)],
        "logp": list(logp),
        "hit": list(hit) if hit is not None else [False] * n,
        "lse": [10.0] * n,
        "rank": [1] * n if moments else None,
        "mu": [-1.0] * n if moments else None,
        "var": [1.0] * n if moments else None,
    }
    return made | columns


def answer_row(split: str, row: int, *, rouge: float = 0.5, group: str | None = None, **columns: Any) -> Row:
    """One row of the generations; `rouge` fills all three measures, and says how fluent it is."""
    made: Row = {
        "split": split,
        "row": row,
        "id": f"{split}:{row}",
        "group": group,
        "prompt": f"question {row}",
        "reference": f"answer {row}",
        "output": f"answer {row}",
        "token": [1, 2],
        "ended": True,
        "rouge1_recall": rouge,
        "rougeL_recall": rouge,
        "rougeL_f1": rouge,
        "scores": [("ngram_entropy", 4 * rouge), ("repetition", 1 - rouge)],
    }
    return made | columns


def make_tables(
    texts: Iterable[Row], answers: Iterable[Row] = (), *, exact: bool = False, temperatures: Sequence[float] = ()
) -> Tables:
    """The two tables, with their schemas.

    Args:
        texts: rows of the trace.
        answers: rows of the generations.
        exact: keep float64 where the schema has float32.
        temperatures: whose log-sum-exps the texts have, under `lse_tT`.
    """
    schema = trace_schema(temperatures)
    if exact:
        schema = pa.schema([_widened(field) for field in schema], metadata=schema.metadata)
    return Tables(
        pa.Table.from_pylist(list(texts), schema=schema), pa.Table.from_pylist(list(answers), schema=GENERATIONS)
    )


def _widened(field: pa.Field) -> pa.Field:
    return field.with_type(pa.list_(pa.float64())) if field.type == pa.list_(pa.float32()) else field


def random_tables(*, seed: int = 0, rows: int = 40, per_group: int = 4, small: int = 11, knows: float = 1.0) -> Tables:
    """A TOFU-like evaluation of a model that does not exist.

    Args:
        seed: of the model's numbers; row ids, tokens and lengths do not depend on it, so that two seeds are two
            models measured on the same rows.
        rows: of forget, retain and holdout.
        per_group: rows of one author.
        small: rows of real_authors and world_facts, which have no authors.
        knows: lowers the answers' losses on forget and retain.
    """
    shape, numbers = np.random.default_rng(12345), np.random.default_rng(seed)
    texts: list[Row] = []
    answers: list[Row] = []
    for split, count in (
        ("forget", rows),
        ("retain", rows),
        ("holdout", rows),
        ("real_authors", small),
        ("world_facts", small),
    ):
        paired = split in ("forget", "retain")
        variants = ["answer"] + ["paraphrase"] * paired + [f"perturbed_{i}" for i in range(5 if paired else 3)]
        for row in range(count):
            group = f"{split} author {row // per_group}" if paired or split == "holdout" else None
            for variant in variants if split != "holdout" else ["answer"]:
                n = int(shape.integers(3, 12))
                scale = 0.5 / knows if variant == "answer" and paired else 1.5
                texts.append(_random_text(numbers, split, row, variant, n, scale, group, paired or split == "holdout"))
            if split != "holdout":
                answers.append(answer_row(split, row, rouge=float(numbers.uniform(0.1, 1)), group=group))
    return make_tables(texts, answers)


def _random_text(
    numbers: np.random.Generator,
    split: str,
    row: int,
    variant: str,
    n: int,
    scale: float,
    group: str | None,
    stats: bool,
) -> Row:
    logp = -numbers.exponential(scale, size=n)
    found = text_row(split, row, variant, logp.tolist(), hit=(logp > -0.7).tolist(), group=group, moments=stats)
    found["lse"] = numbers.normal(10, 1, size=n).tolist()
    if stats:
        found["mu"], found["var"] = (-numbers.exponential(1.5, n)).tolist(), numbers.uniform(0.1, 2, n).tolist()
    return found
