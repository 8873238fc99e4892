"""What is listed without torch is what the classes say."""

from __future__ import annotations

import json

import catalogue_facts

from expunge.cli.ls_facts import FILE


def test_the_listed_facts_are_those_of_the_classes() -> None:
    listed = json.loads(FILE.read_text(encoding="utf-8"))
    reduced = {name: facts["reductions"] for name, facts in listed["methods"].items()}
    assert listed == catalogue_facts.facts(reduced), "run: python tests/methods/catalogue_facts.py"
