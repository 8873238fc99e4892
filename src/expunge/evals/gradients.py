"""The gradient pass: how hard each text that membership attacks compare pulls at the weights. One backward per text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from expunge.data.collate import collate
from expunge.data.encode import Dataset
from expunge.data.template import Template
from expunge.errors import ModelError
from expunge.evals.jobs import plan_jobs
from expunge.evals.suite import Suite
from expunge.metrics.ragged import Ragged, span_mask
from expunge.models.adapters import is_adapted, weight_names
from expunge.models.load import autocast
from expunge.models.processes import processes
from expunge.models.score import score
from expunge.runs.tables import GRADIENTS

Progress = Callable[[dict[str, Any]], None]


class GradientPass(NamedTuple):
    """The table and what it cost."""

    table: pa.Table
    tokens: int
    """Tokens sent through the model, forward and backward."""


class GradientNorms(NamedTuple):
    """Norms of one gradient over several weight tensors; each a scalar."""

    whole: float
    """Euclidean norm over all entries together."""
    mean_1: float
    """Mean over the tensors of each one's sum of absolute entries."""
    mean_2: float
    """Mean over the tensors of each one's Euclidean norm."""
    mean_inf: float
    """Mean over the tensors of each one's largest absolute entry."""


_NONE = GradientNorms(*[float("nan")] * 4)


def gradient_norms(gradients: Sequence[Tensor]) -> GradientNorms:
    """Norms of a gradient, given as one tensor per weight tensor, none empty; float32 or wider.

    Source:
        The means over tensors: OpenUnlearning (arXiv 2506.12618), in its code. The norm over all entries: ours.
    """
    by_order = [
        torch.stack([torch.linalg.vector_norm(each, order) for each in gradients]).double()
        for order in (1, 2, float("inf"))
    ]
    mean_1, mean_2, mean_inf = (float(norms.mean()) for norms in by_order)
    return GradientNorms(float(torch.linalg.vector_norm(by_order[1])), mean_1, mean_2, mean_inf)


def gradient_table(
    model: Any,
    suite: Suite,
    template: Template,
    *,
    pad_id: int,
    max_length: int,
    progress: Progress | None = None,
) -> GradientPass:
    """Differentiate the mean loss of each text of `suite.membership`, one text at a time, by every weight.

    The model stays in evaluation mode (no dropout), and its weights, gradients and what of it is trained stay as they
    are. Frozen weights count as others do; of a LoRA adapter the weight it is added to counts, whose gradient is that
    of the merged weight. Several processes share the texts out and give each other the norms.

    Args:
        model: evaluation mode, on its device, whole.
        suite: the splits of `membership` that it has; a text that both have is run once.
        template: how a conversation becomes tokens.
        pad_id: padding token id (nothing is padded).
        max_length: the model's context.
        progress: called with `{"event": "phase", "name": "gradients", "done", "total"}` in texts of this process.

    Returns:
        The table, one row per answer: the norm over all weights of the loss without the end token, and the published
        means over tensors of the loss without the last token. NaN where no token is left.

    Raises:
        DataError: a text that cannot be encoded.
        ModelError: weights that have no gradient (stored in 4 or 8 bits).
    """
    splits = tuple(replace(split, variants=("answer",)) for split in suite.splits if split.name in suite.membership)
    plan = plan_jobs(replace(suite, splits=splits), template, max_length=max_length)
    where = processes()
    own = where.share(range(len(plan.dataset.encoded)))
    found: dict[int, GradientNorms] = {}
    with _differentiable(model) as weights:
        for text in own:
            found[text] = _of_text(model, plan.dataset, text, weights, pad_id)
            if progress:
                progress({"event": "phase", "name": "gradients", "done": len(found), "total": len(own)})
    norms = {text: each for part in where.gather(found) for text, each in part.items()}
    rows = [norms[job.unique] for job in plan.jobs]
    columns: dict[str, Any] = {
        "split": [job.split for job in plan.jobs],
        "row": [job.row for job in plan.jobs],
        "id": [job.example.id for job in plan.jobs],
        "group": [job.example.group for job in plan.jobs],
        "norm": [each.whole for each in rows],
        "tensor_norm_1": [each.mean_1 for each in rows],
        "tensor_norm_2": [each.mean_2 for each in rows],
        "tensor_norm_inf": [each.mean_inf for each in rows],
    }
    table = pa.Table.from_arrays(
        [pa.array(columns[field.name], type=field.type) for field in GRADIENTS], schema=GRADIENTS
    )
    return GradientPass(table, int(plan.dataset.lengths().sum()))


def require_differentiable(model: Any) -> None:
    """Refuse a model of whose weights some have no gradient.

    Raises:
        ModelError: naming them.
    """
    stored = [name for name, weight in model.named_parameters() if not weight.is_floating_point()]
    if stored:
        raise ModelError(
            f"{len(stored)} weights are stored as whole numbers and have no gradient ({', '.join(stored[:3])}"
            f"{', ...' if len(stored) > 3 else ''})",
            hint="measure gradient norms of the merged model (`expunge merge RUN`), without load_in_4bit",
        )


@contextmanager
def _differentiable(model: Any) -> Iterator[list[nn.Parameter]]:
    """Every weight but those of adapters, ready to be differentiated by."""
    require_differentiable(model)
    adapters = weight_names(model) if is_adapted(model) else {}
    weights = [weight for name, weight in model.named_parameters() if name not in adapters]
    trained = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight, before in zip(weights, trained, strict=True):
            weight.requires_grad_(before)


def _of_text(model: Any, dataset: Dataset, text: int, weights: list[nn.Parameter], pad_id: int) -> GradientNorms:
    batch = collate(dataset, [text], pad_id=pad_id).to(weights[0].device)
    ends = Ragged.from_lengths(batch.is_end.cpu().numpy(), np.array([len(batch.is_end)]))
    spans = [torch.from_numpy(span_mask(ends, span)).to(batch.is_end.device) for span in ("no_eos", "drop_last")]
    with torch.enable_grad(), autocast(batch.input_ids.device):
        logps = score(model, batch).logps
    same = bool((spans[0] == spans[1]).all())
    differentiate = partial(_of_loss, logps, weights)
    first = differentiate(spans[0], keep=not same)
    second = first if same else differentiate(spans[1], keep=False)
    return GradientNorms(first.whole, *second[1:])


def _of_loss(logps: Tensor, weights: list[nn.Parameter], span: Tensor, *, keep: bool) -> GradientNorms:
    """Of the mean loss over a span; `keep`: the graph is differentiated again."""
    if not bool(span.any()):
        return _NONE
    found = torch.autograd.grad(-logps[span].mean(), weights, retain_graph=keep, allow_unused=True)
    return gradient_norms([gradient for gradient in found if gradient is not None])
