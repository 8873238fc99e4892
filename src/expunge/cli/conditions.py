"""`--fail-if "forget.extraction_strength>0.1"`: turn a measurement into an exit code."""

from __future__ import annotations

from typing import Annotated

import typer

OPTION = "--fail-if"
MET = 5
"""Exit code when a condition is met."""

FailIf = Annotated[
    list[str] | None,
    typer.Option(
        OPTION,
        metavar="CONDITION",
        help='Exit with 5 when it is met, e.g. "forget.extraction_strength>0.1"; repeatable.',
    ),
]
