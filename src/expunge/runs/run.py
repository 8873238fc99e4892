"""A run directory: its paths, and the rules for starting, resuming, refusing and replacing one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import UsageError
from expunge.runs.manifest import Kind, Manifest, load_manifest, new_manifest
from expunge.runs.redact import redact
from expunge.runs.store import Event, append_event, atomic_write_json, leftovers, read_events

NOT_IN_RESUME_KEY = frozenset(
    {
        "output_dir",
        "device",
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
        "num_processes",
        "logging",
        "train.bf16",
        "train.fsdp",
        "train.logits_chunk",
        "train.report_to",
        "train.token_budget",
        "train.num_processes",
        "train.logging_steps",
        "eval.token_budget",
    }
)
"""Settings that change where and how fast a run computes, not what; a resumed run may differ in them."""

WATCH = "watch"
"""Folder of a run's evaluations while it trains."""

_OWN = (
    *("manifest.json", "events.jsonl", "model", "checkpoints", "provision", "tables", "evals"),
    *("inheritance.safetensors", "requests.json"),
    *(WATCH, "tensorboard", "wandb"),
)
_MISSING = object()


class Run:
    """One run directory.

    Make it with `Run.create` (start or resume) or `Run.open` (read); the constructor only holds what those found.
    """

    def __init__(self, path: Path, manifest: Manifest, *, resumed: bool = False) -> None:
        self.path = path
        self.manifest = manifest
        self.resumed = resumed
        """Whether `create` found this run unfinished, so that its last checkpoint is to be continued."""
        self.writes = True
        """False: changes stay in memory, because another process of this run writes them down."""

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        kind: Kind,
        given: Mapping[str, Any],
        resolved: Mapping[str, Any],
        overwrite: bool = False,
    ) -> Run:
        """Start a run at `path`, or take up the unfinished one with the same settings that lies there.

        A resumed run keeps its manifest (with the token budget measured at first) and `resumed` is True.

        Args:
            path: the run directory; made if it does not exist.
            kind: what the run does.
            given: settings as written, for the manifest.
            resolved: the same with defaults; their `resume_key` decides whether two runs are the same.
            overwrite: remove a run that lies at `path` and start anew.

        Raises:
            DataError: the manifest that lies there is not readable.
            UsageError: a finished run, a run with other settings (the message lists the keys that differ), or a
                folder that is not a run lies there.
        """
        if cls.check(path, kind=kind, resolved=resolved, overwrite=overwrite):
            manifest = load_manifest(path).changed(status="running", stop_reason=None)
            return cls(path, manifest, resumed=True)._started()
        if overwrite:
            _clear(path)
        manifest = new_manifest(kind, given=given, resolved=resolved, resume_key=resume_key(resolved))
        return cls(path, manifest)._started()

    @staticmethod
    def check(path: Path, *, kind: Kind, resolved: Mapping[str, Any], overwrite: bool = False) -> bool:
        """Whether `create` would resume the run at `path`; refuses what it would refuse, and changes nothing.

        Raises:
            UsageError, DataError: as `create`.
        """
        if not (path / "manifest.json").exists():
            _require_free(path)
            return False
        if overwrite:
            load_manifest(path)
            return False
        _require_resumable(path, kind, resume_key(resolved), resolved)
        return True

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run at `path`, to read.

        Raises:
            UsageError: no run lies there.
            DataError: its manifest is not readable.
        """
        return cls(path, load_manifest(path))

    @property
    def manifest_path(self) -> Path:
        """`manifest.json`."""
        return self.path / "manifest.json"

    @property
    def events_path(self) -> Path:
        """`events.jsonl`."""
        return self.path / "events.jsonl"

    @property
    def model_dir(self) -> Path:
        """The resulting model, a plain Hugging Face folder."""
        return self.path / "model"

    @property
    def checkpoints_dir(self) -> Path:
        """Resumable states."""
        return self.path / "checkpoints"

    @property
    def provision_dir(self) -> Path:
        """What the method made itself, needed to resume."""
        return self.path / "provision"

    @property
    def tables_dir(self) -> Path:
        """The starting model's tables, where the cache could not be written to."""
        return self.path / "tables"

    def checkpoint_dir(self, step: int) -> Path:
        """The resumable state after `step` optimizer steps."""
        return checkpoint_path(self.checkpoints_dir, step)

    def checkpoints(self) -> list[Path]:
        """Every complete checkpoint, oldest first."""
        return list(checkpoint_paths(self.checkpoints_dir).values())

    @property
    def evals_dir(self) -> Path:
        """Evaluations of this run's model."""
        return self.path / "evals"

    @property
    def watch_dir(self) -> Path:
        """Evaluations made while it trained, by step."""
        return self.path / WATCH

    def eval_dir(self, suite: str, profile: str, template_digest: str, *, first: int | None = None) -> Path:
        """The evaluation of one suite, profile and template; that of its `first` rows lies beside it."""
        part = "" if first is None else f"-first-{first}"
        return self.evals_dir / f"{suite}-{profile}-{template_digest[:8]}{part}"

    def update(self, **changes: Any) -> Manifest:
        """Replace fields of the manifest, on disk and here.

        Raises:
            ValueError: an unknown field or a wrong type.
            StoppedError: the disk is full; the old manifest is untouched.
        """
        self.manifest = self.manifest.changed(**changes)
        self._saved()
        return self.manifest

    def append(self, event: Mapping[str, Any]) -> None:
        """Add one event."""
        if self.writes:
            append_event(self.events_path, event)

    def events(self) -> list[Event]:
        """The events as they hold now: of a repeated step the last record only."""
        return read_events(self.events_path)

    def _saved(self) -> Run:
        if self.writes:
            atomic_write_json(self.manifest_path, self.manifest.to_json())
        return self

    def _started(self) -> Run:
        """Written down, with what killed writers of the manifest left behind removed."""
        for leftover in leftovers(self.path, "manifest.json"):
            leftover.unlink(missing_ok=True)
        return self._saved()


def checkpoint_path(folder: Path, step: int) -> Path:
    """The state after `step` steps in a folder of checkpoints."""
    return folder / f"step-{step:06d}"


def checkpoint_paths(folder: Path) -> dict[int, Path]:
    """Step -> its complete checkpoint, ascending."""
    paths = (path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit())
    return dict(sorted((int(path.name[5:]), path) for path in paths))


def request_paths(folder: Path) -> list[Path]:
    """The runs of a sequence's requests, in order; none in another run."""
    paths = [path for path in folder.glob("request-*") if (path / "manifest.json").exists()]
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def resume_key(resolved: Mapping[str, Any]) -> str:
    """SHA-256 of the settings that decide the result: all but `NOT_IN_RESUME_KEY`."""
    text = json.dumps(_deciding(resolved), sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, one `key: before -> after` each, keys sorted; order of mappings is ignored."""
    old, new = _deciding(before), _deciding(after)
    return [
        f"{key}: {_show(old.get(key, _MISSING))} -> {_show(new.get(key, _MISSING))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, _MISSING) != new.get(key, _MISSING)
    ]


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of the settings in the resume key, in the JSON form a manifest holds them in."""
    plain = redact(json.loads(json.dumps(settings, default=str)))
    return {key: value for key, value in _flatten(plain) if key not in NOT_IN_RESUME_KEY}


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(value: Any) -> str:
    return "(not set)" if value is _MISSING else json.dumps(value, ensure_ascii=False)


def _require_resumable(path: Path, kind: Kind, key: str, resolved: Mapping[str, Any]) -> None:
    manifest = load_manifest(path)
    again = "add --overwrite to start anew, or choose another output_dir"
    if manifest.kind != kind:
        raise UsageError(f"{path} holds a run of `expunge {manifest.kind}`, not of `expunge {kind}`", hint=again)
    if manifest.resume_key != key:
        keys = differing(manifest.resolved, resolved) or ["a key that an older version knew"]
        raise UsageError(f"{path} holds {_state(manifest)} run with other settings: {'; '.join(keys)}", hint=again)
    if manifest.status == "finished":
        raise UsageError(f"{path} holds a finished run with these settings", hint=again)


def _state(manifest: Manifest) -> str:
    return "a finished" if manifest.status == "finished" else "an unfinished"


def _require_free(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, so no run can lie there", hint="choose another output_dir")
    # Hidden files do not count: a kill during the very first write leaves a temporary one.
    if path.exists() and any(not item.name.startswith(".") for item in path.iterdir()):
        raise UsageError(
            f"{path} exists, is not empty and is not a run of expunge", hint="choose another output_dir or empty it"
        )


def _clear(path: Path) -> None:
    """Remove a run's own files and nothing else that lies beside them."""
    # The manifest goes first: whatever a kill leaves behind is then not mistaken for a run.
    for item in (*(path / name for name in _OWN), *request_paths(path)):
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink(missing_ok=True)
