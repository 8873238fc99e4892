"""TOFU (Maini et al., 2401.06121): the names of its files, where they lie, and which author each row is about.

`full` holds 200 fictitious authors, 20 rows each. `forgetXX` are its last authors, `retainXX` and `retain_perturbed`
its first ones, so a row's author follows from the file and the row; `holdoutXX` are authors of their own.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from expunge.errors import DataError, UsageError

ROWS_PER_AUTHOR = 20
AUTHORS = 200
PREFIX = "tofu:"

_SHARES = ("01", "05", "10")
_FIRST_AUTHOR = (
    {"full": 0, "retain_perturbed": 0}
    | {f"retain{100 - int(share)}": 0 for share in _SHARES}
    | {f"forget{share}{suffix}": AUTHORS - 2 * int(share) for share in _SHARES for suffix in ("", "_perturbed")}
)
_HOLDOUT = tuple(f"holdout{share}" for share in _SHARES)
_GENERAL = ("real_authors", "real_authors_perturbed", "world_facts", "world_facts_perturbed")
LINES = ("idontknow",)
"""Files of plain lines."""

NAMES = (*_FIRST_AUTHOR, *_HOLDOUT, *_GENERAL, *LINES)
"""Every `tofu:NAME`; `idontknow` is the list of refusals."""


def group(name: str, row: int) -> str | None:
    """Whom row `row` of file `name` is about: equal for the same author in every file, None for general knowledge."""
    if name in _FIRST_AUTHOR:
        return f"author-{_FIRST_AUTHOR[name] + row // ROWS_PER_AUTHOR}"
    if name in _HOLDOUT:
        return f"holdout-{row // ROWS_PER_AUTHOR}"
    return None


def check_name(name: str) -> str:
    """`name` itself.

    Raises:
        UsageError: TOFU has no such file.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known: {', '.join(NAMES)}"
        raise UsageError(f"TOFU has no {name!r}", hint=hint)
    return name


def local_file(name: str, folder: Path) -> Path:
    """The file of `name` in a folder of TOFU files.

    Raises:
        DataError: the folder has none.
    """
    for ending in (".json", ".jsonl"):
        if (folder / f"{name}{ending}").is_file():
            return folder / f"{name}{ending}"
    present = sorted(path.stem for path in folder.iterdir() if path.stem in NAMES)
    raise DataError(
        f"no {name}.json in {folder}",
        hint=f"the folder has {', '.join(present)}"
        if present
        else "set data.tofu to a folder of TOFU files or a Hub id",
    )
