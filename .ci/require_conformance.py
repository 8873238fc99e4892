"""Fail when the shared folder is there and a conformance case did not run: a skip must not look like a pass."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

report = Path(sys.argv[1])
shared = Path(os.environ.get("EXPUNGE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
cases = [
    case for case in ElementTree.parse(report).iter("testcase") if "tests.conformance." in case.get("classname", "")
]
skipped = [case.get("name", "") for case in cases if case.find("skipped") is not None]
sys.stdout.write(f"conformance cases: {len(cases) - len(skipped)} ran, {len(skipped)} were skipped\n")
if shared.is_dir() and not cases:
    sys.exit(f"error: {shared} is there and no conformance case ran")
if shared.is_dir() and skipped:
    sys.exit(f"error: {shared} is there and these conformance cases did not run: {', '.join(skipped)}")
