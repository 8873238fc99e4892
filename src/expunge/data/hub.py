"""Datasets of the Hugging Face Hub, through the optional `datasets` package."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import HubError, UsageError

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
        HubError: the Hub has no such dataset, configuration, split or revision, or cannot be reached.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise UsageError(
            f"{repo} is a Hub dataset, and reading those needs the package `datasets`",
            hint="pip install 'expunge[hub]'",
        ) from error
    with _quiet():
        commit, reached = _commit(repo, revision)
        table = _table(datasets, repo, name=name, split=split, revision=commit, reached=reached)
    return HubRows(table.to_list(), commit)


def _table(datasets: Any, repo: str, *, name: str | None, split: str, revision: str | None, reached: bool) -> Any:
    try:
        with _from_cache(datasets, only=not reached):
            return datasets.load_dataset(repo, name, split=split, revision=revision)
    except (OSError, ValueError) as error:
        where = f"{repo}{f' {name}' if name else ''}:{split}"
        raise HubError(
            f"cannot load {where} from the Hub: {_reason(error, reached=reached)}",
            hint=f"check {'the id, name and split' if reached else 'the network and the id'}; for a local file give its"
            " path",
        ) from error


def _reason(error: Exception, *, reached: bool) -> str:
    if isinstance(error, ConnectionError) and not reached:
        return "it cannot be reached, and the cache does not hold it"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _Commit(NamedTuple):
    sha: str | None
    reached: bool
    """The Hub answered."""


def _commit(repo: str, revision: str | None) -> _Commit:
    """The commit of a revision; as given where the Hub is out of reach and only the cache can answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return _Commit(HfApi().dataset_info(repo, revision=revision).sha, reached=True)
    except HfHubHTTPError:
        # The answer was no: `load_dataset` says why, or has the rows in its cache.
        return _Commit(revision, reached=True)
    except Exception:
        # Which exceptions say that there is no way to the Hub depends on the HTTP library of the day.
        return _Commit(revision, reached=False)


@contextmanager
def _from_cache(datasets: Any, *, only: bool) -> Iterator[None]:
    """Where the Hub is out of reach, keep `load_dataset` from knocking again for half a minute before it looks here."""
    config = getattr(datasets, "config", None)
    if config is None or not only:
        yield
        return
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' own reports of each attempt off stderr: what failed in the end is one error."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
