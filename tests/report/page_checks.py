"""What any page must be, read without a browser."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "line", "rect", "circle"}
FETCHING = {"src", "srcset", "data", "poster", "action", "background", "formaction"}


class Page(HTMLParser):
    """Reads a page and remembers what the checks ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.problems: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        if self.open:
            self.problems.append(f"never closed: {self.open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]} at {self.getpos()}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag in names]


def problems(path: Path) -> list[str]:
    """Everything that is wrong with a page; empty for a good one."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    return [*page.problems, *_outside(page, text), *_structure(page), *_names(page)]


def _outside(page: Page, text: str) -> list[str]:
    found = ["a script" for _ in page.all("script", "iframe", "object", "embed")]
    for tag, attrs in page.tags:
        found += [f"{tag} fetches {attrs[name]}" for name in FETCHING & attrs.keys()]
        found += [f"{tag} has a handler {name}" for name in attrs if name.startswith("on")]
        target = attrs.get("href") or ""
        if target and not target.startswith(("#", "data:,")):
            found.append(f"{tag} points to {target}")
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    return found + [f"the style sheet holds {word}" for word in ("url(", "@import", "http") if word in style]


def _structure(page: Page) -> list[str]:
    found = []
    html = page.all("html")
    if not html or not html[0].get("lang"):
        found.append("no language")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    if levels[:1] != [1] or levels.count(1) != 1:
        found.append(f"headings start {levels[:3]}")
    found += [f"h{a} is followed by h{b}" for a, b in itertools.pairwise(levels) if b > a + 1]
    found += [f"no {tag}" for tag in ("header", "nav", "main", "footer", "title") if not page.all(tag)]
    if not any("viewport" in (attrs.get("name") or "") for attrs in page.all("meta")):
        found.append("no viewport")
    return found


def _names(page: Page) -> list[str]:
    ids = [attrs["id"] or "" for _, attrs in page.tags if "id" in attrs]
    found = [f"id {one} is there {ids.count(one)} times" for one in sorted(set(ids)) if ids.count(one) > 1]
    for tag, attrs in page.tags:
        wanted = [*(attrs.get("aria-labelledby") or "").split()]
        if tag == "a" and (attrs.get("href") or "").startswith("#"):
            wanted.append((attrs["href"] or "")[1:])
        found += [f"{tag} refers to a missing id {one}" for one in wanted if one not in ids]
        if tag == "svg" and (attrs.get("role") != "img" or not attrs.get("aria-labelledby")):
            found.append("a drawing without a name")
        if attrs.get("tabindex") == "0" and not (attrs.get("aria-label") or attrs.get("aria-labelledby")):
            found.append(f"a focusable {tag} without a name")
        if tag == "th" and attrs.get("scope") not in ("col", "row"):
            found.append("a heading cell without a scope")
    tables, captions = len(page.all("table")), len(page.all("caption"))
    return found + ([f"{tables} tables, {captions} captions"] if tables != captions else [])
