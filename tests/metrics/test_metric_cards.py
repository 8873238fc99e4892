"""What is written about metrics is what the page says, what suites report and how they judge."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.errors import UsageError
from expunge.evals.suite import Measured
from expunge.evals.suite_facts import every_suite
from expunge.evals.suites import tofu_canonical, world
from expunge.evals.suites.tofu import measure as measure_tofu
from expunge.evals.suites.tofu_sheet import CHANCE, Rule
from expunge.metrics.cards.every import CARDS
from expunge.metrics.explain import SPLIT, explain, known_names, names_of
from expunge.metrics.leak_names import listed_name
from expunge.metrics.registry import METRICS, direction_of
from expunge.testing.tables import Row, answer_row, make_tables, random_tables, text_row

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
RULES = {"tofu": tofu_canonical.rule, "world": world.rule}
OPTED = (
    *("leak_at_K", "leak_at_K_contains", "leak_at_K_entailed", "gibberish", "perplexity"),
    "energy.auroc_tT",
)
"""Only where they were asked for: of sampled answers, of judged ones, of other temperatures."""
RELATIVE_TO_A_ROW_ABOVE = re.compile(r"^(the same|its)\b|\babove t\b|three of them")
"""Cells of the page that say what they differ in from the row above."""


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def cells(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|- "):
            yield [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", cell.strip()) for cell in line.split("|")[1:-1]]


def test_every_metric_has_a_card_and_every_card_a_metric() -> None:
    assert set(CARDS) == {info.name for info in METRICS}
    for name, card in CARDS.items():
        assert card.definition.endswith("."), name
        assert card.formula, name
        assert card.source, name
        assert (name.startswith(SPLIT)) == all(card.where.values()), "splits are named where the name leaves them open"


def test_formulas_are_those_of_the_page() -> None:
    defined = {row[0].strip("`"): row[1] for row in cells(section("Definitions")) if "`" in row[0]}
    compared = 0
    for name, card in CARDS.items():
        if not RELATIVE_TO_A_ROW_ABOVE.search(defined[name]):
            assert card.formula == defined[name], name
            compared += 1
    assert compared > len(CARDS) / 2


def test_limits_are_those_of_the_page() -> None:
    said = {row[1] for row in cells(section("What each cannot tell")) if row[1] != "cannot tell"}
    assert {card.cannot_tell for card in CARDS.values()} == said


def test_papers_of_the_cards_are_on_the_page() -> None:
    for card in CARDS.values():
        for url in card.urls:
            number = url.rpartition("/")[2]
            # The method that energy is measured for is cited in the pages of methods and guard.
            assert number in PAGE or number == "2605.16776", number


def names_in(suite: str) -> set[str]:
    found = set()
    for info in METRICS:
        splits = CARDS[info.name].where.get(suite)
        if splits is not None and not info.name.endswith(("klom", "klom_p95")):
            found |= {info.name.replace(SPLIT, f"{split}.") for split in splits} if splits else {info.name}
    return found


def world_measured() -> Measured:
    splits = dict(every_suite())[next(entry for entry, _ in every_suite() if entry.name == "world")]
    assert splits is not None
    texts: list[Row] = []
    answers: list[Row] = []
    for split in splits.splits:
        full = split in ("forget", "retain", "holdout")
        for row in range(4):
            for place, variant in enumerate(("answer", "paraphrase", "perturbed_0") if full else ("answer",)):
                logp = [-0.1 * (row + 1 + place), -0.2]
                texts.append(
                    text_row(split, row, variant, logp, hit=[True, True], group=f"person {row // 2}", moments=full)
                )
            if full:
                answers.append(answer_row(split, row, group=f"person {row // 2}"))
    before = make_tables(texts, answers)
    after = make_tables([text | {"logp": [2 * value for value in text["logp"]]} for text in texts], answers)
    return world.measure(after, reference=before, start=before)


@pytest.mark.parametrize("suite", ["tofu", "world"])
def test_suites_report_what_the_cards_say(suite: str) -> None:
    tables = random_tables(rows=12)
    found = world_measured() if suite == "world" else measure_tofu(tables, reference=random_tables(seed=1, rows=12))
    assert {listed_name(name) for name in found.scores} <= names_in(suite)
    # A skipped metric is one that the suite could report.
    reported = {listed_name(name) for name in found.scores} | set(found.skipped)
    assert names_in(suite) - {name for name in names_in(suite) if name.endswith(OPTED)} <= reported


@pytest.mark.parametrize("suite", ["tofu", "world"])
def test_directions_and_ideals_are_those_that_suites_judge_by(suite: str) -> None:
    for name in sorted(names_in(suite)):
        rule: Rule = RULES[suite](name)
        found = explain(name)
        assert found.direction == rule.direction, name
        assert found.card.ideal == rule.ideal, name
        assert found.card.chance == (CHANCE if name.startswith("membership.") else None), name


def test_any_splits_name_works_and_a_name_without_one() -> None:
    assert explain("forget.rougeL_recall").direction == "lower"
    assert explain("retain.rougeL_recall").direction == "higher"
    assert explain("holdout.probability").direction == "match"
    assert explain("holdout.klom").direction == "lower"
    bare = explain("rougeL_recall")
    assert (bare.name, bare.direction) == ("<split>.rougeL_recall", "lower on forget, higher elsewhere")
    assert explain("<split>.rougeL_recall") == bare
    assert explain("virology.accuracy").card == explain("mmlu.accuracy").card
    assert explain("my_quiz.probability").direction == "higher"
    assert explain("model_utility").card.where == {"tofu": ()}
    for name in known_names():
        assert explain(name).name.endswith(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("forget.rogueL_recall", "'forget.rougeL_recall'"),
        ("forgt.probability", "'forget.probability'"),
        ("model_utilty", "'model_utility'"),
        ("extraction_strenght", "'extraction_strength'"),
        ("real_authors.extraction_strength", ".extraction_strength'"),
        ("foo.bar", "expunge ls metrics"),
        ("harness.acc", "expunge ls metrics"),
    ],
)
def test_the_nearest_name_is_offered(name: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        explain(name)
    assert repr(name) in caught.value.message
    assert nearest in str(caught.value.hint)


def test_names_follow_the_suites_splits() -> None:
    info = next(info for info in METRICS if info.name == "<split>.exact_memorization")
    names = names_of(info)
    assert names[:3] == [f"{split}.exact_memorization" for split in ("forget", "retain", "forget_verbatim")]
    assert len(set(names)) == len(names)
    assert direction_of("nothing.known") is None


@pytest.mark.parametrize(
    "name", ["forget.leak_at_4", "forget.leak_at_128_contains_t0.8_p0.95", "retain.leak_at_1_t0_p1"]
)
def test_a_number_and_settings_of_sampling_may_stand_in_a_name(name: str) -> None:
    found = explain(name)
    assert found.name == name
    assert found.card is CARDS["<split>.leak_at_K_contains" if "contains" in name else "<split>.leak_at_K"]
    assert found.direction == direction_of(name) == ("lower" if name.startswith("forget") else "higher")


@pytest.mark.parametrize(
    "name", ["forget.leak_at_x", "forget.leak_at_4_guessed", "forget.leak_at_4_t1", "neighbours.leak_at_4"]
)
def test_other_names_of_that_kind_are_unknown(name: str) -> None:
    with pytest.raises(UsageError):
        explain(name)
