"""The model card: `README.md` beside the weights. Counts and digests, never text of rows."""

from __future__ import annotations

from pathlib import Path

import yaml

from expunge import __version__
from expunge.report import facts, limits
from expunge.report.collect import Compared, EvaluatedRun
from expunge.report.page import models
from expunge.report.tables import blocks
from expunge.report.text import visible
from expunge.report.verdict import Verdict
from expunge.runs.store import atomic_write_text

CARD = "README.md"
MARK = "<!-- written by expunge report; a card without this line is left alone -->"


def write_card(found: Compared, verdict: Verdict) -> Path | None:
    """Write the card of a run that made a model.

    Returns:
        Its path; None where the run made none, or where somebody wrote a card of their own.

    Raises:
        StoppedError: the disk is full; an older card stays as it was.
    """
    path = found.this.path / "model" / CARD
    if found.this.manifest.kind == "eval" or not path.parent.is_dir():
        return None
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    atomic_write_text(path, card(found, verdict))
    return path


def card(found: Compared, verdict: Verdict) -> str:
    """The card as Markdown with YAML front matter."""
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(found.this), sort_keys=False, allow_unicode=True)}---",
        MARK,
        f"# {_inline(found.this.name)}",
        f"{_inline(facts.told(found.this))} **{_word(verdict)}** {verdict.sentence} No attack was run.",
        *verdict.remarks,
        "## What was forgotten\n\n" + _forgotten(found.this),
        "## Numbers\n\n" + _numbers(found),
        "## Method\n\n" + "\n".join(f"- {_inline(f.name)}: {_inline(f.value)}" for f in facts.settings(found.this)),
        "## Intended use\n\n" + _INTENDED,
        "## Limits\n\n" + "\n".join(f"- {line}" for line in (*limits.weaknesses(found), *limits.always(found))),
        f"Written by expunge {__version__}. The report of the run has curves, examples and provenance.",
    ]
    return "\n\n".join(parts) + "\n"


_INTENDED = (
    "Where the starting model was used, by those who must not have the forgotten content given out. It is not evidence"
    " that the content cannot be recovered from the weights, and it is not for questions whose safety depends on that."
)


def _front_matter(run: EvaluatedRun) -> dict[str, object]:
    tags = ["expunge", *(["machine-unlearning", run.method] if run.method else [])]
    made: dict[str, object] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    info = run.manifest.model
    if info is not None and info.revision and run.manifest.kind == "unlearn":
        made["base_model"] = info.name
    return made


def _word(verdict: Verdict) -> str:
    return "No verdict." if verdict.word == "none" else f"{verdict.word.capitalize()}."


def _forgotten(run: EvaluatedRun) -> str:
    lines = [
        f"- {data.role}: {data.rows} rows ({_inline(data.format)}), SHA-256 `{data.digest}`"
        for data in run.manifest.data
    ]
    return "\n".join(lines) or "Nothing: this run had no rows."


def _numbers(found: Compared) -> str:
    columns = models(found)
    lines = [f"| | {' | '.join(columns)} | ideal | rows |", f"|---|{'---|' * len(columns)}---|---|"]
    for block in blocks(columns):
        for line in block.lines:
            cells = (f"{cell.value} {cell.interval}".strip() if cell.value else "–" for cell in line.cells)
            lines.append(f"| `{line.metric}` | {' | '.join(cells)} | {line.ideal} | {line.n} |")
    return "\n".join(lines) + "\n\nValue and 95 % interval."


def _inline(text: str) -> str:
    """Text on one line that Markdown and HTML leave alone."""
    plain = visible(text).replace("\n", " ")
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in plain)
