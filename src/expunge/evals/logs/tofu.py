"""TOFU's own `eval_log_aggregated.json`: evaluated file -> quantity -> row -> value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.errors import DataError
from expunge.evals.logs.reading import by_row, listed, mapping, number_lists, numbers, read_json, require_keys, text
from expunge.evals.logs.record import ANSWER, PARAPHRASE, Generated, Log, LogRows

SPLIT_OF = {
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
    "eval_log_forget.json": "forget",
}
LOSSES = {"avg_gt_loss": ANSWER, "avg_paraphrased_loss": PARAPHRASE}
PERTURBED = "average_perturb_loss"
RECALL = "rougeL_recall"
TEXTS = "generated_text"
"""Row -> prompt, what was generated, the right answer."""


def read_tofu(path: Path) -> Log:
    """Read TOFU's aggregated log, or the log of one of its four files under that file's name.

    It holds no summary: TOFU computes that afterwards.

    Raises:
        UsageError: there is no such file.
        DataError: not such a log; a key that is missing; a value that is not a number; quantities over different
            rows. All are named.
    """
    log = mapping(read_json(path), what=str(path))
    if path.name in SPLIT_OF and path.name not in log:
        log = {path.name: log}
    else:
        require_keys(log, SPLIT_OF, what=str(path))
    rows = LogRows(authors=True)
    for file, split in SPLIT_OF.items():
        if file in log:
            _read(rows, split, mapping(log[file], what=f"{path}: {file}"), what=file)
    unread = tuple(file for file in log if file not in SPLIT_OF)
    return Log("tofu", "tofu", rows, {}, unread=unread)


def _read(rows: LogRows, split: str, log: Mapping[str, Any], *, what: str) -> None:
    require_keys(log, (*LOSSES, PERTURBED, RECALL), what=what)
    found = {name: by_row(log[name], what=f"{what} ({name})") for name in (*LOSSES, PERTURBED, RECALL)}
    first = found["avg_gt_loss"].keys()
    for name, values in found.items():
        if odd := sorted(values.keys() ^ first):
            raise DataError(
                f"{what}: {name} and avg_gt_loss are of different rows (rows {listed(odd)} are in one of them)",
                hint="evaluate again: the log mixes two data sets",
            )
    for name, variant in LOSSES.items():
        rows.loss(split, variant, numbers(found[name], what=f"{what} ({name})"))
    rows.perturbed(split, number_lists(found[PERTURBED], what=f"{what} ({PERTURBED})"))
    recall = numbers(found[RECALL], what=f"{what} ({RECALL})")
    words = numbers(by_row(log.get("rouge1_recall", {}), what=what), what=f"{what} (rouge1_recall)")
    texts = by_row(log.get(TEXTS, {}), what=f"{what} ({TEXTS})")
    rows.generated(split, {row: _generated(texts.get(row), row, recall, words) for row in first})


def _generated(texts: Any, row: int, recall: Mapping[int, float], words: Mapping[int, float]) -> Generated:
    prompt, output, reference = texts if isinstance(texts, list) and len(texts) == 3 else (None, None, None)
    rouge = {name: values[row] for name, values in ((RECALL, recall), ("rouge1_recall", words)) if row in values}
    return Generated(text(prompt), text(reference), text(output), rouge)
