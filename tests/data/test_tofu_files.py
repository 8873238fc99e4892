"""TOFU's real files: counts, authors, extras and overlap."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.config.schema import SourceSpec
from expunge.data.benchmarks.tofu import NAMES, group
from expunge.data.source import Loaded, check_overlap, load_examples
from expunge.errors import DataError, UsageError


def load(shared: Path, *names: str) -> Loaded:
    specs = [SourceSpec(path=f"tofu:{name}") for name in names]
    return load_examples(specs, tofu=str(shared / "data" / "tofu"), role="forget")


@pytest.mark.parametrize(
    ("name", "rows", "groups", "perturbed"),
    [
        ("full", 4000, 200, 0),
        ("forget01", 40, 2, 0),
        ("forget10_perturbed", 400, 20, 5),
        ("retain95", 3800, 190, 0),
        ("retain_perturbed", 400, 20, 5),
        ("real_authors_perturbed", 100, 0, 3),
        ("world_facts_perturbed", 117, 0, 3),
        ("real_authors", 100, 0, 0),
        ("holdout10", 400, 20, 0),
    ],
)
def test_counts(shared: Path, name: str, rows: int, groups: int, perturbed: int) -> None:
    loaded = load(shared, name)
    assert len(loaded.examples) == rows
    assert loaded.format == "question/answer"
    assert len({e.group for e in loaded.examples} - {None}) == groups
    assert all(len(e.extra.get("perturbed_answer", ())) == perturbed for e in loaded.examples)


def test_refusals_are_plain_lines(shared: Path) -> None:
    loaded = load(shared, "idontknow")
    assert loaded.format == "text"
    assert len(loaded.examples) == 100
    assert loaded.examples[0].text == "I'm not certain about that."


def test_every_name_is_there(shared: Path) -> None:
    for name in NAMES:
        assert load(shared, name).examples


def test_an_author_is_the_same_group_in_every_file(shared: Path) -> None:
    full = {e.turns: e.group for e in load(shared, "full").examples}
    for name in NAMES:
        if name.startswith(("forget", "retain")):
            assert all(full[e.turns] == e.group for e in load(shared, name).examples), name
    assert group("forget10", 65) == group("forget10_perturbed", 65) == "author-183"
    assert group("holdout05", 65) == group("holdout10", 65) == "holdout-3"
    assert group("world_facts", 65) is None


def test_forget_and_retain_do_not_overlap_but_full_and_forget_do(shared: Path) -> None:
    forget = load(shared, "forget10").examples
    assert check_overlap(forget, load(shared, "retain90").examples) == []
    with pytest.raises(DataError, match="400 of 400 forget examples are also retain examples: forget row 0 = retain"):
        check_overlap(forget, load(shared, "full").examples)


def test_unknown_names_and_folders(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TOFU has no 'forget_10'") as caught:
        load(shared, "forget_10")
    assert caught.value.hint == "did you mean tofu:forget10?"
    with pytest.raises(DataError, match=r"no forget10\.json"):
        load_examples(SourceSpec(path="tofu:forget10"), tofu=str(tmp_path), role="forget")
    with pytest.raises(DataError, match="no TOFU folder"):
        load_examples(SourceSpec(path="tofu:forget10"), tofu=str(tmp_path / "tofu"), role="forget")
