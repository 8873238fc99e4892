"""Models on disk: a plain Hugging Face folder, or an adapter's, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.config.schema import ModelSection
from expunge.errors import StoppedError, UsageError
from expunge.models.adapter_folder import find_adapter, write_adapter
from expunge.models.adapters import is_adapted
from expunge.models.load import load_model, load_tokenizer, quiet
from expunge.runs.store import sync_files


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer as `from_pretrained` loads them; of an adapted model the adapter alone.

    Raises:
        StoppedError: it could not be written.
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
        raise StoppedError(
            f"the model could not be written to {folder}: {error}",
            hint="free disk space, then run the same command: training is done, only the saving is repeated",
        ) from error


def save_merged(
    adapter: str,
    folder: Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    beside: Sequence[str] = (),
) -> None:
    """Write the model that an adapter stands for, `W + (alpha / r) B A`, as a plain Hugging Face folder.

    In float32, also where it was trained on quantised weights, which the result then differs from.

    Args:
        adapter: folder or Hub id of an adapter.
        folder: what is written.
        overwrite: replace what lies there.
        trust_remote_code: run model code of the base's repository.
        beside: files of the adapter's folder that go along where it has them.

    Raises:
        UsageError: there is no adapter, or something lies in `folder`.
        ModelError: it or its base cannot be loaded.
        StoppedError: the model could not be written.
    """
    if find_adapter(adapter) is None:
        raise UsageError(
            f"{adapter} holds no adapter (adapter_config.json)", hint="a folder of whole weights is merged already"
        )
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder} exists", hint="name another folder with --out, or replace it with --overwrite")
    section = ModelSection(model_name_or_path=adapter, trust_remote_code=trust_remote_code)
    model = load_model(section, device=torch.device("cpu")).model
    save_model(model, load_tokenizer(adapter, trust_remote_code=trust_remote_code), folder)
    for name in beside:
        if (Path(adapter) / name).exists():
            shutil.copyfile(Path(adapter) / name, folder / name)
