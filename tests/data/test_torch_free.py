"""Sources, templates and encoding work where torch cannot be imported."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["torch"] = None
import expunge.data.encode, expunge.data.source, expunge.data.stream, expunge.data.benchmarks.tofu
from expunge.data.template import TEMPLATES
assert len([entry.summary for entry in TEMPLATES]) >= 8
assert "transformers" not in sys.modules and "datasets" not in sys.modules and "pyarrow" not in sys.modules
"""


def test_no_torch_at_module_level() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
