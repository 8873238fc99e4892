"""What every command prints with: data on stdout, everything else on stderr, readable without colour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.runs.rank import rank
from expunge.runs.text import size as size

if TYPE_CHECKING:
    from expunge.metrics.score import Score

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """`value` on stdout as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """An aligned table on stdout, the same in a terminal and in a pipe; nothing but the header where it has no rows.

    Args:
        headers: column names.
        rows: one sequence of cells per line.
        right: names of the columns that are aligned to the right.
    """
    for line in table_lines(headers, rows, right=right):
        typer.echo(line)


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> list[str]:
    """The lines of `print_table`."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    lines = []
    for row in [headers, *rows]:
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """`name  value` lines on stdout, aligned."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        typer.echo(f"{name.ljust(width)}  {value}")


def note(text: str) -> None:
    """One line on stderr; of several processes of a run, the first one writes it."""
    if rank() == 0:
        typer.echo(text, err=True)


def number(value: float | None) -> str:
    """Four significant digits; empty for None."""
    return "" if value is None else f"{value:.4g}"


def interval(score: Score) -> str:
    """`[0.01, 0.02]`; empty where a score has none."""
    return "" if score.low is None else f"[{number(score.low)}, {number(score.high)}]"


def spelled(name: str, known: Sequence[str]) -> str:
    """The known name that equals `name` up to `-` and `_`; `name` itself where there is none."""
    return next((other for other in known if other.replace("-", "_") == name.replace("-", "_")), name)
