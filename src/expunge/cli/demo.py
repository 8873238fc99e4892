"""`expunge demo`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.output import Json, print_json, print_table
from expunge.cli.progress import showing

if TYPE_CHECKING:
    from expunge.demo.run import DemoResult
    from expunge.demo.story import Exchange

SHOWN = (
    ("forget.extraction_strength", "forget: extraction strength"),
    ("forget_paraphrased.extraction_strength", "forget, other wording"),
    ("forget_multi_hop.extraction_strength", "forget, by a detour"),
    ("retain.extraction_strength", "retain: extraction strength"),
    ("neighbours.extraction_strength", "retain, neighbours"),
    ("forget_quality", "forget quality (p)"),
    ("energy.auroc", "energy AUROC"),
    ("energy.auroc_paraphrase", "energy AUROC, other wording"),
    ("guard.refusal_rate", "guard refuses: forget"),
    ("guard.refusal_rate_paraphrase", "guard refuses: other wording"),
    ("guard.refusal_rate_multi_hop", "guard refuses: by a detour"),
    ("guard.over_refusal_rate", "guard refuses: retain"),
    ("guard.over_refusal_holdout", "guard refuses: never trained"),
)
"""Metric -> what the table calls it."""


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the world and of every model.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds in a row; 3 for the full claim.")] = 1,
    fast: Annotated[bool, typer.Option("--fast", help="Half the world, no thresholds.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train the base models although they are cached.")] = False,
    json: Json = False,
) -> None:
    """Make a tiny model forget invented people and show what that did. Offline, on a CPU, in minutes."""
    from expunge.demo.run import demo as run_demo

    with showing() as progress:
        result = run_demo(out=out, seed=seed, seeds=seeds, fast=fast, fresh=fresh, progress=progress)
    if json:
        print_json(result.to_json())
        return
    _print(result)


def _print(result: DemoResult) -> None:
    for exchange in result.seeds[0].story:
        _print_exchange(exchange)
    shown = result.to_json()
    _print_metrics(shown["runs"], seeds=len(result.seeds))
    typer.echo()
    if result.fast:
        typer.echo("--fast: a smaller world with fewer prompts; the thresholds in the README do not apply to it.")
    if kept := _reused(result):
        typer.echo(f"trained by an earlier demo and reused: {', '.join(kept)}")
    typer.echo(f"{result.seconds:.0f} s; no attack was run")
    for seed in result.seeds:
        typer.echo(f"report: {seed.report}")


def _reused(result: DemoResult) -> list[str]:
    from expunge.demo.progress import run_label

    several = len(result.seeds) > 1
    names = [f"{seed.seed}/{run.name}" for seed in result.seeds for run in seed.runs if run.cached]
    return [run_label(name, several=several) for name in names]


def _print_exchange(exchange: Exchange) -> None:
    from expunge.report.text import visible

    what = "A question about somebody to forget" if exchange.about == "forget" else "A question about somebody to keep"
    sign = ">" if exchange.energy > exchange.threshold else "<="
    decision = f"{'refused' if exchange.refused else 'answered'}: {exchange.energy:.2f} {sign} {exchange.threshold:.2f}"
    lines = (
        ("asked", exchange.question),
        ("before", exchange.before),
        ("after (EUA)", exchange.after),
        ("guarded", f"{exchange.guarded} [{decision}]"),
        ("retrained", exchange.retrained),
    )
    typer.echo(what)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(_folded(f"  {name.ljust(width)}  ", visible(" ".join(text.split()))))
    typer.echo()


def _folded(head: str, text: str) -> str:
    return textwrap.fill(
        text, width=max(_columns(), 40), initial_indent=head, subsequent_indent=" " * len(head), break_long_words=True
    )


def _print_metrics(runs: Sequence[Mapping[str, Any]], *, seeds: int) -> None:
    """One row per metric and one column per run; where they do not fit, one block per run."""
    headers = ["", *(run["name"] for run in runs)]
    rows = [[label, *(_cell(run["metrics"].get(name), seeds) for run in runs)] for name, label in SHOWN]
    widths = [max(len(row[place]) for row in [headers, *rows]) for place in range(len(headers))]
    if sum(widths) + 2 * (len(widths) - 1) <= _columns():
        print_table(headers, rows, right=headers[1:])
        return
    for place, run in enumerate(runs, start=1):
        typer.echo(run["name"])
        for row in rows:
            if row[place] != "-":
                typer.echo(f"  {row[place].rjust(max(widths[1:]))}  {row[0]}")


def _cell(score: Mapping[str, Any] | None, seeds: int) -> str:
    if score is None:
        return "-"
    value = _short(score["value"])
    return f"{value} [{_short(score['low'])}, {_short(score['high'])}]" if seeds > 1 else value


def _short(value: float) -> str:
    """Three decimals; a p-value too small for them as a power."""
    return f"{value:.0e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def _columns() -> int:
    """Columns of the terminal; a file has room for everything."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
