"""`train.report_to`: TensorBoard, Weights & Biases and Trackio, through Accelerate's trackers."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.catalog import unknown
from expunge.errors import UsageError
from expunge.runs.redact import redact

TENSORBOARD = "tensorboard"
"""Name of the tracker, and of the folder in the run directory that it writes to."""
PACKAGES = {TENSORBOARD: '"expunge[trackers]"', "wandb": "wandb", "trackio": "trackio"}
"""Tracker, which is also its package -> what to install."""
PROJECT = "expunge"
"""Where runs are gathered unless WANDB_PROJECT or TRACKIO_PROJECT says otherwise."""
OFFLINE = {"wandb": "run `wandb login`, or set WANDB_MODE=offline; or "}
LEAVE = "leave it out of train.report_to"

_NOT_VALUES = frozenset({"step", "total"})

Warn = Callable[[str], None]


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be used here.

    Raises:
        UsageError: an unknown name, with the nearest known one; a package that is not installed.
    """
    for name in names:
        if name not in PACKAGES:
            raise unknown("tracker in train.report_to", name, list(PACKAGES))
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"train.report_to names {name}, which is not installed",
                hint=f"pip install {PACKAGES[name]}, or leave it out",
            )


class Place(NamedTuple):
    """Which run the trackers are told of."""

    folder: Path
    """The run directory."""
    created: str
    """When it was started: with its place, what the run is known by when it is resumed."""

    @property
    def id(self) -> str:
        """Equal for a run and its resumed self."""
        return hashlib.sha256(f"{self.folder.resolve()} {self.created}".encode()).hexdigest()[:16]


class Trackers:
    """Trackers of one run, on its main process; told nothing before `start`.

    One that fails later is left out from then on, with a warning: a run must not be lost over what looks on.
    Accelerate's trackers need its state: an `Accelerator` or a `PartialState` comes first.

    Args:
        names: of `PACKAGES`, all installed.
        place: the run.
        settings: resolved settings; credentials are redacted.
        warn: takes the warning.
    """

    def __init__(self, names: Sequence[str], *, place: Place, settings: Mapping[str, Any], warn: Warn) -> None:
        self._names, self._place, self._settings, self._warn = tuple(names), place, settings, warn
        self._trackers: dict[str, Any] = {}

    def start(self, first: int) -> None:
        """Open every tracker's run.

        Args:
            first: the first step that will be told; what was told of it and of later ones before a kill is void.

        Raises:
            UsageError: one cannot be started.
        """
        for name in self._names:
            try:
                tracker = _made(name, self._place, first)
                tracker.start()
                tracker.store_init_configuration(_flat(redact(self._settings)))
            # Each package has errors of its own.
            except Exception as error:
                self.close()
                raise UsageError(
                    f"the tracker {name} could not be started: {_reason(error)}", hint=f"{OFFLINE.get(name, '')}{LEAVE}"
                ) from error
            self._trackers[name] = tracker

    def log(self, event: Mapping[str, Any]) -> None:
        """Tell the numbers of an event: `train/loss` and so on of a step, `eval/<metric>` of an evaluation."""
        numbers = event["metrics"] if event["event"] == "eval" else event
        prefix = "eval" if event["event"] == "eval" else "train"
        values = {
            f"{prefix}/{key}": value
            for key, value in numbers.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key not in _NOT_VALUES
        }
        self._each(lambda name, tracker: tracker.log(values, step=event["step"]))

    def close(self) -> None:
        """End every tracker's run."""
        self._each(_finish)
        self._trackers.clear()

    def _each(self, act: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(name, tracker)
            except Exception as error:
                del self._trackers[name]
                self._warn(f"the tracker {name} failed and is told nothing more: {_reason(error)}")


def _made(name: str, place: Place, first: int) -> Any:
    from accelerate import tracking

    if name == TENSORBOARD:
        return tracking.TensorBoardTracker(TENSORBOARD, place.folder, purge_step=first)
    project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)
    if name == "wandb":
        return tracking.WandBTracker(
            project, name=place.folder.name, dir=str(place.folder), id=place.id, resume="allow"
        )
    return tracking.TrackioTracker(project, name=f"{place.folder.name}-{place.id[:8]}", resume="allow")


def _finish(name: str, tracker: Any) -> None:
    if name == "trackio":
        # A run that only the tracker ends is ended again, and spoken of, when the process exits.
        importlib.import_module("trackio").finish()
    else:
        tracker.finish()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> number or text: what every tracker takes as a setting."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            found[f"{prefix}{key}"] = value if plain else json.dumps(value, default=str, ensure_ascii=False)
    return found


def _reason(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
