"""How the settings of `recipes/world/` were chosen: the same grid for every method, on a world nobody reports on.

    python -m benchmarks.demo_grid --seed 100 --out runs/grid

Eight settings a method (its forget weight or beta, the learning rate, the epochs). Chosen is the one that keeps most
(`retain.extraction_strength`) among those that forget: `forget.extraction_strength` at most 0.05, or 0.02 above the
retrained model's. Prints a Markdown table; a second call continues the first.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

from expunge.data.worlds import build_world, write_world
from expunge.demo.plan import FULL, RETRAINED, START, Plan, Planned
from expunge.demo.workers import Job, carry_out, processors
from expunge.evals.recompute import recompute

GRID = {
    "eua": ("gamma", (0.05, 0.2), (1e-3, 2e-3), (5, 10)),
    "npo": ("beta", (0.03, 0.1), (1e-3, 2e-3), (5, 10)),
    "grad_diff": ("gamma", (0.05, 0.2), (5e-4, 1e-3), (5, 10)),
}
"""Method -> its own key, values of that key, learning rates, epochs."""
SHOWN = (
    "forget.extraction_strength",
    "retain.extraction_strength",
    "energy.auroc",
    "energy.auroc_paraphrase",
    "forget_quality",
)


class Setting(NamedTuple):
    """One point of the grid."""

    method: str
    key: str
    value: float
    learning_rate: float
    epochs: int

    @property
    def run(self) -> Planned:
        name = f"{self.method}-{self.value:g}-{self.learning_rate:g}-{self.epochs}"
        return Planned(name, f"world/{self.method}", "unlearn", self.method)

    def overrides(self) -> list[str]:
        return [
            f"method.{self.key}={self.value}",
            f"train.learning_rate={self.learning_rate}",
            f"train.num_train_epochs={self.epochs}",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/grid"))
    args = parser.parse_args()
    plan = Plan(args.seed, FULL, (args.out / f"seed-{args.seed}").absolute())
    write_world(build_world(people=FULL.people, seed=args.seed), plan.world)
    settings = [
        Setting(method, key, *point) for method, (key, *axes) in GRID.items() for point in itertools.product(*axes)
    ]
    jobs = [plan.job(START), plan.job(RETRAINED), *(_job(plan, setting) for setting in settings)]
    carry_out(jobs, lambda job, message: _tell(job, message), count=processors())
    gold = recompute(plan.path(RETRAINED), suite="world").scores["forget.extraction_strength"].value
    bar = max(0.05, gold + 0.02)
    found = {
        setting: recompute(
            plan.path(setting.run), suite="world", reference=plan.path(RETRAINED), start=plan.path(START)
        ).scores
        for setting in settings
    }
    print(f"| method | setting | {' | '.join(SHOWN)} | |")
    print("|---|---|" + "---|" * (len(SHOWN) + 1))
    for method in GRID:
        tried = {setting: found[setting] for setting in settings if setting.method == method}
        forgets = [one for one in tried if tried[one][SHOWN[0]].value <= bar]
        chosen = max(forgets, key=lambda one: tried[one][SHOWN[1]].value, default=None)
        for setting, scores in tried.items():
            what = f"{setting.key} {setting.value:g}, lr {setting.learning_rate:g}, {setting.epochs} epochs"
            cells = " | ".join(f"{scores[name].value:.3g}" for name in SHOWN)
            print(f"| {method} | {what} | {cells} | {'chosen' if setting is chosen else ''} |")
    print(f"\nforget bar {bar:.3f} (retrained {gold:.3f})")


def _job(plan: Plan, setting: Setting) -> Job:
    """Unlearn and evaluate with the setting's values in place of the recipe's."""
    job = plan.job(setting.run)
    steps = [step for step in job.steps if step["do"] in ("unlearn", "eval")]
    steps[0] = {**steps[0], "overrides": [*steps[0]["overrides"], *setting.overrides()]}
    return job._replace(steps=tuple(steps))


def _tell(job: Job, message: object) -> None:
    if isinstance(message, dict) and "finished" in message:
        print(f"{job.name}: step {message['finished']} in {message['seconds']} s", file=sys.stderr)


if __name__ == "__main__":
    main()
