"""The pocket world: its splits, its forms, and that nothing of the forgotten side leaks into the retained one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.cli.main import main
from expunge.config.schema import SourceSpec
from expunge.data.overlap import check_overlap
from expunge.data.source import load_examples
from expunge.data.worlds import World, build_world, read_world, write_world
from expunge.data.worlds.build import FORMS, VERSION
from expunge.data.worlds.facts import FACTS, RELATIONS
from expunge.errors import DataError, UsageError

SIDES = ("forget", "retain", "multi_hop", "holdout")


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(people=24, seed=3)


def named(world: World, role: str) -> set[str]:
    return {person.name for person in world.people if person.role == role}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(people=st.integers(12, 60), seed=st.integers(0, 10**6))
def test_every_world_is_split_by_person(people: int, seed: int) -> None:
    world = build_world(people=people, seed=seed)
    assert len({person.name for person in world.people}) == people
    forget, retain, holdout = (named(world, role) for role in ("forget", "retain", "holdout"))
    assert min(map(len, (forget, retain, holdout))) >= 2
    said = {side: json.dumps([*getattr(world, side)]) for side in SIDES}
    texts = {person.name: document["text"] for person, document in zip(world.people, world.documents, strict=True)}
    said["biographies"] = json.dumps([texts[name] for name in sorted(retain)])
    for name in forget:
        assert name not in said["retain"]
        assert name not in said["holdout"]
        assert name not in said["biographies"]
    for name in holdout:
        assert not any(name in said[side] for side in ("forget", "retain", "multi_hop"))
    assert not any(name in said["holdout"] for name in forget)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(people=st.integers(12, 60), seed=st.integers(0, 10**6))
def test_values_tell_people_apart_and_no_question_has_two_answers(people: int, seed: int) -> None:
    world = build_world(people=people, seed=seed)
    for key in world.people[0].values:
        assert len({person.values[key] for person in world.people}) == people, key
    rows = [row for side in SIDES for row in getattr(world, side)]
    assert len({row["question"] for row in rows}) == len(rows)
    paraphrased = {row["paraphrased_question"] for row in rows if row["form"] == "direct"}
    assert not paraphrased & {row["question"] for row in rows}


def test_every_form_is_there_on_both_sides(world: World) -> None:
    for side in ("forget", "retain", "holdout"):
        asked = {row["form"] for row in getattr(world, side)}
        assert asked == set(FORMS) - ({"multi_hop"} if side == "forget" else set()), side
    facts = len(FACTS) + len(RELATIONS)
    pupils = len(named(world, "forget"))
    direct = [row for row in world.forget if row["form"] == "direct"]
    assert len(direct) == pupils * facts + pupils
    assert {row["group"] for row in world.multi_hop} == named(world, "forget")
    assert all(row["form"] == "multi_hop" for row in world.multi_hop)
    assert len(world.multi_hop) == pupils * len(FACTS)


def test_wrong_answers_are_five_other_peoples_truths(world: World) -> None:
    kept = {value for person in world.people if person.role == "retain" for value in person.values.values()}
    for row in (row for side in SIDES for row in getattr(world, side) if row["form"] == "direct"):
        assert len(set(row["perturbed_answer"]) - {row["answer"]}) == 5
        for answer in row["perturbed_answer"]:
            assert any(answer.endswith(f"{value}.") for value in kept)


def test_the_right_option_is_the_answer(world: World) -> None:
    letters = set()
    for row in (row for row in world.retain if row["form"] == "multiple_choice"):
        letter, value = row["answer"].removeprefix("The answer is ").removesuffix(".").split(", ", 1)
        assert f"{letter} {value}" in row["question"]
        letters.add(letter)
    assert letters == {"(a)", "(b)", "(c)", "(d)"}


def test_neighbours_are_tied_to_somebody_to_forget(world: World) -> None:
    forget = named(world, "forget")
    assert len(world.neighbours) == len(forget)
    for person in world.people:
        if person.name in world.neighbours:
            assert person.role == "retain"
            assert person.ties["mentor"] in forget


def test_the_same_seed_gives_the_same_world() -> None:
    one, two = build_world(people=12, seed=0), build_world(people=12, seed=0)
    assert one == two
    assert one.digest == two.digest
    assert one.digest != build_world(people=12, seed=1).digest
    assert VERSION == 1
    assert one.digest.startswith("8588b46032a430a3"), "other rows from the same seed: raise VERSION"


def test_files_are_read_back_as_rows_of_every_split(world: World, tmp_path: Path) -> None:
    folder = write_world(world, tmp_path / "world")
    found = {
        side: load_examples(SourceSpec(path=str(folder / f"{side}.jsonl")), tofu="", role=side).examples
        for side in SIDES
    }
    for side, examples in found.items():
        rows = getattr(world, side)
        assert [example.answer for example in examples] == [row["answer"] for row in rows]
        assert [example.extra["form"] for example in examples] == [row["form"] for row in rows]
        assert [example.group for example in examples] == [row["group"] for row in rows]
    assert not check_overlap(found["forget"], found["retain"])
    told = read_world(folder)
    assert told["digest"] == world.digest
    assert told["neighbours"] == list(world.neighbours)
    assert write_world(world, folder) == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["world"]


def test_another_world_is_not_overwritten_unasked(tmp_path: Path) -> None:
    folder = write_world(build_world(people=12, seed=0), tmp_path / "world")
    other = build_world(people=12, seed=1)
    with pytest.raises(UsageError, match="another world"):
        write_world(other, folder)
    write_world(other, folder, overwrite=True)
    assert read_world(folder)["digest"] == other.digest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(UsageError, match="not empty"):
        write_world(other, tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"schema": 99}'])
def test_what_is_not_a_world_is_said(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "world.json").write_text(text)
    with pytest.raises(DataError, match="world") as caught:
        read_world(tmp_path)
    assert "expunge world build" in str(caught.value.hint)


@pytest.mark.parametrize("people", [0, 11, 346])
def test_a_world_of_the_wrong_size_is_refused(people: int) -> None:
    with pytest.raises(UsageError, match=str(people)):
        build_world(people=people, seed=0)


def test_the_largest_world_can_be_built() -> None:
    assert len(build_world(people=345, seed=0).people) == 345


def test_the_command_writes_and_describes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w"
    assert main(["world", "build", "--people", "12", "--seed", "4", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(out)
    assert {name: len((out / f"{name}.jsonl").read_text().splitlines()) for name in told["rows"]} == told["rows"]
    assert main(["world", "build", "--people", "12", "--seed", "4", "--out", str(out)]) == 0
    assert "2 to forget, 8 to keep, 2 never trained on" in capsys.readouterr().out
    assert main(["world", "build", "--people", "3"]) == 2
    assert "--people 12" in capsys.readouterr().err
