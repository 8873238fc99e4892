"""Starting and retrained models kept between demos, under everything that decides what they are."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from expunge import __version__
from expunge.config.load import load_recipe, resolved
from expunge.data.worlds import build_world, write_world
from expunge.demo.plan import Plan, Planned
from expunge.demo.progress import run_label
from expunge.runs.cache import Entry, cache_root, open_entry
from expunge.runs.run import Run
from expunge.runs.store import atomic_write_json, stops_when_full

KIND = "demo"
_PLACES = ("output_dir", "data", "eval")
"""Settings that say where things lie; the world's digest says what lies there."""
_KEPT = ("model", "evals", "events.jsonl")

Progress = Callable[[dict[str, Any]], None]


def write_plan_world(plan: Plan) -> str:
    """Write the world of a plan; its digest."""
    world = build_world(people=plan.size.people, seed=plan.seed)
    # The folder is the plan's own, so a damaged world is written anew.
    write_world(world, plan.world, overwrite=True)
    return world.digest


def reuse(plan: Plan, world: str, show: Progress, *, several: bool) -> tuple[str, ...]:
    """Put the base runs that were kept earlier in place; their names, those put there before an interruption too.

    Args:
        plan: whose base runs.
        world: the world's digest.
        show: receives a note for each.
        several: whether there are other seeds, so that the note names this one.
    """
    names = []
    for run in plan.bases:
        found = entry(plan, run, world=world)
        if restore(found, plan.path(run)):
            trained, name = found.meta.get("trained", ""), run_label(plan.job_name(run), several=several)
            show({"event": "note", "text": f"{name}: reused from the cache (trained {trained})"})
            names.append(run.name)
    return tuple(names)


def keep_new(plan: Plan, world: str, reused: Sequence[str]) -> None:
    """Keep the base runs that were not reused, once they are finished and evaluated."""
    for run in plan.bases:
        if run.name not in reused:
            keep(entry(plan, run, world=world), plan, run)


def entry(plan: Plan, run: Planned, *, world: str) -> Entry:
    """The cache entry of a base run.

    Args:
        plan: of the demo.
        run: `start`, `retrained` or `retrained_2`.
        world: the world's digest.
    """
    settings = resolved(load_recipe(run.recipe, plan.overrides(run)).recipe)
    deciding = {key: value for key, value in settings.items() if key not in _PLACES}
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    files = [Path(source["path"]).name for source in settings["data"]["train"]]
    # A kept run is measured again by its own settings, and a budget moves the last digits.
    budget = settings["eval"]["token_budget"]
    key = [__version__, versions, platform.machine(), deciding, files, world, budget]
    return open_entry(KIND, hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest())


def restore(found: Entry, path: Path) -> bool:
    """Put a kept run at `path`; False where none is kept, or where a run of another making lies there already."""
    if not found.complete:
        return False
    if (path / "manifest.json").exists():
        return Run.open(path).manifest.created == found.meta.get("trained")
    with stops_when_full(path):
        shutil.rmtree(path, ignore_errors=True)
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(found.path / "run", partial, ignore=shutil.ignore_patterns("manifest.json"))
        manifest = json.loads((found.path / "run/manifest.json").read_text(encoding="utf-8"))
        moved = _moved(manifest, str(found.meta["folder"]), str(path.parent))
        atomic_write_json(partial / "manifest.json", moved)
        partial.replace(path)
    return True


def keep(found: Entry, plan: Plan, run: Planned) -> None:
    """Keep a finished and evaluated run for later demos.

    Raises:
        StoppedError: the disk is full.
        UsageError: the cache cannot be written to.
    """
    source = plan.path(run)

    def build(folder: Path) -> None:
        (folder / "run").mkdir()
        shutil.copy2(source / "manifest.json", folder / "run")
        for name in _KEPT:
            item = source / name
            if item.is_dir():
                shutil.copytree(item, folder / "run" / name)
            elif item.exists():
                shutil.copy2(item, folder / "run" / name)

    created = Run.open(source).manifest.created
    description = f"{run.name} of the demo, seed {plan.seed}, {plan.size.people} people"
    found.write(build, {"description": description, "folder": str(plan.folder), "trained": created})


def require_writable_cache() -> None:
    """Find out before a minute of training is spent that its result could not be kept.

    Raises:
        UsageError: the cache cannot be written to.
        StoppedError: its disk is full.
    """
    folder = cache_root() / KIND
    with stops_when_full(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("", encoding="utf-8")
        probe.unlink()


def _moved(value: Any, before: str, after: str) -> Any:
    """`value` with every path below one folder pointing below another."""
    if isinstance(value, dict):
        return {key: _moved(item, before, after) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, before, after) for item in value]
    if isinstance(value, str) and (value == before or value.startswith(before + "/")):
        return after + value[len(before) :]
    return value
