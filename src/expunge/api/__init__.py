"""expunge from Python: what the command line calls, in a few lines of your own.

from expunge import api
run = api.unlearn("recipe.yaml", "method.name=npo")
scores = api.evaluate(run.path, suite="tofu", reference="runs/retrained").scores
"""

from __future__ import annotations

from expunge.api.measure import compare, evaluate, explain, import_log, report, samples
from expunge.api.models import Progress, ask, calibrate_guard, merge, push
from expunge.api.runs import RecipeLike, plan, train, unlearn, validate

__all__ = [
    "Progress",
    "RecipeLike",
    "ask",
    "calibrate_guard",
    "compare",
    "evaluate",
    "explain",
    "import_log",
    "merge",
    "plan",
    "push",
    "report",
    "samples",
    "train",
    "unlearn",
    "validate",
]
