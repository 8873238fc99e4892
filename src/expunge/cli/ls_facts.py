"""What methods and wrappers need and how they compose, for `expunge ls`, without torch.

The facts of our own lie in `ls_facts.json`, which `python tests/methods/catalogue_facts.py` writes and a test compares
with the classes. Those of other packages are asked of their classes when they are listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.catalog import METHODS, WRAPPERS, Entry
from expunge.errors import UsageError

if TYPE_CHECKING:
    from expunge.methods.base import Method, Needs
    from expunge.train.wrappers.base import Wrapper

FILE = Path(__file__).with_name("ls_facts.json")
Facts = dict[str, Any]


def method_facts() -> list[Facts]:
    """Every catalogued method, in the catalogue's order."""
    return _all("methods", list(METHODS), describe_method)


def wrapper_facts() -> list[Facts]:
    """Every catalogued wrapper, in the catalogue's order."""
    return _all("wrappers", list(WRAPPERS), describe_wrapper)


def _all(kind: str, entries: list[Entry], describe: Callable[[Entry], Facts]) -> list[Facts]:
    known = _written()[kind]
    return [known[entry.name] if _ours(known, entry) else describe(entry) for entry in entries]


def _ours(known: Mapping[str, Facts], entry: Entry) -> bool:
    return entry.name in known and known[entry.name]["target"] == entry.target


@cache
def _written() -> dict[str, dict[str, Facts]]:
    found: dict[str, dict[str, Facts]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def describe_method(entry: Entry, reductions: Sequence[str] | None = None) -> Facts:
    """One method as it is configured by default.

    Args:
        entry: its line in the catalogue.
        reductions: how its terms are reduced, which only a run shows; null in the result unless given.

    Raises:
        UsageError: another package's class that cannot be made without keys.
    """
    from expunge.methods.base import makes_first

    loaded: type[Method] = METHODS.load(entry.name)
    try:
        method = loaded()
        needs = method.needs()
    except Exception as error:
        raise UsageError(
            f"the method {entry.name} ({entry.target}) cannot be listed: {type(error).__name__}: {error}",
            hint="every key of a method needs a default",
        ) from error
    return {
        "name": entry.name,
        "summary": entry.summary,
        **_source(loaded.paper, entry),
        "experimental": loaded.experimental,
        "granularity": loaded.granularity,
        "reductions": None if reductions is None else list(reductions),
        "works_without_retain": loaded.works_without_retain,
        "needs": {
            "roles": list(needs.roles),
            "linked": {name: needs.rows.get(name, "refusals") for name in needs.linked},
            "references": {
                name: sorted({item.kind for item in asked}) for name, asked in needs.references.items() if asked
            },
            "hidden": dict(needs.hidden),
            "prepares": makes_first(method),
            "retain": _retain(method, needs),
            "annotations": _annotations(method),
        },
        "wrappers": {"brings": [str(own["name"]) for own in method.wrappers()], "composes_with": _composes(method)},
    }


def describe_wrapper(entry: Entry) -> Facts:
    """One wrapper."""
    loaded: type[Wrapper] = WRAPPERS.load(entry.name)
    return {
        "name": entry.name,
        "summary": entry.summary,
        "kind": loaded.kind,
        **_source(loaded.paper, entry),
        "experimental": loaded.experimental,
        "needs": {"roles": list(loaded.roles)},
    }


def _source(paper: str, entry: Entry) -> Facts:
    number = re.search(r"\b(\d{4}\.\d{5})\b", paper)
    url = f"https://arxiv.org/abs/{number[1]}" if number else None
    return {"paper": paper, "url": url, "target": entry.target}


def _retain(method: Method, needs: Needs) -> str:
    """`needed`, `optional` (`method.alpha` decides, whatever its default), or `not used`."""
    if "retain" in needs.roles and not method.works_without_retain:
        return "needed"
    return "optional" if "retain" in needs.roles or "alpha" in type(method).model_fields else "not used"


def _annotations(method: Method) -> str | None:
    """`needed`, or `optional` where a key asks for them, or None."""
    annotated = getattr(method, "annotated", None)
    return None if annotated is None else "needed" if annotated else "optional"


def _composes(method: Method) -> dict[str, list[str]]:
    """Kind -> wrappers that accept this method as it is configured by default."""
    accepted: dict[str, list[str]] = {"term": [], "combine": [], "mask": []}
    for entry in WRAPPERS:
        if _accepts(WRAPPERS.load(entry.name), method):
            accepted[WRAPPERS.load(entry.name).kind].append(entry.name)
    return accepted


def _accepts(kind: type[Wrapper], method: Method) -> bool:
    from expunge.train.wrappers.select import wrap

    try:
        kind()
    except ValueError:
        # One that must be told something has no word on methods beyond the roles it reads.
        return set(kind.roles) <= set(method.needs().roles)
    try:
        wrap(method, [{"name": kind.name}])
    except UsageError:
        return False
    return True


def needs_in_words(facts: Facts) -> str:
    """What a person must have at hand: `forget, retain (optional), refusals`."""
    needs = facts["needs"]
    said = ["forget"] if "forget" in needs["roles"] else []
    said += [] if needs["retain"] == "not used" else ["retain" + _optional(needs["retain"] == "optional")]
    said += ["refusals"] if "refusals" in needs["linked"].values() else []
    said += ["annotations" + _optional(needs["annotations"] == "optional")] if needs["annotations"] else []
    return ", ".join(said)


def _optional(yes: bool) -> str:
    return " (optional)" if yes else ""


def makes_in_words(facts: Facts) -> str:
    """What it makes before the first step: `scores` of the starting model, `rows`, `tables`, or nothing."""
    needs = facts["needs"]
    said = ["scores"] if needs["references"] else []
    said += ["rows"] if "made" in needs["linked"].values() else ["tables"] if needs["prepares"] else []
    return ", ".join(said)
