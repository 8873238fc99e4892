"""PISTOL (Qiu et al., 2406.16810): invented contracts as the edges of a graph, twenty questions to each.

An edge is written as its two parties, `A_B`: a sale between companies, or, where the second party's name is in small
letters (`A_m`), an employment. What is unlearned is edges.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from expunge.config.schema import SourceSpec
from expunge.data.encode import name_rows
from expunge.data.example import Example
from expunge.data.readers import ENDINGS
from expunge.data.source import load_examples
from expunge.errors import DataError

CONTRACTS, FACTUAL = "sample_data", "factual_data"
"""What the published files' names begin with: contracts, and questions of general knowledge beside them."""

Relation = Literal["linked", "further", "independent"]


class Pistol(NamedTuple):
    """One data set."""

    edges: dict[str, tuple[Example, ...]]
    """Edge -> its questions."""
    factual: tuple[Example, ...] = ()
    """Questions of general knowledge; empty where there are none."""


def load_pistol(source: str) -> Pistol:
    """The questions of every edge, and those of general knowledge that lie beside them.

    Args:
        source: a file of contracts, a folder that holds one (`sample_data_1.json`), or a Hub id.

    Raises:
        DataError: no such source, several files of contracts, rows without an edge or with another form of it, or
            rows that are not questions with answers.
        UsageError: the Hub without the `hub` extra.
    """
    path = Path(source).expanduser()
    contracts = str(_contracts(path)) if path.is_dir() else source
    folder = path if path.is_dir() else path.parent
    beside = [file for file in _files(folder) if file.stem == FACTUAL] if path.exists() else []
    factual = _questions(str(beside[0]), {}) if beside else []
    return Pistol(
        _by_edge(_questions(contracts, {"group": "edge"}), contracts),
        tuple(replace(example, id=f"factual:{example.row}") for example in factual),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)


def _contracts(folder: Path) -> Path:
    found = [file for file in _files(folder) if file.stem.startswith(CONTRACTS)]
    if len(found) != 1:
        names = ", ".join(file.name for file in found or _files(folder)) or "no data file"
        what = f"several files of contracts ({names})" if found else f"no {CONTRACTS}_*.json, but {names}"
        raise DataError(f"{folder} has {what}", hint="name the file itself")
    return found[0]


def _questions(path: str, fields: dict[str, str]) -> list[Example]:
    published = ("question", "answer", *fields.values())
    loaded = load_examples(SourceSpec(path=path, fields=fields), tofu="", role="pistol", published=published)
    if loaded.format != "question/answer":
        raise DataError(
            f"{loaded.origin} holds {loaded.format} rows, but PISTOL's are question/answer rows",
            hint="use the published files",
        )
    return loaded.examples


def _by_edge(examples: list[Example], origin: str) -> dict[str, tuple[Example, ...]]:
    if bad := [example for example in examples if len(parties(example.group or "")) != 2]:
        raise DataError(
            f"{len(bad)} of {len(examples)} rows of {origin} have no edge of two parties, such as 'A_B'"
            f" ({name_rows([example.row for example in bad])}; found {bad[0].group!r})",
            hint="write both parties, joined by one _",
        )
    edges: dict[str, list[Example]] = {}
    for example in examples:
        own = edges.setdefault(str(example.group), [])
        own.append(replace(example, id=f"{example.group}:{len(own)}"))
    return {edge: tuple(questions) for edge, questions in edges.items()}


def parties(edge: str) -> tuple[str, ...]:
    """The two parties of an edge; fewer or more where it is not written as `A_B`."""
    return tuple(name for name in edge.split("_") if name)


def is_employment(edge: str) -> bool:
    """Whether an edge is an employment: its second party, a person, is written in small letters.

    Source: RECONSTRUCTED from the edges that the release lists as sales and as employments.
    """
    return parties(edge)[1][:1].islower()


def relations(edges: Iterable[str], forgotten: Collection[str]) -> Mapping[str, Relation]:
    """How each edge that is kept lies to the forgotten ones.

    Args:
        edges: all edges of the graph.
        forgotten: those that are unlearned.

    Returns:
        Kept edge -> `linked`: it shares a party with a forgotten edge; `further`: other edges lead there;
        `independent`: none does.

    Source:
        PISTOL (arXiv 2406.16810): inter-connected and independent edges.
    """
    kept = [edge for edge in edges if edge not in forgotten]
    touched = {party for edge in forgotten for party in parties(edge)}
    found: dict[str, Relation] = {edge: "linked" for edge in kept if touched & set(parties(edge))}
    while True:
        reached = touched | {party for edge in found for party in parties(edge)}
        new = [edge for edge in kept if edge not in found and reached & set(parties(edge))]
        if not new:
            break
        found |= dict.fromkeys(new, "further")
    return {edge: found.get(edge, "independent") for edge in kept}
