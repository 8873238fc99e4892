"""The table in docs/results.md from the output of `expunge bench methods --json`.

expunge bench methods --seeds 3 --json > bench.json
python -m benchmarks.bench_table bench.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WHOLE = ("seconds", "peak_memory_mb")


def main() -> None:
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(f"| method | chosen of {found['trials']} | " + " | ".join(found["columns"].values()) + " |")
    print("|---|---|" + "---|" * len(found["columns"]))
    for base in found["bases"]:
        print(f"| {base['name']} | | " + " | ".join(cells(base["values"])) + " |")
    for method in found["methods"]:
        failed = f" ({method['failed']} failed)" if method["failed"] else ""
        setting = (method["setting_in_words"] or "none") + failed
        print(f"| `{method['name']}` | {setting} | " + " | ".join(cells(method["values"])) + " |")
    for failure in found["failed"]:
        print(f"\n{failure['cell']} failed: {failure['error']}")


def cells(values: dict[str, Any]) -> list[str]:
    return [cell(name, value) for name, value in values.items()]


def cell(name: str, value: dict[str, Any] | None) -> str:
    """Mean over worlds, and the lowest and the highest where they are not the same."""
    if value is None:
        return "–"
    low, high = short(name, value["low"]), short(name, value["high"])
    mean = short(name, value["value"])
    return mean if low == high else f"{mean} ({low}–{high})"


def short(name: str, value: float) -> str:
    if name in WHOLE:
        return f"{value:.0f}"
    return f"{value:.0e}" if 0 < value < 0.0005 else f"{value:.3f}".removesuffix("000").removesuffix(".")


if __name__ == "__main__":
    main()
