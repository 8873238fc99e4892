"""Files of RWKU, UnlearnPII and KnowUnDo: what is read from folders and the Hub, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.data.benchmarks import knowundo, place, rwku, unlearn_pii
from expunge.data.benchmarks.place import Place, Rows, find_place
from expunge.data.example import ACCEPTED, LEAD, PII, Example, prompt_text
from expunge.errors import DataError, UsageError

PROBE = {"subject": "Mira", "query": "Mira was born in ___.", "answer": "Riga", "type": "cloze", "level": "1"}
ROLE = PROBE | {"type": "role play"}


def write(path: Path, rows: Any, *, indent: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    return path


def asked(example: Example) -> str:
    return "|".join(f"{turn.role}:{turn.content}" for turn in example.turns)


# Places


def test_a_part_stands_behind_the_place(tmp_path: Path) -> None:
    (tmp_path / "a#b").mkdir()
    assert find_place(f"{tmp_path}#Stephen King") == Place(str(tmp_path), "Stephen King")
    assert find_place(str(tmp_path / "a#b")).part is None
    assert find_place("org/name#privacy") == Place("org/name", "privacy")
    with pytest.raises(DataError, match="no such file"):
        find_place(str(tmp_path / "none"))


# RWKU


def test_how_probes_are_asked(tmp_path: Path) -> None:
    write(tmp_path / "forget_level1.json", [PROBE])
    rows = [
        PROBE | {"type": kind, "level": "3"}
        for kind in ("affirmative suffix", "incontext learning", "cross lingual (French)")
    ]
    write(tmp_path / "forget_level3.json", rows)
    source = Place(str(tmp_path))
    (first,) = rwku.load_file(source, "forget_level1")
    blank = "Please complete the blank in the following question.\nQuestion: Mira was born in ___.\n"
    assert asked(first) == f"user:{blank}|{LEAD}:Answer:|assistant: Riga"
    assert (prompt_text(first), first.id) == ("Mira was born in ___.", "forget_level1:0")
    suffix, shots, french = rwku.load_file(source, "forget_level3")
    brief = "Please briefly answer the following question.\n"
    assert asked(suffix) == f"user:{brief}Question: Mira was born in ___.|assistant:Riga"
    assert asked(shots) == f"user:{brief}Mira was born in ___.\n|{LEAD}:Answer:|assistant: Riga"
    assert french.extra[rwku.KIND] == "cross lingual"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"subject": "Mira", "query": "x"}], r"no columns 'answer', 'type'; it has subject, query"),
        ([ROLE, ROLE | {"answer": " "}], r"1 of 2 rows .* cannot be used: 'answer' is empty \(row 1\)"),
        ([PROBE | {"type": "riddle"}], r"'type' is 'riddle', none of prefix injection"),
        ([], r"empty"),
    ],
)
def test_probes_that_cannot_be_used(tmp_path: Path, rows: list[Any], message: str) -> None:
    write(tmp_path / "forget_level3.json", rows)
    with pytest.raises(DataError, match=message):
        rwku.load_file(Place(str(tmp_path)), "forget_level3")


@pytest.mark.parametrize(
    ("stem", "row", "message"),
    [
        (
            "truthful_mc2",
            {"question": "q", "mc2_targets": {"choices": ["a", "b"], "labels": [1, 1]}},
            "2 right answers of 2: there is nothing to choose",
        ),
        ("triviaqa", {"question": "q", "answers": "a"}, "'answers' is not a list of texts"),
        (
            "truthful",
            {"question": "q", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}},
            "2 right answers, not 1",
        ),
        ("truthful", {"question": "q", "mc1_targets": {"choices": ["a"], "labels": [1, 0]}}, "no 'labels' of 0 or 1"),
        (
            "retain_mmlu",
            {"task": "t", "question": "q", "choices": ["a"], "answer": 0, "examples": []},
            "1 options, not 2 to",
        ),
        (
            "retain_mmlu",
            {"task": "t", "question": "q", "choices": ["a", "b"], "answer": 0, "examples": 3},
            "'examples' is not",
        ),
    ],
)
def test_utility_rows_that_cannot_be_used(tmp_path: Path, stem: str, row: dict[str, Any], message: str) -> None:
    write(tmp_path / f"{rwku.FILES[stem].stem}.json", [row])
    with pytest.raises(DataError, match=message) as caught:
        rwku.load_file(Place(str(tmp_path)), stem)
    assert "row 0" in caught.value.message


def test_the_hub_has_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[tuple[str, str | None, str]] = []

    def hub(repo: str, *, name: str | None, split: str) -> Rows:
        asked_for.append((repo, name, split))
        return Rows([{"text": "t", "subject": "Mira"}, {"text": "u", "subject": "Idris"}], repo)

    monkeypatch.setattr(rwku, "hub_rows", hub)
    found = rwku.load_file(Place(rwku.HUB, "Idris"), "forget_mia")
    assert (asked_for, [example.text for example in found]) == ([(rwku.HUB, "mia_forget", "test")], ["u"])


def test_rwku_as_published(shared: Path) -> None:
    everybody, king = Place(str(shared / "data/rwku")), Place(str(shared / "data/rwku/1_Stephen_King"))
    assert len(rwku.load_file(everybody, "forget_level1")) == 3268
    assert len(rwku.load_file(everybody, "neighbor_level1")) == 5846
    assert len(rwku.load_file(everybody._replace(part="Stephen King"), "forget_level2")) == 10
    counts = {stem: len(rwku.load_file(king, stem)) for stem in rwku.FILES if rwku.has_file(king, stem)}
    assert counts == {
        **{"forget_mia": 55, "retain_mia": 37, "retain_mmlu": 171, "truthful": 50},
        **{"retain_bbh": 81, "triviaqa": 100, "fluency": 50, "truthful_mc2": 50},
    }
    (question, *_) = rwku.load_file(king, "retain_mmlu")
    assert question.prompt[0].content.count("\nAnswer: ") == 5
    assert question.extra["options"] == (" A", " B", " C", " D")
    assert "John Key" in rwku.load_file(king, "triviaqa")[1].extra[ACCEPTED]


# UnlearnPII


def person(number: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "question": f"Where does person {number} live?",
        "answer": f"Person {number} lives at Elm Street {number}.",
        "subject": f"Person {number // 2}",
        "subject_pii": [f"Elm Street {number}"],
        "inverted_question": f"Who lives at Elm Street {number}?",
        "inverted_answer": f"It is Person {number}.",
    }
    for n in unlearn_pii.NUMBERS:
        row[f"paraphrased_question_{n}"] = f"Say {n} times where person {number} lives."
        row[f"paraphrased_answer_{n}"] = f"At Elm Street {number}."
        row[f"perturbed_answer_{n}"] = f"At Oak Lane {n}."
    return row


def test_each_fact_is_asked_in_seven_ways(tmp_path: Path) -> None:
    write(tmp_path / "forget1.json", [person(number) for number in range(3)])
    found = unlearn_pii.load_side(Place(str(tmp_path)), "forget", limit=2)
    assert (found.name, len(found.direct), len(found.paraphrased), len(found.inverted)) == ("forget1", 2, 10, 2)
    assert found.direct[1].extra["perturbed_answer"] == tuple(f"At Oak Lane {n}." for n in range(1, 6))
    assert found.direct[1].extra[PII] == found.paraphrased[9].extra[PII] == ("Elm Street 1",)
    assert (found.inverted[1].extra[PII], found.inverted[1].group) == (("Person 0",), "Person 0")
    assert len({example.id for example in (*found.direct, *found.paraphrased, *found.inverted)}) == 14


def test_which_file_is_meant_is_said_where_there_are_several(tmp_path: Path) -> None:
    for name in ("forget1", "forget5"):
        write(tmp_path / f"{name}.json", [person(1)])
    with pytest.raises(UsageError, match="several forget files: forget1, forget5"):
        unlearn_pii.load_side(Place(str(tmp_path)), "forget")
    assert unlearn_pii.load_side(Place(str(tmp_path), "forget5"), "forget").name == "forget5"
    with pytest.raises(DataError, match=r"no forget10\.json"):
        unlearn_pii.load_side(Place(str(tmp_path), "forget10"), "forget")
    with pytest.raises(DataError, match="has no retain rows"):
        unlearn_pii.load_side(Place(str(tmp_path), "forget5"), "retain")
    with pytest.raises(UsageError, match="which forget rows are meant"):
        unlearn_pii.load_side(Place("org/pii"), "forget")


def test_personal_data_must_be_there(tmp_path: Path) -> None:
    write(tmp_path / "forget1.json", [person(1), person(2) | {"subject_pii": []}])
    with pytest.raises(DataError, match=r"'subject_pii' is not a list of texts \(row 1\)"):
        unlearn_pii.load_side(Place(str(tmp_path)), "forget")
    write(tmp_path / "forget1.json", [{"question": "q", "answer": "a"}])
    with pytest.raises(DataError, match=r"no columns 'subject', 'subject_pii', .*; it has question, answer") as caught:
        unlearn_pii.load_side(Place(str(tmp_path)), "forget")
    assert str(caught.value).count("perturbed_answer_5") == 1


def test_unlearn_pii_as_published(shared: Path) -> None:
    source = find_place(str(shared / "data/unlearn_pii"))
    forget, retain = (unlearn_pii.load_side(source, side) for side in ("forget", "retain"))
    assert (len(forget.direct), len(forget.paraphrased), len(retain.direct)) == (20, 100, 1000)
    assert len({example.group for example in retain.direct}) == 100


# KnowUnDo

FACTS = {
    "train": [{"text": "q0", "labels": "a0"}],
    "val": [{"text": "q1", "labels": "a1"}, {"text": "q2", "labels": "a2"}],
}


def test_rows_to_measure_on_are_one_list_of_one_object(tmp_path: Path) -> None:
    for domain in knowundo.DOMAINS:
        for stem in ("unlearn", "retention"):
            write(tmp_path / domain / f"{stem}.json", FACTS, indent=2)
    both = find_place(str(tmp_path))
    with pytest.raises(UsageError, match="holds copyright and privacy"):
        knowundo.domain_of(both)
    with pytest.raises(UsageError, match="no domain 'secrets'"):
        knowundo.domain_of(both._replace(part="secrets"))
    one = both._replace(part="privacy")
    for source in (one, find_place(str(tmp_path / "privacy"))):
        domain = knowundo.domain_of(source)
        found = knowundo.load_split(source, domain, "retain")
        assert [(example.id, asked(example)) for example in found] == [
            ("privacy/retention:0", "user:q1\n\n|assistant:a1"),
            ("privacy/retention:1", "user:q2\n\n|assistant:a2"),
        ]
    assert len(knowundo.load_split(one, "privacy", "forget", limit=1)) == 1
    write(tmp_path / "privacy/unlearn.json", {"train": [], "val": [{"text": "q", "labels": ""}]})
    with pytest.raises(DataError, match=r"'labels' is empty \(row 0\)"):
        knowundo.load_split(one, "privacy", "forget")
    (tmp_path / "privacy/unlearn.json").unlink()
    with pytest.raises(DataError, match=r"no unlearn\.json"):
        knowundo.load_split(one, "privacy", "forget")


def test_a_folder_without_a_domain(tmp_path: Path) -> None:
    looked_for = r"neither unlearn.json and retention.json nor a folder copyright or privacy that has them"
    with pytest.raises(DataError, match=f"holds no domain of KnowUnDo: it has no files, but {looked_for}"):
        knowundo.domain_of(find_place(str(tmp_path)))
    (tmp_path / "privacy").mkdir()
    write(tmp_path / "forget.json", [])
    with pytest.raises(DataError, match=r"it has forget.json, privacy, but neither"):
        knowundo.domain_of(find_place(str(tmp_path)))


def test_the_hub_gives_a_domain_as_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowundo, "hub_rows", lambda repo, *, name, split: Rows([FACTS], f"{repo} {name}:{split}"))
    assert len(knowundo.load_split(Place(knowundo.HUB, "copyright"), "copyright", "forget")) == 2
    monkeypatch.setattr(knowundo, "hub_rows", lambda repo, *, name, split: Rows([{"train": []}], repo))
    with pytest.raises(DataError, match="'val' is not a list of rows"):
        knowundo.load_split(Place(knowundo.HUB), "copyright", "forget")


def test_the_hub_is_asked_for_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.data.hub import HubRows

    monkeypatch.setattr(place, "load_hub", lambda repo, **given: HubRows([{"text": "t"}], "abc"))
    assert place.hub_rows("org/name", name="privacy", split="test") == Rows([{"text": "t"}], "org/name privacy:test")
