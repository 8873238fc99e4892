"""A Markdown table of evaluated runs, from their metrics.json: how the tables of docs/results.md were made.

python -m benchmarks.table runs/tofu-tiny/target runs/tofu-tiny/retrained runs/tofu-tiny/eua
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

COLUMNS = {
    "forget ES": "forget.extraction_strength",
    "forget prob": "forget.probability",
    "forget ROUGE": "forget.rougeL_recall",
    "forget TR": "forget.truth_ratio",
    "forget quality": "forget_quality",
    "loss AUC": "membership.loss_auc",
    "energy AUROC": "energy.auroc",
    "retain ES": "retain.extraction_strength",
    "retain prob": "retain.probability",
    "retain utility": "retain_utility",
    "model utility": "model_utility",
}


def scores(run: Path) -> dict[str, Any]:
    """The canonical metrics of a run's only TOFU evaluation."""
    (path,) = sorted(run.glob("evals/tofu-canonical-*/metrics.json"))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return found


def cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "–"
    value = f"{score['value']:.2g}" if abs(score["value"]) < 1e-3 else f"{score['value']:.3f}"
    if score["low"] is None:
        return value
    half = (score["high"] - score["low"]) / 2
    return f"{value} ± {half:.3f}" if half >= 5e-4 else value


def table(runs: list[Path]) -> str:
    measured = {run.name: scores(run) for run in runs}
    columns = {title: name for title, name in COLUMNS.items() if any(name in found for found in measured.values())}
    lines = [f"| run | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [
        f"| {name} | {' | '.join(cell(found.get(metric)) for metric in columns.values())} |"
        for name, found in measured.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    print(table(parser.parse_args().runs))
