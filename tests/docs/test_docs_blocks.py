"""The pages are true: their blocks run, their links resolve, their tables name what there is."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pages
import pytest
import recipe_keys
import yaml
from typer.main import get_command

from expunge.catalog import METHODS
from expunge.cli.main import app, main
from expunge.config.packaged import find_packaged
from expunge.config.schema import Recipe
from expunge.errors import DataError, ExpungeError, MetricError, ModelError, StoppedError, UsageError
from expunge.metrics.registry import METRICS
from expunge.testing.tiny import WORDS, tiny_llama, tiny_tokenizer

ROOT = pages.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALL_BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page)]
FILES = [block for block in ALL_BLOCKS if block.file and block.page == ROOT / "README.md"]
"""What lies in the folder of a reader who has read the README."""
LANGUAGES = ("bash", "python", "yaml", "json", "csv", "toml", "text")
EXIT_CODES: dict[type[ExpungeError], str] = {
    UsageError: "usage",
    ModelError: "usage",
    DataError: "data",
    MetricError: "data",
    StoppedError: "stopped",
}
MANY_RUNS = {
    *("continual.md", "evaluate.md", "getting-started.md", "guard.md", "python.md"),
    *("recipes.md", "scale.md", "sweep.md", "wrappers.md"),
}
ON_A_RECIPE = {"unlearn", "train", "validate", "plan", "cp"}


def _runs(page: Path) -> Any:
    """A page as a test of its own; one of many runs goes with the slow tests."""
    return pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in MANY_RUNS else [])


@pytest.fixture(scope="session")
def my_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model the pages call `my-model`: random; most of its tokens end an answer, so generating takes no time."""
    folder = tmp_path_factory.mktemp("world") / "my-model"
    tokenizer = tiny_tokenizer(WORDS)
    model = tiny_llama(len(tokenizer), tie_word_embeddings=True)
    model.generation_config.eos_token_id = list(range(20, len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("page", [_runs(page) for page in pages.PAGES])
def test_the_blocks_of_a_page_run(
    page: Path, my_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    # A plan takes seconds to carry out every operation of a step.
    monkeypatch.setattr("expunge.train.planning.stopwatch._timed", lambda work, device: 1e-3)
    (tmp_path / "my-model").symlink_to(my_model)
    for block in FILES:
        (tmp_path / str(block.file)).write_text(block.text, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    for block in pages.blocks(page):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        elif block.not_run is None and block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)  # the page's own code
        elif block.not_run is None and block.language == "bash":
            for line in pages.commands(block):
                run(line, block, capsys)


def run(line: pages.Line, block: pages.Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Carry a command out, or check what may not be carried out here."""
    program, *arguments = shlex.split(line.words)
    assert program in CHECKS or program == "expunge", f"{block.place}: cannot run {line.words!r}; mark it `not run`"
    if program in CHECKS:
        CHECKS[program](arguments, block.place)
        return
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr()
    assert code == line.exit_code, f"{block.place}: {line.words!r} exits with {code}\n{said.out}{said.err}"


def check_make(targets: list[str], place: str) -> None:
    known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(targets) <= set(known), f"{place}: the Makefile has only {', '.join(known)}"


def check_pip(arguments: list[str], place: str) -> None:
    """`pip install` of a package, or of this one with extras it has, under a constraints file there is."""
    assert arguments.pop(0) == "install", place
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for option, value in itertools.pairwise(arguments):
        if option == "-c":
            assert (ROOT / value).is_file(), f"{place}: no {value}"
        if option == "-e":
            chosen = re.fullmatch(r"\.(?:\[(?P<extras>[\w,]+)\])?", value)
            assert chosen, f"{place}: {value}"
            assert set((chosen["extras"] or "hub").split(",")) <= set(extras), f"{place}: no such extra in {value}"


FILES_OF: dict[str, Callable[[list[str]], Path]] = {
    "python": lambda words: ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]),
    "pytest": lambda words: ROOT / words[-1],
}
"""What a command line of another program reads, as far as it is ours."""
CHECKS: dict[str, Callable[[list[str], str], None]] = {"make": check_make, "pip": check_pip}


def test_blocks_are_marked_and_known() -> None:
    for block in ALL_BLOCKS:
        assert block.language in LANGUAGES, f"{block.place}: tag it as one of {', '.join(LANGUAGES)}"
        assert block.not_run is None or len(block.not_run) > 10, f"{block.place}: why is it not run?"
    assert sum(block.language == "bash" and block.not_run is None for block in ALL_BLOCKS) >= 10


def test_what_is_not_run_is_at_least_spelled_right() -> None:
    group: Any = get_command(app)
    for block in ALL_BLOCKS:
        for line in pages.commands(block) if block.language == "bash" else ():
            program, *arguments = shlex.split(line.words)
            if program in FILES_OF:
                assert FILES_OF[program](arguments).exists(), f"{block.place}: {line.words!r}"
            if program != "expunge":
                continue
            command = group.commands[arguments[0]]
            if hasattr(command, "commands"):
                arguments, command = arguments[1:], command.commands[arguments[1]]
            context = command.make_context(arguments[0], arguments[1:])
            recipe = context.params.get("recipe")
            if arguments[0] in ON_A_RECIPE and block.not_run is not None:
                own = {other.file for other in ALL_BLOCKS if other.page == block.page}
                assert recipe in own or find_packaged(recipe), f"{block.place}: no recipe {recipe}"


def test_yaml_blocks_are_recipes() -> None:
    found = [block for block in ALL_BLOCKS if block.language == "yaml"]
    for block in found:
        Recipe.model_validate(yaml.safe_load(block.text))
    assert found


@pytest.mark.parametrize("page", pages.LINKED, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for link in pages.links(page):
        name, _, fragment = link.target.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link.target}"
        if fragment:
            assert fragment in pages.anchors(target), f"{page.name} links to {link.target}"


def test_every_page_is_reached_from_the_readme() -> None:
    for page in pages.PAGES[1:]:
        assert f"({page.relative_to(ROOT).as_posix()})" in README, page.name


def test_the_tree_is_the_source() -> None:
    source = ROOT / "src" / "expunge"
    (tree,) = (block.text for block in pages.blocks(ROOT / "README.md") if block.text.startswith("src/expunge/"))
    named = re.findall(r"^  (\S+)  +\S", tree, flags=re.MULTILINE)
    folders = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    files = {path.name for path in source.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(named) == folders | files
    assert len(named) == len(set(named))


def test_the_command_table_is_the_command_line() -> None:
    group: Any = get_command(app)
    listed = [row[0].strip("`").split()[1] for row in pages.table(README, "command")]
    assert listed == list(dict.fromkeys(listed))
    assert set(listed) == set(group.commands)


def test_the_method_table_is_the_catalogue() -> None:
    rows = {row[0].strip("`"): row for row in pages.table(README, "method")}
    assert set(rows) == set(METHODS.names())
    papers = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    for name, (_, paper, reads, retain) in rows.items():
        method = METHODS.load(name)
        needs = method().needs()
        assert f"methods/{name}.py" in papers, f"docs/papers.md lacks {name}"
        published = re.search(r"\d{4}\.\d{5}|ICML \d{4}", method.paper)
        assert published
        assert published[0] in paper
        assert (reads != "no") == bool(needs.references), name
        spare = "optional" if method.works_without_retain else "needed"
        # Some are published without a retain term and can be given one.
        used = method(alpha=1) if "alpha" in method.model_fields else method()
        assert retain == (spare if "retain" in used.needs().roles else "not used"), name


def test_every_metric_is_defined() -> None:
    rows = pages.table((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), "metric")
    defined = {row[0].strip("`"): row for row in rows if "`" in row[0]}
    assert list(defined) == [metric.name for metric in METRICS]
    for metric in METRICS:
        assert defined[metric.name][2].startswith(metric.direction), metric.name


def test_every_key_of_a_recipe_is_in_the_table() -> None:
    text = recipe_keys.PAGE.read_text(encoding="utf-8")
    marked = [match["name"] for match in recipe_keys.MARKED.finditer(text)]
    assert sorted(marked) == sorted([*recipe_keys.SECTIONS, "method", "methods", "wrappers", "aliases"])
    assert recipe_keys.rewritten(text) == text, "run: python tests/docs/recipe_keys.py"


@pytest.mark.parametrize("name", ["README.md", "docs/getting-started.md", "design/cli.md"])
def test_exit_codes_are_those_of_the_errors(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for kind, word in EXIT_CODES.items():
        assert re.search(rf"\b{kind.exit_code} (?:\| )?{word}\b", text), f"{name}: {kind.__name__}"


def test_the_pages_are_plain() -> None:
    for page in pages.LINKED:
        text = page.read_text(encoding="utf-8")
        emoji = [letter for letter in text if ord(letter) > 0x2BFF]
        assert not emoji, f"{page.name}: {emoji}"
        assert not re.search(r"(?<![\w.])/(?:work|tmp|home|root)/", text), f"{page.name} names a path of one machine"
