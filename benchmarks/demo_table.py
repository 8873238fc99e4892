"""The README's table from the output of `expunge demo --seeds 3 --json`.

expunge demo --seeds 3 --json > demo.json
python -m benchmarks.demo_table demo.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROWS = {
    "forget.extraction_strength": "forget: extraction strength",
    "forget_paraphrased.extraction_strength": "the same in other words",
    "forget_multi_hop.extraction_strength": "the same by a detour",
    "retain.extraction_strength": "retain: extraction strength",
    "neighbours.extraction_strength": "the same, neighbours",
    "forget_quality": "forget quality (p)",
    "energy.auroc": "energy AUROC",
    "energy.auroc_paraphrase": "the same in other words",
    "guard.refusal_rate": "guard refuses forget questions",
    "guard.refusal_rate_paraphrase": "the same in other words",
    "guard.refusal_rate_multi_hop": "the same by a detour",
    "guard.over_refusal_rate": "guard refuses retain questions",
    "guard.over_refusal_paraphrase": "the same in other words",
    "guard.over_refusal_neighbours": "the same, neighbours",
    "guard.over_refusal_holdout": "guard refuses never-trained people",
}


def main() -> None:
    runs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["runs"]
    print("| | " + " | ".join(f"`{run['name']}`" for run in runs) + " |")
    print("|---|" + "---|" * len(runs))
    for name, label in ROWS.items():
        print(f"| {label} | " + " | ".join(cell(run["metrics"].get(name)) for run in runs) + " |")


def cell(score: dict[str, Any] | None) -> str:
    """Mean over seeds, and the lowest and the highest seed where they are not the same."""
    if score is None:
        return "–"
    low, high = short(score["low"]), short(score["high"])
    return short(score["value"]) if low == high else f"{short(score['value'])} ({low}–{high})"


def short(value: float) -> str:
    return f"{value:.0e}" if 0 < value < 0.0005 else f"{value:.3f}".removesuffix("000").removesuffix(".")


if __name__ == "__main__":
    main()
