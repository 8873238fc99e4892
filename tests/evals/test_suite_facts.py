"""What `ls suites` says is what the suites declare."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from expunge.catalog import Entry
from expunge.data.benchmarks.lume import SPLITS as LUME_SPLITS
from expunge.data.benchmarks.utility import TASKS
from expunge.data.worlds import build_world, write_world
from expunge.evals.suite import PROFILES, SuiteData
from expunge.evals.suite_facts import SuiteFacts, every_suite, facts_of
from expunge.evals.suites.pistol import SPLITS as PISTOL_SPLITS
from expunge.evals.suites.tofu import SPLITS, tofu
from expunge.evals.suites.world import world


def stated(name: str) -> SuiteFacts:
    facts = next(facts for entry, facts in every_suite() if entry.name == name)
    assert facts is not None
    return facts


def test_every_suite_of_ours_is_described() -> None:
    for entry, facts in every_suite():
        assert facts is not None, entry.name
        assert facts.needs, entry.name
        assert set(facts.profiles) <= set(PROFILES)


def test_tofu(shared: Path) -> None:
    suite = tofu(SuiteData(tofu=str(shared / "data" / "tofu"), forget_split="forget01", limit=1))
    facts = stated("tofu")
    assert tuple(split.name for split in suite.splits) == facts.splits == SPLITS
    assert facts.profiles == suite.profiles
    assert facts.tested_on == "real data"


def test_world(tmp_path: Path) -> None:
    folder = write_world(build_world(people=12, seed=0), tmp_path / "world")
    suite = world(SuiteData(world=folder, limit=1))
    facts = stated("world")
    assert tuple(split.name for split in suite.splits) == facts.splits
    assert facts.profiles == suite.profiles


def test_lume_and_pistol() -> None:
    assert stated("lume").splits[:12] == LUME_SPLITS
    assert stated("pistol").splits == PISTOL_SPLITS


def test_utility() -> None:
    facts = stated("utility")
    assert facts.splits == tuple(TASKS)
    assert facts.tested_on == "real data"


@pytest.mark.parametrize("attributes", [{}, {"FACTS": "no facts"}])
def test_another_package_may_state_nothing(monkeypatch: pytest.MonkeyPatch, attributes: dict[str, str]) -> None:
    module = ModuleType("their_suite")
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, "their_suite", module)
    assert facts_of(Entry("theirs", "their_suite:suite", "from theirs")) is None


def test_another_packages_facts_lie_beside_its_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SuiteFacts("rows", (), ("forget",), ("canonical",), "fixtures", "unpublished")
    module = ModuleType("their_suite")
    vars(module)["FACTS"] = facts
    monkeypatch.setitem(sys.modules, "their_suite", module)
    assert facts_of(Entry("theirs", "their_suite:suite", "from theirs")) is facts
