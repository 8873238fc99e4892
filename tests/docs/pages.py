"""Read the pages: fenced blocks, the directives above them, and the links between pages.

A comment in the line above a block says what becomes of it: `<!-- not run: why -->`, or `<!-- file: name -->` for what
is written before the blocks below it run. In a bash block `# exit code N` says how a command ends.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
"""The pages whose blocks are executed."""
LINKED = (*PAGES, *sorted((ROOT / "design").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
"""The pages whose links must resolve."""

_DIRECTIVE = re.compile(r"<!--\s*(?P<name>not run|file):\s*(?P<value>.*?)\s*-->")
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\S*)\s*")


class Block(NamedTuple):
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None
    """Why it is not executed."""
    file: str | None
    """What it is written to before the blocks below it run."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Line(NamedTuple):
    """One command of a bash block."""

    words: str
    exit_code: int
    """From a comment `# exit code N`; 0 unless said."""


class Link(NamedTuple):
    page: Path
    target: str


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    above, number = "", 0
    while number < len(lines):
        fence = _FENCE.fullmatch(lines[number])
        if fence is None:
            above, number = lines[number], number + 1
            continue
        stop = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
        text = "\n".join(line.removeprefix(fence["indent"]) for line in lines[number + 1 : stop]) + "\n"
        directives = {match["name"]: match["value"] for match in _DIRECTIVE.finditer(above)}
        language = fence["language"]
        found.append(Block(page, number + 1, language, text, directives.get("not run"), directives.get("file")))
        above, number = "", stop + 1
    return found


def commands(block: Block) -> list[Line]:
    """The commands of a bash block: comments dropped, continued lines joined."""
    joined = block.text.replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        # As in a shell, a comment begins a word: `PLACE#PART` is none.
        words, _, comment = re.sub(r"(^|\s)#", r"\1\0", line, count=1).partition("\0")
        if words.strip():
            code = re.search(r"exit code (\d+)", comment)
            found.append(Line(" ".join(words.split()), int(code[1]) if code else 0))
    return found


def links(page: Path) -> list[Link]:
    """Every link of a page to another file of the project; fenced blocks are not searched."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = (match["target"] for match in _LINK.finditer(prose))
    return [Link(page, target) for target in targets if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings answer to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(text: str, header: str) -> list[list[str]]:
    """The cells of the Markdown table whose first column is called `header`, without its header."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif cells[0] == header:
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            rows.append(cells)
    return rows
