"""The model card: `README.md` beside the weights. Counts and digests, never text of rows."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from expunge import __version__
from expunge.evals.recompute import Stored
from expunge.report import facts, limits
from expunge.report.collect import Compared, EvaluatedRun
from expunge.report.page import models
from expunge.report.tables import Model, blocks
from expunge.report.text import visible
from expunge.report.verdict import Verdict
from expunge.runs.manifest import DataInfo, Manifest
from expunge.runs.redact import keyed_digest
from expunge.runs.store import atomic_write_text

CARD = "README.md"
MARK = "<!-- written by expunge report; a card without this line is left alone -->"
_HUB_ORIGIN = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?: [^:]+)?:")


def write_card(found: Compared, verdict: Verdict, *, key: bytes | None = None) -> Path | None:
    """Write the card of a run that made a model.

    Args:
        found: the run and what it is compared with.
        verdict: on that run.
        key: show digests of the forgotten rows under this key; None: as they are.

    Returns:
        Its path; None where the run made none, or where somebody wrote a card of their own.

    Raises:
        StoppedError: the disk is full; an older card stays as it was.
    """
    path = found.this.path / "model" / CARD
    if found.this.manifest.kind == "eval" or not path.parent.is_dir() or is_foreign(path):
        return None
    atomic_write_text(path, card(found, verdict, key=key))
    return path


def is_foreign(path: Path) -> bool:
    """Whether somebody wrote a card of their own."""
    return path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def card(
    found: Compared,
    verdict: Verdict,
    *,
    name: str | None = None,
    key: bytes | None = None,
    model: Path | None = None,
) -> str:
    """The card of an evaluated run as Markdown with YAML front matter.

    Args:
        found: the run and what it is compared with.
        verdict: on that run.
        name: of the model; the run folder's unless given.
        key: show digests of the forgotten rows under this key: a plain digest of a short text can be guessed.
        model: the folder it goes with; the run's `model` unless given.
    """
    run = found.this
    return _joined(
        run,
        name or run.name,
        model or run.path / "model",
        f"{_inline(facts.told(run))} **{_word(verdict)}** {verdict.sentence} No attack was run.",
        *verdict.remarks,
        "## What was forgotten\n\n" + _forgotten(run, key),
        "## Numbers\n\n" + _numbers(found),
        *_method(run),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in (*limits.weaknesses(found), *limits.always(found))),
    )


def unmeasured_card(
    path: Path,
    manifest: Manifest,
    *,
    name: str | None = None,
    key: bytes | None = None,
    model: Path | None = None,
) -> str:
    """The card of a run that was never evaluated: what was done, and that nothing is known of its success."""
    run = EvaluatedRun(path, manifest, Stored(path, {}), {}, {}, None)
    return _joined(
        run,
        name or run.name,
        model or path / "model",
        f"{_inline(facts.told(run))} **Nothing was measured**: neither what it forgot nor what it kept is known. No"
        " attack was run.",
        "## What was forgotten\n\n" + _forgotten(run, key),
        *_method(run),
        f"## Limits\n\n- {limits.GUARANTEE}",
    )


def _joined(run: EvaluatedRun, name: str, model: Path, *parts: str) -> str:
    front = yaml.safe_dump(_front_matter(run, name, model), sort_keys=False, allow_unicode=True)
    closing = f"Written by expunge {__version__}. The report of the run has curves, examples and provenance."
    return "\n\n".join((f"---\n{front}---", MARK, f"# {_inline(name)}", *parts, closing)) + "\n"


def _method(run: EvaluatedRun) -> tuple[str, str]:
    lines = (f"- {_inline(f.name)}: {_inline(f.value)}" for f in facts.settings(run))
    return "## Method\n\n" + "\n".join(lines), "## Intended use\n\n" + _INTENDED


_INTENDED = (
    "Where the starting model was used, by those who must not have the forgotten content given out. It is not evidence"
    " that the content cannot be recovered from the weights, and it is not for questions whose safety depends on that."
)


def _front_matter(run: EvaluatedRun, name: str, model: Path) -> dict[str, object]:
    """What the Hub reads: tags, the base model and data sets where they are on the Hub, every number of the card."""
    adapter = (model / "adapter_config.json").exists()
    tags = ["expunge", *(["machine-unlearning", run.method] if run.method else []), *(["lora"] if adapter else [])]
    made: dict[str, object] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    info = run.manifest.model
    if info is not None and info.revision and run.manifest.kind == "unlearn":
        made |= {"base_model": info.name, "base_model_relation": "adapter" if adapter else "finetune"}
    sets = hub_datasets(run.manifest)
    if sets:
        made["datasets"] = sets
    if run.scores:
        made["model-index"] = [{"name": name, "results": [_results(run, sets)]}]
    return made


def hub_datasets(manifest: Manifest) -> list[str]:
    """Hub ids among the places rows came from."""
    places = (part for data in manifest.data if data.revision for part in data.origin.split(" + "))
    found = (_HUB_ORIGIN.match(place) for place in places)
    return list(dict.fromkeys(match["repo"] for match in found if match))


def _results(run: EvaluatedRun, sets: list[str]) -> dict[str, object]:
    suite = str(run.stored.spec.get("suite"))
    own = {"after": Model("this", run)}
    measured = [line.metric for block in blocks(own) for line in block.lines if line.metric in run.scores]
    return {
        "task": {"type": "text-generation", "name": "machine unlearning"},
        "dataset": {"type": sets[0] if sets else suite, "name": f"expunge suite {suite}, profile {run.stored.profile}"},
        "metrics": [{"type": m, "name": m, "value": run.scores[m].value} for m in measured],
    }


def _word(verdict: Verdict) -> str:
    return "No verdict." if verdict.word == "none" else f"{verdict.word.capitalize()}."


def _forgotten(run: EvaluatedRun, key: bytes | None) -> str:
    lines = [f"- {d.role}: {d.rows} rows ({_inline(d.format)}), {_digest(d, key)}" for d in run.manifest.data]
    return "\n".join(lines) or "Nothing: this run had no rows."


def _digest(data: DataInfo, key: bytes | None) -> str:
    if key is None:
        return f"SHA-256 `{data.digest}`"
    return f"HMAC-SHA-256 of their digest `{keyed_digest(data.digest, key=key)}`, under a key that stays with the run"


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
