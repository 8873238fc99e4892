"""Models on disk: a plain Hugging Face folder, or an adapter's, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from expunge.errors import StoppedError
from expunge.models.adapter_folder import write_adapter
from expunge.models.adapters import is_adapted
from expunge.models.load import quiet
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
