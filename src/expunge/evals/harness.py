"""Runs tasks of lm-evaluation-harness on a model in memory, through the harness's own code, and keeps every row."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from expunge.errors import UsageError
from expunge.evals.passes import Progress, Subject
from expunge.evals.suite import Tables
from expunge.evals.suites.harness import TEMPLATE, Loaded
from expunge.models.load import compute_dtype
from expunge.runs.tables import GENERATIONS, HARNESS, TRACE

CHAT = "auto"
"""The template that asks the harness to apply the tokenizer's own."""
BATCH_ROWS = 8
"""Texts of one forward pass; changes speed and memory."""
DRAWS = 1000
"""Of the harness's bootstrap, for metrics that are no means."""
PLAIN = "none"
"""What the harness calls answers that no filter touched."""
_UNUSED = ("token", "is_end", "logp", "hit", "lse")

Row = dict[str, Any]


def run_tasks(
    subject: Subject, loaded: Loaded, *, num_fewshot: int | None, limit: int | None, progress: Progress
) -> Tables:
    """Every task on one model.

    Texts that do not fit the model lose their beginning, as in the harness, which warns. Random numbers, weights and
    the tokenizer stay as they are.

    Args:
        subject: its template is `harness` (prompts as text) or `auto` (the tokenizer's chat template).
        loaded: the tasks.
        num_fewshot: shots in place of a task's own number; None: its own.
        limit: first rows of each task.
        progress: called with `{"event": "phase", "name": "harness", "done", "total"}` in texts.

    Returns:
        A trace of one text per row without tokens, the answers, and the values.

    Raises:
        UsageError: another template.
    """
    from lm_eval import simple_evaluate

    if subject.template.name not in (TEMPLATE, CHAT):
        raise UsageError(
            f"the harness cannot ask by the template {subject.template.name!r}",
            hint="leave --template out, or set it to auto for the tokenizer's chat template",
        )
    with _contained():
        results = simple_evaluate(
            model=_model(subject, progress),
            tasks=_tops(loaded),
            task_manager=loaded.manager,
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=DRAWS,
            apply_chat_template=subject.template.name == CHAT,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    return _tables(results, loaded)


def _model(subject: Subject, progress: Progress) -> Any:
    """The harness's own model class around ours, saying how far it is."""
    from lm_eval.models.huggingface import HFLM

    class Reporting(HFLM):  # type: ignore[misc]
        """Counts the texts that are asked for, and those that are done."""

        done = total = 0

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return self._counted(requests, super().loglikelihood)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return self._counted(requests, super().loglikelihood_rolling)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return self._counted(requests, super().generate_until)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            self._report(len(inps))
            return super()._model_call(inps, *args, **kwargs)

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            self._report(len(context))
            return super()._model_generate(context, *args, **kwargs)

        def _counted(self, requests: list[Any], run: Callable[..., Any]) -> Any:
            before = self.total
            self.total += len(requests)
            found = run(requests, disable_tqdm=True)
            # Options of one token share a forward pass.
            self._report(before + len(requests) - self.done)
            return found

        def _report(self, texts: int) -> None:
            self.done = min(self.done + texts, self.total)
            progress({"event": "phase", "name": "harness", "done": self.done, "total": self.total})

    dtype = compute_dtype(next(subject.model.parameters()).device)
    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)  # It warns that the model is in memory already.
    try:
        return Reporting(
            pretrained=subject.model,
            # The harness gives it a padding token where it has none.
            tokenizer=copy.deepcopy(subject.tokenizer),
            backend="causal",
            batch_size=BATCH_ROWS,
            mixed_precision_dtype=None if dtype == torch.float32 else str(dtype).removeprefix("torch."),
        )
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Keep what the harness prints off stdout, its bars out of ours, and its bootstrap in this process."""
    from lm_eval.api import task

    name, bar = "DISABLE_MULTIPROC", task.tqdm
    before = os.environ.get(name)
    os.environ[name], task.tqdm = "1", partial(bar, disable=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        task.tqdm = bar
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _tops(loaded: Loaded) -> list[Any]:
    """The groups that are in no other, and the tasks that are in none."""
    inside = {name for group in loaded.groups.values() for name in group.child_names}
    members = {task.task_name for group in loaded.groups.values() for task in group.get_all_tasks()}
    groups = [group for name, group in loaded.groups.items() if name not in inside]
    return [*groups, *(task for name, task in loaded.tasks.items() if name not in members)]


def _tables(results: Mapping[str, Any], loaded: Loaded) -> Tables:
    texts: list[Row] = []
    answers: list[Row] = []
    values: list[Row] = []
    for name, samples in results["samples"].items():
        # One sample per row and filter; the rows are the same for every filter.
        first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        texts += [_text(name, sample) for sample in first]
        answers += [answer for sample in first if (answer := _answer(name, sample)) is not None]
        means = {metric for metric in loaded.tasks[name].aggregation() if _is_mean(loaded.tasks[name], metric)}
        values += _whole(name, results["results"][name], results["higher_is_better"].get(name, {}))
        values += [row for sample in samples for row in _per_row(name, sample, means)]
    for name, found in results.get("groups", {}).items():
        values += _whole(name, found, results["higher_is_better"].get(name, {}))
    made = ((texts, TRACE), (answers, GENERATIONS), (values, HARNESS))
    trace, generations, harness = (pa.Table.from_pylist(rows, schema=schema) for rows, schema in made)
    return Tables(trace, generations, harness=harness)


def _text(task: str, sample: Mapping[str, Any]) -> Row:
    prompt, target = _prompt(sample), _right_option(sample) or str(sample["target"])
    row = int(sample["doc_id"])
    return {
        "split": task,
        "row": row,
        "variant": "answer",
        "id": f"{task}:{row}",
        "prompt": prompt,
        "target": target,
        "target_zlib": len(zlib.compress(target.encode())),
        "target_chars": len(target),
        "num_prompt": 0,
        "truncated": False,
        **{name: [] for name in _UNUSED},
    }


def _answer(task: str, sample: Mapping[str, Any]) -> Row | None:
    """What the model said, or the option it found likeliest; None where it only scored a text."""
    said = _said(sample)
    if said is None:
        return None
    row = int(sample["doc_id"])
    return {
        "split": task,
        "row": row,
        "id": f"{task}:{row}",
        "prompt": _prompt(sample),
        "reference": _right_option(sample) or str(sample["target"]),
        "output": said,
    }


def _prompt(sample: Mapping[str, Any]) -> str:
    return str(sample["arguments"][0][0])


def _right_option(sample: Mapping[str, Any]) -> str | None:
    """The text of the right option, where the target is its index."""
    target, options = sample["target"], _options(sample)
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < len(options):
        return None
    return options[target]


def _options(sample: Mapping[str, Any]) -> list[str]:
    """The texts that were scored after one prompt; none where it is not a multiple choice."""
    asked = sample["arguments"]
    if len(asked) < 2 or any(len(each) < 2 or not isinstance(each[1], str) for each in asked):
        return []
    return [each[1].strip() for each in asked]


def _said(sample: Mapping[str, Any]) -> str | None:
    found = [each[0] if isinstance(each, list | tuple) and each else each for each in sample["resps"]]
    if isinstance(found[0], str):
        return found[0]
    options = _options(sample)
    scores = [each[0] for each in found if isinstance(each, Sequence) and each and isinstance(each[0], float)]
    return options[scores.index(max(scores))] if options and len(scores) == len(options) else None


def _per_row(task: str, sample: Mapping[str, Any], means: set[str]) -> list[Row]:
    """The values that a mean is taken over."""
    row = int(sample["doc_id"])
    return [
        {"split": task, "metric": _name(metric, sample["filter"]), "row": row, "value": _number(sample[metric])}
        for metric in sample["metrics"]
        if metric in means
    ]


def _whole(split: str, found: Mapping[str, Any], higher: Mapping[str, bool | None]) -> list[Row]:
    """What the harness gives for a task or a group."""
    rows: list[Row] = []
    for key, value in found.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        better = higher.get(metric)
        rows.append(
            {
                "split": split,
                "metric": _name(metric, filtered),
                "value": _number(value),
                "stderr": _number(found.get(f"{metric}_stderr,{filtered}")),
                "n": int(found.get("sample_len", found.get("sample_count", 0))),
                "direction": "match" if better is None else "higher" if better else "lower",
            }
        )
    return rows


def _name(metric: str, filtered: str) -> str:
    return metric if filtered == PLAIN else f"{metric}.{filtered}"


def _number(value: Any) -> float | None:
    """A finite number, or none ("N/A", a pair that a corpus metric sums up, a NaN)."""
    if isinstance(value, int | float) or (hasattr(value, "item") and getattr(value, "size", 0) == 1):
        found = float(value)
        return found if math.isfinite(found) else None
    return None


def _is_mean(task: Any, metric: str) -> bool:
    return bool(getattr(task.aggregation()[metric], "__name__", "") == "mean")
