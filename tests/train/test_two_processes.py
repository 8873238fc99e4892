"""Two processes over gloo take the steps that one takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("small_world.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def run(name: str, cache: Path, *launcher: str) -> dict[str, Any]:
    environment = {**os.environ, "EXPUNGE_CACHE": str(cache), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), name],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# The reference of forgetting_sft is trained on 17 rows, of which one process has nothing in an epoch's last step.
@pytest.mark.parametrize("name", ["eua", "idk_dpo", "forgetting_sft"])
def test_two_processes_equal_one(name: str, tmp_path: Path) -> None:
    one, two = run(name, tmp_path), run(name, tmp_path, *TORCHRUN)
    assert (one["processes"], two["processes"]) == (1, 2)
    for ours, theirs in zip(one["steps"], two["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert one["weight"] == pytest.approx(two["weight"], rel=1e-6)
