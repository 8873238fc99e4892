"""`manifest.json`: what a run was asked, what that resolved to, and everything its result depends on."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expunge import __version__
from expunge.errors import DataError, UsageError
from expunge.runs.redact import redact

SCHEMA = 1

Kind = Literal["unlearn", "train", "eval"]
Status = Literal["running", "finished", "stopped"]

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Schema n -> the function that turns a manifest of schema n into one of schema n + 1."""


class _Part(BaseModel):
    """A piece of the manifest; facts a later version adds are kept, not lost."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class ModelInfo(_Part):
    """The starting model."""

    name: str
    revision: str | None = None
    """Hub commit; None for a folder."""
    digest: str | None = None
    """SHA-256 of the weights."""
    tokenizer_digest: str | None = None
    attention: str | None = None
    """Kernel of the attention layers, by transformers' name."""


class TemplateInfo(_Part):
    """How a conversation became tokens."""

    name: str
    digest: str
    date: str | None = None
    """The date string the template printed."""


class DataInfo(_Part):
    """The rows of one role."""

    role: str
    origin: str
    revision: str | None = None
    digest: str
    rows: int
    format: str
    encoded_digest: str | None = None
    """SHA-256 of the rows as tokens; what cache entries made from them are known by."""


class DtypeInfo(_Part):
    """What numbers were stored and computed in."""

    weights: str
    compute: str


class BestInfo(_Part):
    """The point of training whose weights are the run's model, where `train.keep_best` chose one."""

    step: int
    metric: str
    value: float


class Manifest(_Part):
    """One run."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    kind: Kind
    status: Status = "running"
    created: str
    """UTC, ISO 8601."""
    updated: str
    given: dict[str, Any] = Field(default_factory=dict)
    """Settings as the user wrote them."""
    resolved: dict[str, Any] = Field(default_factory=dict)
    """The same with every default filled in."""
    resume_key: str
    model: ModelInfo | None = None
    template: TemplateInfo | None = None
    data: tuple[DataInfo, ...] = ()
    dtype: DtypeInfo | None = None
    device: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    token_budget: int | None = None
    """Padded tokens of one micro-batch as first measured; a resumed run uses it again."""
    steps: int | None = None
    """Optimizer steps done."""
    total_steps: int | None = None
    best: BestInfo | None = None
    """Set where the model is not that of the last step for being the last."""
    timings: dict[str, float] = Field(default_factory=dict)
    """Phase -> seconds."""
    caches: tuple[str, ...] = ()
    """`<kind>/<key>` of the cache entries made from this run's data; `expunge purge` removes them."""
    stop_reason: str | None = None

    def changed(self, **changes: Any) -> Manifest:
        """A copy with the fields in `changes` replaced and checked, and `updated` set to now.

        Raises:
            ValueError: an unknown field, or a value of the wrong type: a slip in our own code.
        """
        strange = changes.keys() - type(self).model_fields.keys()
        if strange:
            raise ValueError(f"the manifest has no field {', '.join(sorted(strange))}")
        return Manifest.model_validate({**self.to_json(), "updated": now(), **_plain(changes)})

    def to_json(self) -> dict[str, Any]:
        """The form written to disk: plain JSON values, credentials redacted."""
        plain: dict[str, Any] = redact(self.model_dump(mode="json", by_alias=True))
        return plain


def new_manifest(kind: Kind, *, given: Mapping[str, Any], resolved: Mapping[str, Any], resume_key: str) -> Manifest:
    """The manifest of a run that starts now."""
    time = now()
    return Manifest(
        schema=SCHEMA,
        kind=kind,
        created=time,
        updated=time,
        given=redact(given),
        resolved=redact(resolved),
        resume_key=resume_key,
        versions=installed_versions(),
    )


def load_manifest(path: Path) -> Manifest:
    """Read a manifest, bringing an older schema up to today's.

    Args:
        path: `manifest.json`, or the run directory that holds it.

    Raises:
        UsageError: there is none, or a newer expunge wrote it.
        DataError: it is not a manifest.
    """
    if path.is_dir():
        path = path / "manifest.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent} is not a run directory: it has no manifest.json", hint="list runs with `expunge runs`"
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not readable JSON ({error})", hint=_restore(path)) from error
    return _parse(raw, path)


def _parse(raw: Any, path: Path) -> Manifest:
    version = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise DataError(f"{path} is not a manifest of expunge: it has no schema number", hint="name another folder")
    if version > SCHEMA:
        raise UsageError(
            f"{path} has schema {version}; this expunge ({__version__}) reads up to {SCHEMA}",
            hint="upgrade: pip install -U expunge",
        )
    while version < SCHEMA:
        if version not in MIGRATIONS:
            raise DataError(f"{path} has schema {version}, which no expunge ever wrote", hint=_restore(path))
        raw = MIGRATIONS[version](raw)
        version = raw["schema"] = version + 1
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}", hint=_restore(path)) from error


def _restore(path: Path) -> str:
    return f"restore the file, or delete {path.parent} and start the run again"


def installed_versions() -> dict[str, str]:
    """Versions of what computes the result, without importing any of it."""
    found = {"expunge": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
