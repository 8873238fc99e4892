"""A plan's memory is within 15 % of what the run then needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.plan import CASES, Case, error, needed, planned

pytestmark = pytest.mark.slow


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is measured as Linux keeps it")
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join((case.shape, case.method, *case.overrides)))
def test_memory_is_what_the_plan_said(case: Case, tmp_path: Path) -> None:
    if "model.use_peft=true" in case.overrides:
        pytest.importorskip("peft")
    said, took = planned(case, tmp_path).memory, needed(case, tmp_path, allocator=True).memory
    assert abs(error(said, took)) < 0.15, (said, took)
