"""What `expunge ls methods` and `ls wrappers` tell without torch.

`python tests/methods/catalogue_facts.py` writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from method_runs import Recorder, World, build_world, recipe

from expunge.catalog import METHODS, WRAPPERS, Entry
from expunge.cli.ls_facts import FILE, describe_method, describe_wrapper


def ours(entry: Entry) -> bool:
    return entry.target.startswith("expunge.")


def reductions(name: str, world: World, folder: Path) -> list[str]:
    """How a method's terms are reduced, seen in its first step."""
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch, name)
        given = recipe(world, name, folder / name)
        given["train"]["max_steps"] = 1
        recorder.run(given)
    return sorted(recorder.reductions)


def facts(reduced: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """As the file holds them; `reduced`: method -> reductions."""
    methods = {entry.name: describe_method(entry, reduced.get(entry.name)) for entry in METHODS if ours(entry)}
    return {"methods": methods, "wrappers": {entry.name: describe_wrapper(entry) for entry in WRAPPERS if ours(entry)}}


def written(found: dict[str, dict[str, Any]]) -> str:
    """One line per name."""
    kinds = []
    for kind, entries in found.items():
        lines = [f'  "{name}": {json.dumps(entry, ensure_ascii=False)}' for name, entry in entries.items()]
        kinds.append(f' "{kind}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(kinds) + "\n}\n"


def main() -> None:
    with TemporaryDirectory() as folder:
        world = build_world(Path(folder) / "world")
        reduced = {entry.name: reductions(entry.name, world, Path(folder)) for entry in METHODS if ours(entry)}
    FILE.write_text(written(facts(reduced)), encoding="utf-8")


if __name__ == "__main__":
    main()
