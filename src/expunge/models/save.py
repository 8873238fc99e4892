"""Models on disk: a plain Hugging Face folder, or an adapter's, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.config.schema import ModelSection
from expunge.errors import ExpungeError, StoppedError, UsageError
from expunge.models.adapter_folder import find_adapter, write_adapter
from expunge.models.adapters import is_adapted
from expunge.models.load import load_model, load_tokenizer, quiet
from expunge.runs.store import sync_files


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer as `from_pretrained` loads them; of an adapted model the adapter alone.

    Raises:
        StoppedError: it could not be written.
        ModelError: an adapter whose base has an adapter that is gone or of another kind.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with quiet():
            if is_adapted(model):
                write_adapter(model, partial)
            else:
                model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        sync_files(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    # Tokenizers report a full disk as a bare Exception.
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, ExpungeError):
            raise
        raise StoppedError(
            f"the model could not be written to {folder}: {error}",
            hint="free disk space, then run the same command: training is done, only the saving is repeated",
        ) from error


def save_merged(
    section: ModelSection, folder: Path, *, device: torch.device, overwrite: bool = False, beside: Sequence[str] = ()
) -> None:
    """Write the model that an adapter stands for, `W + (alpha / r) B A`, as a plain Hugging Face folder, in float32.

    Args:
        section: the adapter and how it is loaded; W has the rounding of a quantised base, which is what it was trained
            and measured with.
        folder: what is written.
        device: where it is loaded; quantised weights need CUDA.
        overwrite: replace what lies there.
        beside: files of the adapter's folder that go along where it has them.

    Raises:
        UsageError: there is no adapter, or something lies in `folder`.
        ModelError: it or its base cannot be loaded.
        StoppedError: the model could not be written.
    """
    adapter = section.model_name_or_path or ""
    if find_adapter(adapter) is None:
        raise UsageError(
            f"{adapter} holds no adapter (adapter_config.json)", hint="a folder of whole weights is merged already"
        )
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder} exists", hint="name another folder with --out, or replace it with --overwrite")
    model = load_model(section, device=device, merge=True).model
    save_model(model, load_tokenizer(adapter, trust_remote_code=section.trust_remote_code), folder)
    for name in beside:
        if (Path(adapter) / name).exists():
            shutil.copyfile(Path(adapter) / name, folder / name)
