"""Push a finished run's model to the Hugging Face Hub: weights, tokenizer, guard and a redacted card, nothing else.

Evaluation tables, events, the manifest and checkpoints hold forgotten text or say where it lies; they never leave the
run directory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from expunge.errors import StoppedError, UsageError
from expunge.report.card import CARD, is_foreign, unmeasured_card
from expunge.report.card import card as measured_card
from expunge.report.collect import compared
from expunge.report.page import verdict_of
from expunge.runs.redact import redaction_key
from expunge.runs.run import Run

Progress = Callable[[dict[str, Any]], None]

PUSHED = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("adapter_config.json", "energy_guard.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
)
"""Names of files that belong to a model; whatever else lies in its folder stays at home."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PLAIN = frozenset({".gitattributes", CARD})
_AGAIN = "the run is whole; push it again with `expunge push {run} {repo}`"


class Pushed(NamedTuple):
    """What is on the Hub now."""

    url: str
    """Of the commit."""
    repo_id: str
    private: bool
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    """Files of the model folder that were not pushed."""
    own_card: bool
    """Whether the card is one somebody wrote, pushed as it is."""


def push(
    path: Path,
    repo_id: str | None = None,
    *,
    private: bool = True,
    revision: str | None = None,
    merged: bool = False,
    start: Path | None = None,
    reference: Path | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Upload `RUN/model` with a redacted model card, in one commit. Of a run that trained adapters this is the adapter.

    A repository that expunge pushed to before is brought to exactly these files; one that holds anything else is
    refused, so that nobody's work is replaced.

    Args:
        path: a finished run.
        repo_id: `organisation/name`, or `name` under the account that is logged in; the run folder's name unless given.
        private: of a repository that has to be made; an existing one must be so already.
        revision: a branch; made from the main one where it is missing.
        merged: upload `RUN/merged` instead, the plain model that `expunge merge` made of adapter and base.
        start: the evaluated starting model, for the card, as in a report; found from the manifest unless given.
        reference: the evaluated retrained model, likewise.
        progress: told what is uploaded.

    Raises:
        UsageError: a run that is not finished or has no model; a name that is none; not logged in, or not allowed to
            write there; a repository that holds something else, or that others can see though `private` was asked for.
        StoppedError: the Hub cannot be reached or refuses the upload; the run stays as it is.
    """
    run = Run.open(path)
    _require_finished(run)
    source = _source(run, merged=merged)
    wanted, left_out = _files(source)
    with _explained(path, repo_id):
        place = _ready(repo_id or path.resolve().name, private=private, revision=revision)
    with TemporaryDirectory() as folder:
        for name in wanted:
            (Path(folder) / name).symlink_to((source / name).resolve())
        own = is_foreign(source / CARD)
        card = source / CARD
        text = (
            card.read_text(encoding="utf-8")
            if own
            else redacted_card(path, name=place.repo_id, model=source, start=start, reference=reference)
        )
        (Path(folder) / CARD).write_text(text, encoding="utf-8")
        if progress:
            progress({"event": "note", "text": f"pushing {len(wanted) + 1} files to {place.repo_id}"})
        with _explained(path, place.repo_id):
            url = place.upload(Path(folder))
    return Pushed(url, place.repo_id, place.private, (CARD, *wanted), left_out, own)


def require_access(repo_id: str, *, private: bool) -> None:
    """Refuse before a run what `push` would refuse after it; makes nothing.

    Raises:
        UsageError, StoppedError: as `push`.
    """
    with _explained(None, repo_id):
        _ready(repo_id, private=private, revision=None)


def redacted_card(
    path: Path, *, name: str, model: Path, start: Path | None = None, reference: Path | None = None
) -> str:
    """The card of a run as it is handed on: digests under the run's key, no path, no text of a row.

    Args:
        path: the run.
        name: of the model.
        model: the folder it goes with.
        start: the evaluated starting model.
        reference: the evaluated retrained model.

    Raises:
        DataError, UsageError, MetricError: an evaluation that cannot be read.
    """
    key = redaction_key(path)
    manifest = Run.open(path).manifest
    if not any(path.glob("evals/*/spec.json")):
        return unmeasured_card(path, manifest, name=name, key=key, model=model)
    found = compared(path, start=start, reference=reference)
    return measured_card(found, verdict_of(found), name=name, key=key, model=model)


def _require_finished(run: Run) -> None:
    if run.manifest.kind == "eval":
        raise UsageError(f"{run.path} evaluated a model and made none", hint="push the run that made it")
    if run.manifest.status != "finished" or not run.model_dir.is_dir():
        raise UsageError(
            f"{run.path} is {run.manifest.status} and has no finished model",
            hint=f"repeat its `expunge {run.manifest.kind}` command: it resumes and finishes",
        )


def _files(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that are pushed, and names that are not."""
    names = sorted(path.name for path in folder.iterdir())
    wanted = tuple(name for name in names if any(fnmatch(name, pattern) for pattern in PUSHED))
    return wanted, tuple(name for name in names if name not in wanted and name != CARD)


def _source(run: Run, *, merged: bool) -> Path:
    """The folder that is pushed.

    Raises:
        UsageError: nothing was merged; or adapters of a model that only lies here: nobody could load them, and they
            would tell the folder's name.
    """
    folder = run.path / "merged" if merged else run.model_dir
    if not folder.is_dir():
        raise UsageError(f"{run.path} has no merged model", hint=f"make it first: expunge merge {run.path}")
    config = folder / "adapter_config.json"
    if config.exists():
        read = json.loads(config.read_text(encoding="utf-8"))
        base = str(read.get("base_model_name_or_path"))
        if not read.get("revision") and (Path(base).exists() or not _HUB_ID.fullmatch(base)):
            raise UsageError(
                f"{run.path} holds adapters of {base!r}, which is no model of the Hub: others could not load them",
                hint=f"make one model of both with `expunge merge {run.path}`, and push it with --merged",
            )
    return folder


class _Place(NamedTuple):
    """A repository that may be written to."""

    api: Any
    repo_id: str
    private: bool
    revision: str | None
    exists: bool

    def upload(self, folder: Path) -> str:
        """Make what is missing, then bring the branch to exactly the files of a folder; the commit's address."""
        if not self.exists:
            self.api.create_repo(self.repo_id, private=self.private)
        if self.revision is not None:
            self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
        made = self.api.upload_folder(
            repo_id=self.repo_id,
            folder_path=folder,
            revision=self.revision,
            commit_message="Upload model with expunge",
            delete_patterns="*",
        )
        return str(made.commit_url)


def _ready(repo_id: str, *, private: bool, revision: str | None) -> _Place:
    """Check name, login and what lies at the place; the Hub is only read."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    account = api.whoami()["name"]
    full = repo_id if "/" in repo_id else f"{account}/{repo_id}"
    try:
        info = api.model_info(full)
    except RepositoryNotFoundError:
        return _Place(api, full, private, revision, exists=False)
    _require_ours(full, info, private=private)
    return _Place(api, full, bool(info.private), revision, exists=True)


def _require_ours(repo_id: str, info: Any, *, private: bool) -> None:
    names = {item.rfilename for item in info.siblings or ()}
    if not names <= _PLAIN and "expunge" not in (info.tags or ()):
        raise UsageError(
            f"{repo_id} exists and holds {len(names)} files that expunge did not push",
            hint="choose another name: what lies there would be replaced",
        )
    if private and not info.private:
        raise UsageError(
            f"{repo_id} exists and everybody can see it, though a private repository was asked for",
            hint="make it private on the Hub, choose another name, or say --public (hub_private_repo=false)",
        )


@contextmanager
def _explained(run: Path | None, repo_id: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors a person can act on."""
    from huggingface_hub import errors

    place = repo_id or "the Hub"
    again = _AGAIN.format(run=run, repo=repo_id or "") if run else "or set push_to_hub=false and push later"
    login = "log in with `hf auth login` (a token that may write), or set HF_TOKEN"
    try:
        yield
    except errors.HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no name of a repository: {error}", hint="write organisation/name") from error
    except errors.LocalTokenNotFoundError as error:
        raise UsageError("nobody is logged in to the Hugging Face Hub", hint=login) from error
    except errors.OfflineModeIsEnabled as error:
        raise UsageError("HF_HUB_OFFLINE is set, so nothing can be pushed", hint="unset it") from error
    except errors.HfHubHTTPError as error:
        raise _refusal(error, place, login, again) from error
    # Which HTTP client raises this depends on huggingface_hub's version, which re-exports the base.
    except (errors.HTTPError, ConnectionError) as error:  # type: ignore[attr-defined]
        raise StoppedError(f"the Hub cannot be reached ({str(error) or type(error).__name__})", hint=again) from error


_MEANING: Mapping[int, str] = {
    401: "the Hub does not know this login",
    403: "this login may not write to {place}",
    409: "{place} was made by somebody else in the meantime",
}


def _refusal(error: Any, place: str, login: str, again: str) -> UsageError | StoppedError:
    code = error.response.status_code
    if code in _MEANING:
        hint = login if code == 401 else f"choose a repository of yours; {login}"
        return UsageError(_MEANING[code].format(place=place), hint=hint)
    said = error.server_message or str(error).splitlines()[0]
    return StoppedError(f"the Hub refused the upload to {place} ({code}): {said}", hint=again)
