"""What the page of metrics says under "For other suites" is there."""

from __future__ import annotations

import importlib

import pages
import pytest

PAGE = (pages.ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
NAMES = [row[0].strip("`") for header in ("score", "number") for row in pages.table(PAGE, header)]


@pytest.mark.parametrize("name", NAMES)
def test_a_score_of_the_page_is_a_function_with_a_source(name: str) -> None:
    module, function = name.split(".")
    found = getattr(importlib.import_module(f"expunge.metrics.{module}"), function)
    assert "Source:" in found.__doc__


def test_the_tables_are_read_and_name_each_once() -> None:
    assert len(set(NAMES)) == len(NAMES) > 5
