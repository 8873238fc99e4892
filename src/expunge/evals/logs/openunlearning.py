"""OpenUnlearning's `*_EVAL.json`: metric -> `agg_value` and `value_by_index`, one object per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import DataError
from expunge.evals.logs.reading import (
    by_row,
    field,
    listed,
    mapping,
    number,
    number_lists,
    numbers,
    read_json,
    require_keys,
    text,
)
from expunge.evals.logs.record import ANSWER, PARAPHRASE, Generated, Log, LogRows
from expunge.evals.suites.muse_openunlearning import ROUGE as MUSE_ROUGE
from expunge.evals.suites.muse_splits import FORGET_TEXTS, HOLDOUT, VERBATIM
from expunge.evals.suites.tofu_openunlearning import GIBBERISH, MEMBERSHIP, MEMORIZATION, PREFIX

ROWS, VALUE = "value_by_index", "agg_value"
ROUGE = ("rouge1_recall", "rougeL_f1", "rougeL_recall")

_COMPUTED = {"model_utility", "forget_quality", "privleak", "forget_truth_ratio"} | {
    f"{prefix}_{metric}" for prefix in PREFIX.values() for metric in ("Truth_Ratio", "Q_A_Prob_normalised")
}
"""What follows from other metrics' rows, and is computed from them."""


class _Benchmark(NamedTuple):
    """Where a benchmark's rows go that its metrics do not name."""

    suite: str
    sides: Mapping[str, str]
    """Side of a membership attack in the log -> split."""
    memorized: str
    """Split of extraction strength and exact memorisation."""
    answered: Mapping[str, str]
    """ROUGE metric -> split."""


_TOFU = _Benchmark(
    "tofu",
    {"forget": "forget", "holdout": "holdout"},
    "forget",
    {f"{prefix}_Q_A_ROUGE": split for split, prefix in PREFIX.items()},
)
_MUSE = _Benchmark("muse", {"forget": FORGET_TEXTS, "holdout": HOLDOUT}, VERBATIM, MUSE_ROUGE)


class _Metric(NamedTuple):
    """One metric's rows on their way in."""

    name: str
    split: str
    entries: Mapping[int, Any]

    def field(self, name: str) -> dict[int, Any]:
        return field(self.entries, name, what=self.name)


def _loss(variant: str) -> Callable[[LogRows, _Metric], None]:
    def read(rows: LogRows, metric: _Metric) -> None:
        values = numbers(metric.field("avg_loss"), what=f"{metric.name} (avg_loss)")
        rows.loss(metric.split, variant, values)

    return read


def _perturbed(rows: LogRows, metric: _Metric) -> None:
    rows.perturbed(metric.split, number_lists(metric.field("avg_loss"), what=f"{metric.name} (avg_loss)"))


def _rouge(rows: LogRows, metric: _Metric) -> None:
    scores = {name: numbers(metric.field(name), what=f"{metric.name} ({name})") for name in ROUGE}
    rows.generated(
        metric.split,
        {
            row: Generated(
                text(entry.get("input")),
                text(entry.get("ground_truth")),
                text(entry.get("generation")),
                {name: values[row] for name, values in scores.items() if row in values},
            )
            for row, entry in metric.entries.items()
        },
    )


def _score(rows: LogRows, metric: _Metric) -> None:
    rows.score(metric.split, metric.name, numbers(metric.field("score"), what=f"{metric.name}.{metric.split}"))


_BY_SPLIT: dict[str, Callable[[LogRows, _Metric], None]] = {
    "Q_A_Prob": _loss(ANSWER),
    "Q_A_PARA_Prob": _loss(PARAPHRASE),
    "Q_A_PERT_Prob": _perturbed,
    "Q_A_ROUGE": _rouge,
}


def read_openunlearning(path: Path) -> Log:
    """Read a log of OpenUnlearning's evaluation on TOFU or on MUSE.

    Raises:
        UsageError: there is no such file.
        DataError: not such a log; a key that is missing; a value that is not a number. All are named.
    """
    log = mapping(read_json(path), what=str(path))
    if log and all(isinstance(value, int | float) for value in log.values()):
        raise DataError(
            f"{path} is a summary: it has values and no rows", hint="give the `*_EVAL.json` that was written beside it"
        )
    # Names of this form are of TOFU, whose rows come author by author.
    rows = LogRows(authors=any("_Q_A_" in name for name in log))
    of = _MUSE if any(name in MUSE_ROUGE for name in log) else _TOFU
    unread: list[str] = []
    for name, entry in log.items():
        if name not in _COMPUTED and not _read(rows, name, mapping(entry, what=f"{path}: {name}"), of):
            unread.append(name)
    if not rows.rows():
        raise DataError(
            f"{path} holds no rows of a metric that is known here (it has: {listed(log) or 'nothing'})",
            hint="for logs of other software say --from tofu or --from muse",
        )
    for name, split in of.answered.items():
        if lacking := rows.unanswered(split):
            raise DataError(
                f"{path}: {name} lacks {len(lacking)} rows that other metrics have (rows {listed(lacking)})",
                hint="evaluate again: the log mixes two data sets",
            )
    return Log(of.suite, "openunlearning", rows, _summary(log), unread=tuple(unread))


def _read(rows: LogRows, name: str, entry: Mapping[str, Any], of: _Benchmark) -> bool:
    """Take in one metric; whether it is known."""
    if name in MEMBERSHIP:
        require_keys(entry, of.sides, what=name)
        for side, split in of.sides.items():
            _score(rows, _metric(name, split, entry[side]))
            if name == "mia_loss" and split != "forget":
                # What the attack scores is the average loss itself; it is all a log has of these rows.
                rows.loss(split, ANSWER, numbers(_metric(name, split, entry[side]).field("score"), what=name))
        return True
    if name in MEMORIZATION:
        _score(rows, _metric(name, of.memorized, entry))
        return True
    if name == GIBBERISH:
        _score(rows, _metric(name, "forget", entry))
        return True
    if name in MUSE_ROUGE:
        _rouge(rows, _metric(name, MUSE_ROUGE[name], entry))
        return True
    for split, prefix in PREFIX.items():
        reader = _BY_SPLIT.get(name.removeprefix(f"{prefix}_")) if name.startswith(f"{prefix}_") else None
        if reader is not None:
            reader(rows, _metric(name, split, entry))
            return True
    return False


def _metric(name: str, split: str, entry: Any) -> _Metric:
    found = mapping(entry, what=f"{name} of {split}")
    require_keys(found, (ROWS,), what=f"{name} of {split}")
    entries = by_row(found[ROWS], what=f"{name} of {split}")
    # OpenUnlearning writes null for a row that it could not measure at all.
    return _Metric(name, split, {row: entry for row, entry in entries.items() if entry is not None})


def _summary(log: Mapping[str, Any]) -> dict[str, float]:
    values = {name: entry.get(VALUE) for name, entry in log.items() if isinstance(entry, Mapping)}
    return {name: number(value, what=f"{name} ({VALUE})") for name, value in values.items() if value is not None}
