"""What a purge leaves of prompts: which are the same, and in which order a guard's calibration takes them."""

from __future__ import annotations

import pyarrow as pa

from expunge.metrics.guard import calibrates, prompt_key

COLUMN = "prompt_order"
SEED = 0
"""Of the order; a suite's guard is calibrated in this one."""


def with_prompt_order(trace: pa.Table) -> pa.Table:
    """Add the column that stands for the prompts once their text is gone.

    Equal prompts get equal numbers. Those of the retain splits are numbered in the order of their keys, so that a
    guard is calibrated on the same half as before; the others follow as they appear, because a rank among known
    prompts would let a guess of a forgotten one be tested.

    Args:
        trace: a trace that still holds its prompts.
    """
    prompts, splits = trace["prompt"].to_pylist(), trace["split"].to_pylist()
    kept = {prompt for prompt, split in zip(prompts, splits, strict=True) if prompt and calibrates(split)}
    numbers = {
        prompt: number for number, prompt in enumerate(sorted(kept, key=lambda text: prompt_key(text, seed=SEED)))
    }
    for prompt in prompts:
        if prompt:
            numbers.setdefault(prompt, len(numbers))
    return trace.append_column(
        pa.field(COLUMN, pa.int32()), pa.array([numbers.get(prompt) for prompt in prompts], pa.int32())
    )
