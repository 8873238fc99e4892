"""A calibrated guard as a file: what it decides by, what it was calibrated on, and what it may be used for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from expunge.errors import ModelError, UsageError
from expunge.guards.base import Identity
from expunge.runs.store import atomic_write_json

FILE = "energy_guard.json"
SCHEMA = 1

Statistic = Literal["last", "prompt", "generated"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)

_Share = Annotated[float, Field(ge=0, le=1)]
_Open = Annotated[float, Field(gt=0, lt=1)]
_SETTINGS = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Part(BaseModel):
    model_config = _SETTINGS


class OverRefusal(_Part):
    """Share of the test half that is refused, with its exact 95 % interval."""

    value: _Share
    low: _Share
    high: _Share
    n: Annotated[int, Field(ge=1)]


class TemplateName(_Part):
    """The chat template prompts were written in."""

    name: str
    digest: str


class EnergyRecord(_Part):
    """What `energy_guard.json` holds."""

    version: Literal[1] = Field(default=1, alias="schema")
    guard: Literal["energy"] = "energy"
    statistic: Statistic
    temperature: Annotated[FiniteFloat, Field(gt=0)]
    threshold: FiniteFloat
    """Prompts with an energy above it are refused."""
    rate: _Open
    """The false-refusal rate it was calibrated for."""
    seed: int
    """Of the calibration half and of the refusal drawn for a prompt."""
    num_calibration: Annotated[int, Field(ge=1)]
    """Distinct prompts that set the threshold."""
    over_refusal: OverRefusal
    refusals: Annotated[list[str], Field(min_length=1)]
    """What a person reads instead of an answer; one of them for each prompt."""
    model_digest: str
    tokenizer_digest: str
    template: TemplateName
    dtype: str

    @property
    def identity(self) -> Identity:
        """What it was calibrated for."""
        return Identity(self.model_digest, self.tokenizer_digest, self.template.digest, self.dtype)


def guard_file(folder: Path) -> Path:
    """Where the guard of a model folder lies."""
    return folder / FILE


def write_record(record: EnergyRecord, folder: Path) -> Path:
    """Write `energy_guard.json` in one step; an older one stays until then.

    Raises:
        StoppedError: the disk is full.
        UsageError: the folder cannot be written to.
    """
    path = guard_file(folder)
    atomic_write_json(path, record.model_dump(mode="json", by_alias=True))
    return path


def read_record(folder: Path) -> EnergyRecord:
    """The record beside a model.

    Raises:
        UsageError: there is none.
        ModelError: it is cut, of another schema, or not a guard's.
    """
    path, again = guard_file(folder), f"run `{calibrate_command(folder)}`"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"{folder} has no calibrated guard", hint=again) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint=again) from error
    try:
        return EnergyRecord.model_validate(_known(json.loads(text)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise ModelError(f"{path} is not an energy guard's file: {place}: {first['msg']}", hint=again) from error
    except ValueError as error:
        raise ModelError(f"{path} is not an energy guard's file: {error}", hint=again) from error


def _known(found: Any) -> Any:
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"it has schema {schema}, this version reads {SCHEMA}")
    return found


def require_same(record: EnergyRecord, found: Identity, *, template: str, folder: Path) -> None:
    """Refuse a guard in front of what it was not calibrated for.

    Args:
        record: the saved guard.
        found: what it is asked to guard.
        template: the name of the template in use.
        folder: the model's, for the message.

    Raises:
        ModelError: naming what differs.
    """
    saved = record.identity
    names = {"template": (f"{record.template.name} ", f"{template} ")}
    if differing := [name for name in Identity._fields if getattr(saved, name) != getattr(found, name)]:
        pairs = []
        for name in differing:
            before, now = names.get(name, ("", ""))
            pairs.append(f"{name} ({before}{getattr(saved, name)[:8]}, here {now}{getattr(found, name)[:8]})")
        raise ModelError(
            f"the guard in {folder} was calibrated for another {' and another '.join(pairs)}",
            hint=f"energies do not carry over: run `{calibrate_command(folder)}`",
        )


def calibrate_command(folder: Path) -> str:
    """The command line that calibrates a guard for a model folder."""
    if (folder.parent / "manifest.json").exists():
        return f"expunge guard calibrate {folder.parent}"
    return f"expunge guard calibrate {folder} --prompts FILE"
