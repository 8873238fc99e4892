"""A plan's memory is within 15 % of what the run then needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.plan import Case, error, needed, planned

pytestmark = pytest.mark.slow

# The second step is the first that finds the optimizer's state.
SHORT = ("train.max_steps=2",)
CASES = (
    Case("deep", "npo", SHORT),
    Case("20M", "eua", SHORT),
    Case("20M", "npo", ("train.logits_chunk=64", *SHORT)),
    Case("wide", "npo", SHORT),
)


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is measured as Linux keeps it")
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join((case.shape, case.method, *case.overrides)))
def test_memory_is_what_the_plan_said(case: Case, tmp_path: Path) -> None:
    said, took = planned(case, tmp_path).memory, needed(case, tmp_path, allocator=True).memory
    assert abs(error(said, took)) < 0.15, (said, took)
