"""Which run an unlearned model started from, by its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from expunge.runs.manifest import Manifest, load_manifest


class Starting(NamedTuple):
    """The run that made the starting model, or why it is not known."""

    run: Path | None
    reason: str = ""
    digest: str | None = None
    """SHA-256 of the weights that were unlearned."""


def starting_run(run: Path) -> Starting:
    """The run whose `model` folder an unlearning run started from.

    Args:
        run: the unlearning run. A relative name in its manifest counts from here, or from where its own relative
            output directory was named.

    Raises:
        DataError: its manifest is not readable.
    """
    if not (run / "manifest.json").exists():
        return Starting(None, f"{run} is not a run directory, so its starting run is not known")
    manifest = load_manifest(run)
    if manifest.kind != "unlearn":
        return Starting(None, f"this model was not unlearned (kind of run: {manifest.kind})")
    name = (manifest.resolved.get("model") or {}).get("model_name_or_path")
    if not name:
        return Starting(None, "the manifest names no starting model")
    digest = None if manifest.model is None else manifest.model.digest
    for base in _bases(run, manifest):
        model = base / str(name)
        if (model.parent / "manifest.json").exists():
            return Starting(model.parent, digest=digest)
    return Starting(None, f"the starting model {name} does not lie in a run", digest)


def _bases(run: Path, manifest: Manifest) -> list[Path]:
    output, own = Path(str(manifest.resolved.get("output_dir", "."))), run.resolve()
    if output.is_absolute() or own.parts[-len(output.parts) :] != output.parts:
        return [Path()]
    return [Path(), Path(*own.parts[: len(own.parts) - len(output.parts)])]
