"""Fail when the shared folder is there and no conformance case ran: a skipped comparison must not look like a pass."""

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
ran = sum(case.find("skipped") is None for case in cases)
sys.stdout.write(f"conformance cases: {ran} ran, {len(cases) - ran} were skipped\n")
if shared.is_dir() and ran == 0:
    sys.exit(f"error: {shared} is there and no conformance case ran")
