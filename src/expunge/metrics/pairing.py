"""Whether two models were measured on the same rows: a comparison row by row means nothing otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from expunge.errors import MetricError
from expunge.metrics.view import SplitView


def has_tokens(view: SplitView) -> bool:
    """Whether the trace still holds token ids; a purged one holds counts and sizes only."""
    return bool(view.trace["token"].null_count == 0)


def rows_digest(view: SplitView, *, tokens: bool) -> str:
    """SHA-256 over a split's row numbers, ids, variants and answer tokens, independent of the order of the table.

    Args:
        view: the split.
        tokens: use the token ids themselves, which also tell tokenizers and templates apart; otherwise what a purge
            leaves: the number of tokens, the length of the prompt and the compressed size of the text.
    """
    table = view.trace
    counts = view.is_end.lengths
    columns: list[list[Any]] = [table["row"].to_pylist(), table["variant"].to_pylist(), table["id"].to_pylist()]
    columns.append(counts.tolist())
    if tokens:
        columns.append(table["token"].cast(pa.list_(pa.int64())).to_pylist())
    else:
        columns += [table["num_prompt"].to_pylist(), table["target_zlib"].to_pylist()]
    digest = hashlib.sha256(view.split.encode())
    for entry in sorted(zip(*columns, strict=True), key=lambda entry: entry[:2]):
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def check_same_rows(
    ours: Mapping[str, SplitView],
    theirs: Mapping[str, SplitView],
    *,
    needed: str,
    who: str = "the reference run",
) -> None:
    """Refuse to compare traces of different rows.

    Every split that both hold is checked, and `needed` must be held by both; `who` names the other model in errors.

    Raises:
        MetricError: the reference lacks the `needed` split, or a shared split differs in rows, ids or tokens.
    """
    if needed not in theirs:
        raise MetricError(f"{who} has no {needed!r} rows", hint="evaluate it on the same suite and the same splits")
    for split in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[split], theirs[split]
        tokens = has_tokens(mine) and has_tokens(other)
        if rows_digest(mine, tokens=tokens) != rows_digest(other, tokens=tokens):
            raise MetricError(
                f"{split}: {who} was measured on other rows or with another template ({_difference(mine, other)})",
                hint="evaluate both models with the same suite, splits, --limit, tokenizer and --template",
            )


def _difference(mine: SplitView, other: SplitView) -> str:
    if len(mine) != len(other):
        return f"{len(mine)} rows against {len(other)}"
    rows = mine.trace.num_rows, other.trace.num_rows
    if rows[0] != rows[1]:
        return f"{rows[0]} texts against {rows[1]}"
    tokens = int(mine.is_end.lengths.sum()), int(other.is_end.lengths.sum())
    if tokens[0] != tokens[1]:
        return f"{tokens[0]} answer tokens against {tokens[1]}"
    return "the same number of rows and tokens, but others"
