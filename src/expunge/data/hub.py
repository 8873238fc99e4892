"""Datasets of the Hugging Face Hub, through the optional `datasets` package."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import DataError, UsageError

_ID = re.compile(r"[\w.-]+/[\w.-]+")


class HubRows(NamedTuple):
    """Rows of one split and the commit they were read at."""

    rows: list[dict[str, Any]]
    revision: str | None
    """The commit; the revision asked for where the Hub could not be reached and the cache answered."""


def is_hub_id(source: str) -> bool:
    """Whether a source that is no file or folder can be a Hub dataset: `org/name`, and no folder `org` lies here."""
    return _ID.fullmatch(source) is not None and not Path(source).expanduser().parent.is_dir()


def load_hub(repo: str, *, name: str | None, split: str, revision: str | None) -> HubRows:
    """Download (or read from the cache) one split of a Hub dataset.

    Args:
        repo: `org/name`.
        name: configuration.
        split: e.g. `train`.
        revision: branch, tag or commit; resolved to a commit, so that the manifest can name it.

    Raises:
        UsageError: `datasets` is not installed.
        DataError: the Hub has no such dataset, configuration, split or revision, or cannot be reached.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise UsageError(
            f"{repo} is a Hub dataset, and reading those needs the package `datasets`",
            hint="pip install 'expunge[hub]'",
        ) from error
    commit = _commit(repo, revision)
    try:
        table = datasets.load_dataset(repo, name, split=split, revision=commit)
    except (OSError, ValueError) as error:
        where = f"{repo}{f' {name}' if name else ''}:{split}"
        raise DataError(
            f"cannot load {where} from the Hub: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="check the id, name and split; for a local file give its path",
        ) from error
    return HubRows(table.to_list(), commit)


def _commit(repo: str, revision: str | None) -> str | None:
    """The commit of a revision; as given where the Hub is out of reach and only the cache can answer."""
    from huggingface_hub import HfApi

    try:
        sha: str | None = HfApi().dataset_info(repo, revision=revision).sha
    except Exception:
        # Whatever went wrong (which exceptions exist depends on the HTTP library of the day), `load_dataset` either
        # answers from its cache or says so itself.
        return revision
    return sha
