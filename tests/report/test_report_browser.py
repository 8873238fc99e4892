"""The page in a real browser: it renders, logs nothing, and fits a phone with every part of it opened."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_runs import Made

from expunge.report.comparison import write_comparison

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--enable-logging=stderr", "--v=0", "--hide-scrollbars", "--virtual-time-budget=5000", "--dump-dom"),
)
PROBE = """<script>
for (const part of document.querySelectorAll("details")) part.open = OPEN;
const wide = [...document.querySelectorAll("main *, header *, footer *")].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width > 0 && box.right > innerWidth + 1 && !e.closest(".scroll, .wide, .hidden, svg, thead");
});
const style = getComputedStyle(document.body);
parent.document.documentElement.dataset.probe = JSON.stringify({
  inner: innerWidth, scroll: document.documentElement.scrollWidth, wide: wide.map(e => e.outerHTML.slice(0, 90)),
  figures: [...document.querySelectorAll("svg")].map(e => e.getBoundingClientRect().height),
  size: parseFloat(style.fontSize), back: style.backgroundColor,
});
</script>"""


class Seen(NamedTuple):
    probe: dict[str, Any]
    console: list[str]


@pytest.fixture(scope="session")
def browser() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    return found


def look(browser: str, page: Path, folder: Path, *, width: int, opened: bool = False, dark: bool = False) -> Seen:
    """Load a copy of the page that measures itself, in a frame: browser windows cannot be as narrow as a phone."""
    probe = PROBE.replace("OPEN", "true" if opened else "false")
    inner = page.read_text(encoding="utf-8").replace("</body>", f"{probe}</body>")
    copy = folder / "probe.html"
    frame = f'<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{escape(inner)}"></iframe>'
    head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    copy.write_text(head + '<link rel="icon" href="data:,">' + frame, encoding="utf-8")
    profile = folder / "profile"
    extra = ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [browser, *FLAGS, *extra, f"--user-data-dir={profile}", f"--window-size={max(width, 600)},900", copy.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    shutil.rmtree(profile, ignore_errors=True)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, f"the page was not rendered: {done.stderr[-800:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(json.loads(unescape(found[1])), console)


@pytest.mark.parametrize("opened", [False, True], ids=["closed", "opened"])
def test_the_report_fits_a_phone(browser: str, page: Path, tmp_path: Path, opened: bool) -> None:
    seen = look(browser, page, tmp_path, width=360, opened=opened)
    assert seen.console == []
    assert seen.probe["inner"] == 360
    assert seen.probe["scroll"] <= 360
    assert seen.probe["wide"] == []
    assert seen.probe["figures"]
    assert min(seen.probe["figures"]) > 100
    assert seen.probe["size"] >= 15


def test_the_report_is_dark_where_that_is_preferred(browser: str, page: Path, tmp_path: Path) -> None:
    light = look(browser, page, tmp_path, width=1280)
    dark = look(browser, page, tmp_path, width=1280, dark=True)
    assert light.console == dark.console == []
    assert light.probe["wide"] == []
    assert sum(map(int, re.findall(r"\d+", light.probe["back"])[:3])) > 600
    assert sum(map(int, re.findall(r"\d+", dark.probe["back"])[:3])) < 150


def test_a_comparison_fits_a_phone(browser: str, made: Made, tmp_path: Path) -> None:
    page = write_comparison([made.unlearned, made.start, made.retrained], out=tmp_path / "c.html").path
    seen = look(browser, page, tmp_path, width=360, opened=True)
    assert seen.console == []
    assert seen.probe["scroll"] <= 360
    assert seen.probe["wide"] == []
