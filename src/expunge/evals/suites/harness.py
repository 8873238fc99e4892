"""The harness suite: tasks of lm-evaluation-harness, run by the harness itself; its numbers, kept row by row.

Needs the extra `harness`. Measuring reads tables only, and neither the harness nor torch.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expunge.catalog import unknown
from expunge.data.example import Example
from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.suite import Measured, Profile, RowValues, Split, Suite, SuiteData, Tables
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.metrics.score import Direction, Score

NAME = "harness"
TEMPLATE = "harness"
"""Prompts are the tasks' own text unless a chat template is asked for."""
QUANTILE = 1.959963984540054
"""Of the normal distribution, 97.5 %."""
NOT_A_NUMBER = "the harness gives no finite number"


Progress = Callable[[dict[str, Any]], None]


class Loaded(NamedTuple):
    """Tasks of the harness, ready to run."""

    manager: Any
    """Its `TaskManager`."""
    tasks: Mapping[str, Any]
    """Name -> task, the members of groups among them."""
    groups: Mapping[str, Any]
    version: str
    """Of the package."""


def harness(data: SuiteData) -> Suite:
    """Declare the suite: one split per task, groups taken apart.

    Args:
        data: `tasks` names tasks, groups and tags of the harness, or of the YAML files in `tasks_path`; `num_fewshot`
            above 0 replaces the tasks' own number, except where that is fixed to 0; `limit` holds for each task.

    Raises:
        UsageError: the harness is not installed; no task is named, or one that it does not know, that runs generated
            code or needs images; rows of another origin are named.
        DataError: a task's data cannot be loaded.
    """
    require_own_rows(data, f"the suite {NAME!r} has questions of its own")
    if not data.tasks:
        raise UsageError(
            "no task of lm-evaluation-harness is named", hint="name some: --tasks arc_easy,hellaswag (or eval.tasks)"
        )
    loaded = _load(data)
    splits = tuple(_split(name, task, data.limit) for name, task in loaded.tasks.items())
    options = {
        "tasks": ",".join(data.tasks),
        "num_fewshot": str(data.num_fewshot),
        "limit": str(data.limit or "none"),
        "lm_eval": loaded.version,
        "configs": json.dumps({name: _config(task) for name, task in loaded.tasks.items()}, sort_keys=True),
    }

    def passes(subject: Any, progress: Progress) -> Tables:
        from expunge.evals.harness import run_tasks

        return run_tasks(subject, loaded, num_fewshot=data.num_fewshot or None, limit=data.limit, progress=progress)

    return Suite(NAME, splits, measure, template=TEMPLATE, options=options, profiles=("canonical",), passes=passes)


def _load(data: SuiteData) -> Loaded:
    try:
        package, tasks = importlib.import_module("lm_eval"), importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        raise UsageError(
            f"the suite {NAME!r} needs the package `lm_eval` ({error})", hint="pip install 'expunge[harness]'"
        ) from error
    if data.tasks_path is not None and not data.tasks_path.expanduser().is_dir():
        raise UsageError(f"{data.tasks_path} is no folder", hint="give a folder of task files (*.yaml): --tasks-path")
    manager, found = _find(tasks.TaskManager, list(data.tasks), data.tasks_path)
    for name, task in found["tasks"].items():
        _require_plain(name, task)
    return Loaded(manager, found["tasks"], found.get("groups", {}), str(getattr(package, "__version__", "unknown")))


def _find(manager_of: Any, names: list[str], folder: Path | None) -> tuple[Any, Mapping[str, Any]]:
    """The manager that knows these tasks, and the tasks.

    The harness reads its thousands of files for an index, so they are left out where a folder has everything.
    """
    if folder is not None:
        own = manager_of(include_path=str(folder.expanduser()), include_defaults=False)
        if all(name in own.all_tasks for name in names):
            # A group may have members that are the harness's own: its index does not know them.
            with contextlib.suppress(KeyError):
                return own, _load_tasks(own, names)
    every = manager_of(include_path=None if folder is None else str(folder.expanduser()))
    for name in names:
        if name not in every.all_tasks:
            error = unknown("task of lm-evaluation-harness", name, every.all_tasks)
            near = error.hint if error.hint and error.hint.startswith("did") else "lm-eval ls tasks lists them"
            raise UsageError(error.message, hint=near)
    try:
        return every, _load_tasks(every, names)
    except KeyError as error:
        raise DataError(
            f"the harness cannot load {', '.join(names)}: {error}",
            hint="check the members of groups in the task's file",
        ) from error


def _load_tasks(manager: Any, names: list[str]) -> Mapping[str, Any]:
    try:
        return cast("Mapping[str, Any]", manager.load(names))
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"the harness cannot load {', '.join(names)}: {reason}",
            hint="check the task's file and that its data can be reached (HF_HUB_OFFLINE, HF_HOME)",
        ) from error


def _require_plain(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"the task {name!r} runs code that the model writes", hint="run it with lm-eval itself")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"the task {name!r} shows images or sounds", hint="run it with lm-eval itself")


def _split(name: str, task: Any, limit: int | None) -> Split:
    rows = list(task.eval_docs)[:limit]
    if not rows:
        raise DataError(f"the task {name!r} has no rows", hint="check its file: test_split or validation_split")
    examples = tuple(
        Example(id=f"{name}:{row}", row=row, text=json.dumps(dict(document), default=str, sort_keys=True))
        for row, document in enumerate(rows)
    )
    return Split(name, examples)


def _config(task: Any) -> dict[str, str]:
    """What a task's numbers depend on; functions of its own by name, because their addresses change."""
    address = re.compile(r" at 0x[0-9a-f]+")
    found = {key: value for key, value in task.dump_config().items() if not key.startswith("dataset_kwargs")}
    return {key: getattr(value, "__name__", address.sub("", str(value))) for key, value in found.items()}


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """The harness's metrics, `<task>.<metric>`, or `<task>.<metric>.<filter>` for answers that were filtered.

    The mean over rows, where that is how the harness sums a metric up, else the number that it gave. The interval is
    `value -+ 1.96 stderr` with the harness's standard error, which is not cut to the metric's range; for a mean
    `stderr = sqrt(sum_r (v_r - v)^2 / (n - 1)) / sqrt(n)`. Without a standard error there is no interval.

    Args:
        tables: with `harness`.
        reference: those of the retrained model, over the same rows; its values are then the ideals.
        profile: `canonical`.
        allow_missing: changes nothing: rows that the harness does not score do not enter its means.

    Returns:
        Scores by name, tasks before groups, and why others are absent.

    Raises:
        MetricError: these are no tables of the suite, or the reference was measured on other rows.
        UsageError: another profile.
    """
    require_canonical(profile, suite=NAME)
    if reference is not None:
        _require_same_rows(tables, reference)
    ideals = {} if reference is None else {name: found.value for name, found in _measured(reference)[0].items()}
    scores, skipped, rows = _measured(tables)
    return Measured({name: score._replace(ideal=ideals.get(name)) for name, score in scores.items()}, skipped, rows)


class _Found(NamedTuple):
    scores: dict[str, Score]
    skipped: dict[str, str]
    rows: dict[str, RowValues]


def _measured(tables: Tables) -> _Found:
    values = _values(tables)
    found = _Found({}, {}, {})
    per_row = _rows(values)
    for whole in values.filter(pc.is_null(values["row"])).to_pylist():
        name = f"{whole['split']}.{whole['metric']}"
        value, error = whole["value"], whole["stderr"]
        if name in per_row:
            rows = found.rows[name] = per_row[name]
            valid = rows.values[rows.valid]
            value = float(valid.mean()) if len(valid) else None
            error = float(valid.std(ddof=1)) / len(valid) ** 0.5 if len(valid) > 1 else None
        if value is None or not np.isfinite(value):
            found.skipped[name] = NOT_A_NUMBER
            continue
        reach = None if error is None or not np.isfinite(error) else QUANTILE * error
        low, high = (None, None) if reach is None else (value - reach, value + reach)
        direction = cast("Direction", whole["direction"])
        found.scores[name] = Score(value, low, high, whole["n"], whole["n"], None, direction)
    return found


def _rows(values: pa.Table) -> dict[str, RowValues]:
    found: dict[str, list[tuple[int, float | None]]] = {}
    splits: dict[str, str] = {}
    for each in values.filter(pc.is_valid(values["row"])).to_pylist():
        name = f"{each['split']}.{each['metric']}"
        splits[name] = each["split"]
        found.setdefault(name, []).append((each["row"], each["value"]))
    rows = {}
    for name, pairs in found.items():
        numbers = np.array([np.nan if value is None else value for _, value in pairs], dtype=np.float64)
        places = np.array([row for row, _ in pairs], dtype=np.int64)
        rows[name] = RowValues(splits[name], places, numbers, ~np.isnan(numbers))
    return rows


def _require_same_rows(tables: Tables, reference: Tables) -> None:
    purged = any(table.trace["prompt"].null_count for table in (tables, reference))
    for name in ("split", "row", "id", "target_zlib", *(() if purged else ("prompt", "target"))):
        if tables.trace[name].to_pylist() != reference.trace[name].to_pylist():
            raise MetricError(
                f"the reference run was measured on other tasks or other rows of them (their {name} differ)",
                hint="evaluate both models with the same --tasks, --num-fewshot and --limit",
            )


def _values(tables: Tables) -> pa.Table:
    if tables.harness is None:
        raise MetricError("harness.parquet is missing", hint="evaluate again with --overwrite")
    return tables.harness
