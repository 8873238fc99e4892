"""`expunge ls methods` and `ls wrappers`: what each needs and how they compose, without importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from invocation import Invoke

from expunge import catalog
from expunge.catalog import METHODS, WRAPPERS
from expunge.cli import ls_facts
from expunge.methods.npo import NPO

FACTS = {
    *("name", "summary", "paper", "url", "target", "experimental", "granularity", "reductions", "needs", "wrappers"),
    "works_without_retain",
}


def listed(invoke: Invoke, kind: str) -> dict[str, dict[str, Any]]:
    return {facts["name"]: facts for facts in json.loads(invoke("ls", kind, "--json").out)}


def test_methods_say_what_they_need(invoke: Invoke) -> None:
    methods = listed(invoke, "methods")
    assert list(methods) == METHODS.names()
    assert all(facts.keys() == FACTS for facts in methods.values())
    assert all(facts["paper"] and facts["reductions"] for facts in methods.values())
    idk = methods["idk_dpo"]
    assert idk["needs"]["roles"] == ["forget", "retain"]
    assert idk["needs"]["linked"] == {"alternate": "refusals"}
    assert idk["needs"]["references"] == {"forget": ["seq_logp"], "alternate": ["seq_logp"]}
    assert idk["works_without_retain"]
    assert idk["granularity"] == "sequence"
    assert methods["eua"]["url"] == "https://arxiv.org/abs/2605.16776"
    assert not methods["eua"]["works_without_retain"]
    assert methods["oracle_matching"]["experimental"]
    assert methods["simimp"]["needs"]["annotations"] == "optional"
    assert methods["altpo"]["needs"]["linked"] == {"alternate": "made"}
    assert methods["rmu"]["granularity"] == "hidden"
    assert methods["pdu"]["wrappers"]["brings"] == ["dual"]
    assert [methods[name]["needs"]["retain"] for name in ("eua", "npo", "undial", "grad_ascent")] == [
        *("needed", "optional", "optional", "not used")
    ]
    assert methods["alkn"]["wrappers"]["brings"] == ["alkn"]


def test_methods_say_what_they_compose_with(invoke: Invoke) -> None:
    methods, wrappers = listed(invoke, "methods"), listed(invoke, "wrappers")
    for facts in methods.values():
        for kind, names in facts["wrappers"]["composes_with"].items():
            assert all(wrappers[name]["kind"] == kind for name in names)
    assert "gru" in methods["npo"]["wrappers"]["composes_with"]["combine"]
    assert "gru" not in methods["grad_ascent"]["wrappers"]["composes_with"]["combine"], "it has no retain gradient"


def test_wrappers_are_the_catalogue(invoke: Invoke) -> None:
    wrappers = listed(invoke, "wrappers")
    assert list(wrappers) == WRAPPERS.names()
    assert {facts["kind"] for facts in wrappers.values()} >= {"combine", "mask"}
    assert wrappers["gru"]["needs"] == {"roles": ["retain"]}
    table = invoke("ls", "wrappers").out.splitlines()
    assert table[0].split() == ["name", "kind", "needs", "summary"]
    assert len(table) == len(wrappers) + 1


def test_the_table_says_it_in_words(invoke: Invoke) -> None:
    rows = {line.split()[0]: line for line in invoke("ls", "methods").out.splitlines()}
    assert "forget, retain (optional), refusals" in rows["idk_dpo"]
    assert "[experimental]" in rows["oracle_matching"]
    assert "optional" not in rows["eua"]


def test_listing_imports_no_torch() -> None:
    code = """
import sys
from expunge.cli.main import main
assert main(["ls", "methods"]) == main(["ls", "wrappers", "--json"]) == 0
assert not {"torch", "transformers"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Theirs(NPO):
    """A method of another package."""

    paper = "unpublished"


class Broken(NPO):
    """One that cannot be made without keys."""

    secret: int


def entry_point(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    point = EntryPoint("theirs", f"{__name__}:{kind.__name__}", "expunge.methods")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[kind.__module__])
    monkeypatch.setattr(catalog, "_installed", lambda group: EntryPoints([point]).select(group=group))


def test_another_packages_method_is_asked(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(monkeypatch, Theirs)
    facts = listed(invoke, "methods")["theirs"]
    assert facts["needs"]["references"] == {"forget": ["seq_logp"]}
    assert (facts["url"], facts["reductions"]) == (None, None)


def test_a_class_that_cannot_be_listed_is_an_error(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(monkeypatch, Broken)
    result = invoke("ls", "methods")
    assert result.code == 2
    assert "theirs" in result.err
    assert "default" in result.err


def test_facts_of_ours_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ls_facts, "describe_method", lambda entry: pytest.fail(entry.name))
    assert len(ls_facts.method_facts()) == len(METHODS.names())
