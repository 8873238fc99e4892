"""Every name that another profile or an imported log reports can be explained, and as its suite judges it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge.evals.suite import PROFILES, Profile
from expunge.evals.suites import muse_openunlearning, tofu_openunlearning, tofu_original
from expunge.evals.suites.tofu import measure
from expunge.evals.suites.tofu_sheet import CHANCE, Rule
from expunge.metrics.cards.every import CARDS
from expunge.metrics.cards.profiles import OWN_CARDS, PROFILE_NAMES, SAME, ProfileName
from expunge.metrics.explain import explain, known_names, said_of
from expunge.testing.tables import random_tables

RULES: dict[tuple[str, str], Callable[[str], Rule]] = {
    ("openunlearning", "tofu"): tofu_openunlearning.rule,
    ("openunlearning", "muse"): muse_openunlearning.rule,
    ("tofu", "tofu"): tofu_original.rule,
}
NAMES = {version.name: version for version in PROFILE_NAMES}


def test_names_are_there_once_and_their_versions_exist() -> None:
    assert len(NAMES) == len(PROFILE_NAMES)
    assert OWN_CARDS.keys() == {name for name, version in NAMES.items() if version.like is None}
    for version in PROFILE_NAMES:
        assert version.like is None or version.like in CARDS
        for canonical in version.versions():
            found = explain(canonical)
            assert version in found.others, canonical
            if " " not in version.name and not version.name.startswith("forget_holdout"):
                assert found.direction == version.direction, version.name


@pytest.mark.parametrize("profile", [profile for profile in PROFILES if profile != "canonical"])
def test_every_name_of_a_profile_is_explained(profile: Profile) -> None:
    tables, reference = random_tables(rows=6), random_tables(seed=1, rows=6)
    found = measure(tables, reference=reference, profile=profile, allow_missing=True)
    reported = {*found.scores, *found.skipped}
    assert reported <= NAMES.keys() | CARDS.keys()
    known = {version.name for version in PROFILE_NAMES if version.profile == profile and "tofu" in version.where}
    assert known == reported
    for name in reported:
        assert explain(name).card.definition


@pytest.mark.parametrize("version", PROFILE_NAMES, ids=lambda version: version.name)
def test_a_version_is_judged_as_its_suite_judges_it(version: ProfileName) -> None:
    found = explain(version.name)
    for suite in version.where:
        rule = RULES.get((version.profile, suite))
        if rule is not None:
            assert rule(version.name).direction == version.direction
            assert rule(version.name).ideal == found.card.ideal
    assert (found.card.chance == CHANCE) == version.name.startswith(("mia_", "forget_holdout_"))
    if version.name not in CARDS and explain(version.name).version is not None:
        assert found.direction == version.direction
        assert found.card.where == version.where


def test_what_a_version_says() -> None:
    ratio = explain("forget_truth_ratio")
    assert ratio.version is not None
    assert ratio.version.versions() == ["forget.truth_ratio"]
    assert "1e-10" in ratio.to_json()["differs"]
    assert ratio.to_json()["profile"] == "openunlearning"
    same = explain("forget_Q_A_ROUGE").to_json()
    assert (same["version_of"], same["differs"]) == (["forget.rougeL_recall"], SAME)
    own = explain("retain_Q_A_PARA_Prob").to_json()
    assert (own["version_of"], own["differs"], own["direction"]) == ([], None, "higher")
    # A name that both have is the canonical one, with the other's difference.
    leak = explain("privleak")
    assert leak.version is None
    assert "of mia_min_k" in "".join(said_of(leak.others))
    assert json.loads(json.dumps(leak.to_json()))["other_profiles"][0]["profile"] == "openunlearning"


def test_names_without_a_split_know_all_versions() -> None:
    said = said_of(explain("probability").others)
    assert said[0] == f"openunlearning: {', '.join(f'{p}_Q_A_Prob' for p in ('forget', 'retain', 'ra', 'wf'))}; {SAME}"
    assert NAMES.keys() <= set(known_names())


def test_pages_name_the_command_for_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert "expunge explain forget_truth_ratio" in page
