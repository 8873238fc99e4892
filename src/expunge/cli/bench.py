"""`expunge bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.output import Json, print_json, print_table
from expunge.cli.progress import showing
from expunge.errors import StoppedError

if TYPE_CHECKING:
    from expunge.bench.result import BenchResult

app = typer.Typer(help="Compare what there is on one small world.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Compare what there is on one small world."""


@app.command()
def methods(
    methods: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Only these; every method unless given.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything; finished cells there stay.")] = Path(
        "runs/bench"
    ),
    people: Annotated[int, typer.Option(min=12, help="In each world.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of the tuning world; the next ones are reported on.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="How many worlds are reported on.")] = 1,
    trials: Annotated[int, typer.Option(min=1, max=4, help="Settings tried for each method.")] = 4,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: method -> four settings of your own.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes; one per core unless given.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Carry these methods' finished cells out again.")] = False,
    json: Json = False,
) -> None:
    """Unlearn with every method on small worlds, with equal budgets for tuning, and print one table."""
    from expunge.bench.run import bench_methods

    with showing() as progress:
        result = bench_methods(
            methods=methods,
            out=out,
            people=people,
            seed=seed,
            seeds=seeds,
            trials=trials,
            settings=settings,
            jobs=jobs,
            fresh=fresh,
            progress=progress,
        )
    if json:
        print_json(result.to_json())
    else:
        _print(result)
    if result.failed:
        raise typer.Exit(StoppedError.exit_code)


def _print(result: BenchResult) -> None:
    shown = result.to_json()
    columns = shown["columns"]
    headers = ["method", "setting", *columns.values()]
    rows = [[base["name"], "", *_cells(base["values"])] for base in shown["bases"]]
    rows += [[method["name"], _state(method), *_cells(method["values"])] for method in shown["methods"]]
    print_table(headers, rows, right=headers[2:])
    typer.echo()
    worlds = ", ".join(map(str, shown["seeds"]))
    typer.echo(f"world{'s' if len(shown['seeds']) > 1 else ''} {worlds} of {shown['people']} people; {_tuning(shown)}")
    typer.echo("truth ratio and retain ES are as good as the retrained model's; forgetting more than it is no merit")
    typer.echo(f"{result.seconds:.0f} s; no attack was run")
    for failure in shown["failed"]:
        typer.echo(f"failed: {failure['cell']}: {failure['error']}")
    if shown["failed"]:
        typer.echo("the same command tries the failed cells again")


def _tuning(shown: Mapping[str, Any]) -> str:
    tried = f"{shown['trials']} setting{'s' if shown['trials'] > 1 else ''} of each method tried"
    return f"{tried} on world {shown['tuned_on']}, chosen by {shown['criterion']}"


def _state(method: Mapping[str, Any]) -> str:
    """The chosen setting, and what failed."""
    if method["chosen"] is None:
        return "failed"
    failed = f" ({method['failed']} failed)" if method["failed"] else ""
    return f"{method['setting_in_words']}{failed}"


def _cells(values: Mapping[str, Any]) -> list[str]:
    return [_cell(name, value) for name, value in values.items()]


def _cell(name: str, score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    value, low, high = (_short(name, score[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if len(score["values"]) > 1 else value


def _short(name: str, value: float) -> str:
    """Three decimals, a p-value too small for them as a power; whole seconds and megabytes."""
    if name in ("seconds", "peak_memory_mb"):
        return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
    return f"{value:.0e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"
