"""PISTOL's contracts: the real file, and how edges lie to each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.benchmarks.pistol import is_employment, load_pistol, parties, relations
from expunge.errors import DataError

SAMPLE_1 = {
    "linked": {"A_B", "A_C2", "A_C3", "A_m", "A_n", "A_n2", "A_n3"},
    "further": {"B_D", "B_D2", "B_D3", "B_p", "B_p2", "B_p3"},
    "independent": {"E1_F1", "E2_F2", "E3_F3", "E1_q1", "E2_q2", "E3_q3"},
}
"""How the published edges lie to A_C."""


def contract(edge: str, number: int = 0) -> dict[str, Any]:
    return {"question": f"What is {number} of {edge}?", "answer": f"{number}.", "edge": edge}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def by_relation(edges: list[str], forgotten: list[str]) -> dict[str, set[str]]:
    found = relations(edges, forgotten)
    return {name: {edge for edge, each in found.items() if each == name} for name in SAMPLE_1}


def test_real_contracts(shared: Path) -> None:
    found = load_pistol(str(shared / "data/pistol"))
    assert len(found.edges) == 20
    assert {len(rows) for rows in found.edges.values()} == {20}
    assert found.factual == ()
    example = found.edges["A_B"][1]
    assert (example.id, example.group, example.row) == ("A_B:1", "A_B", 1)
    assert example.answer == "Wnzatj SAS."
    assert by_relation(list(found.edges), ["A_C"]) == SAMPLE_1
    assert [edge for edge in found.edges if is_employment(edge)] == [
        *("A_m", "A_n", "A_n2", "A_n3", "B_p", "B_p2", "B_p3", "E1_q1", "E2_q2", "E3_q3")
    ]


def test_several_forgotten_edges() -> None:
    edges = ["A_B", "B_C", "C_D", "E_F", "F_g", "H_I"]
    found = by_relation(edges, ["A_B", "E_F"])
    assert found == {"linked": {"B_C", "F_g"}, "further": {"C_D"}, "independent": {"H_I"}}


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.sets(st.tuples(st.sampled_from("ABCDE"), st.sampled_from("FGHIJ")), min_size=2, max_size=9), st.data())
def test_every_kept_edge_lies_somewhere(pairs: set[tuple[str, str]], data: st.DataObject) -> None:
    edges = sorted("_".join(pair) for pair in pairs)
    forgotten = data.draw(st.lists(st.sampled_from(edges), min_size=1, max_size=3, unique=True))
    found = relations(edges, forgotten)
    assert set(found) == set(edges) - set(forgotten)
    touched = {party for edge in forgotten for party in parties(edge)}
    reached = {party for edge in edges if found.get(edge) != "independent" for party in parties(edge)}
    for edge, relation in found.items():
        assert (relation == "linked") == bool(touched & set(parties(edge)))
        assert (relation == "independent") == (not reached & set(parties(edge)))


def test_general_knowledge_lies_beside(tmp_path: Path) -> None:
    path = write(tmp_path / "sample_data_2.json", [contract("A_B"), contract("C_D")])
    write(tmp_path / "factual_data.json", [{"question": "Who wrote Emma?", "answer": "Jane Austen"}])
    for source in (path, tmp_path):
        found = load_pistol(str(source))
        assert list(found.edges) == ["A_B", "C_D"]
        assert [(each.id, each.group) for each in found.factual] == [("factual:0", None)]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_pistol(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match=r"no sample_data_\*\.json, but no data file"):
        load_pistol(str(tmp_path))
    path = write(tmp_path / "sample_data_1.json", [contract("A_B"), contract("A"), contract("A_B_C")])
    with pytest.raises(DataError, match=r"2 of 3 rows .* \(rows 1, 2; found 'A'\)"):
        load_pistol(str(path))
    write(path, [{"question": "x", "answer": "y"}])
    with pytest.raises(
        DataError,
        match="no column 'edge'; it has question, answer\nhint: the published file has question, answer, edge",
    ):
        load_pistol(str(path))
    write(path, [{**contract("A_B"), "prompt": "x", "completion": "y"}])
    with pytest.raises(DataError, match="holds prompt/completion rows"):
        load_pistol(str(path))
    write(tmp_path / "sample_data_2.json", [contract("A_B")])
    with pytest.raises(DataError, match=r"several files of contracts \(sample_data_1\.json, sample_data_2\.json\)"):
        load_pistol(str(tmp_path))
