"""MUSE's own logs: `history.json` with `out.json` per memorisation test, `auc.json` with the scores of its texts.

They are found by name in a folder, or one of them is named. `log.json` and `agg.json` are later names of the first two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import DataError, UsageError
from expunge.evals.logs.reading import by_row, field, listed, mapping, number, numbers, read_json, require_keys, text
from expunge.evals.logs.record import Generated, Log, LogRows

HISTORY, OUT, AUC = ("history.json", "log.json"), ("out.json", "agg.json"), "auc.json"
PARTS = ("verbmem_f", "knowmem_f", "knowmem_r")
"""Names of the three memorisation tests, as in MUSE's table."""
SIDES = ("forget", "retain", "retain2", "holdout")
MEASURES = {"rougeL": "rougeL_f1", "rougeL_recall": "rougeL_recall", "rouge1": None, "rouge1_recall": "rouge1_recall"}
"""Score of a row, without stemming -> our column of the same quantity."""
_BY_FOLDER = {
    ("verbmem", "forget"): "verbmem_f",
    ("knowmem", "forget"): "knowmem_f",
    ("knowmem", "retain"): "knowmem_r",
}


class _Found(NamedTuple):
    """What there is to read."""

    tests: dict[str, Path]
    """Part -> its folder."""
    auc: Path | None


def read_muse(path: Path) -> Log:
    """Read the logs of one model.

    Args:
        path: a `history.json` or `out.json` (the other one beside it is read as well), an `auc.json` (with the
            `forget.json`, `retain2.json` and `holdout.json` beside it), or a folder with any of them below it.

    Raises:
        UsageError: there is no such file, or a folder holds logs of several models.
        DataError: not such a log; a key that is missing; a value that is not a number. All are named.
    """
    found = _find(path)
    rows = LogRows()
    summary: dict[str, float] = {}
    alone: dict[str, float] = {}
    for part, folder in found.tests.items():
        named = _aggregates(folder, "" if len(found.tests) == 1 else f"{part}.")
        history = _first(folder, HISTORY)
        if history is not None:
            _history(rows, part, history)
            summary |= named
        else:
            alone |= named
    if found.auc is not None:
        texts = _texts(rows, found.auc.parent)
        (summary if texts else alone).update(_aucs(found.auc))
    return Log("muse", "muse", rows, summary | alone, alone=alone)


def _find(path: Path) -> _Found:
    if path.is_dir():
        return _search(path)
    if path.name == AUC:
        return _Found({}, path)
    if path.name in (*HISTORY, *OUT):
        return _Found({_part(path.parent): path.parent}, None)
    raise UsageError(
        f"{path.name} is none of MUSE's logs ({', '.join((*HISTORY, *OUT, AUC))})",
        hint="name one of those files, or the folder that holds them",
    )


def _search(folder: Path) -> _Found:
    names = [*HISTORY, *OUT]
    folders = sorted({file.parent for name in names for file in folder.rglob(name) if file.parent.name != "privleak"})
    tests: dict[str, Path] = {}
    for each in folders:
        part = _part(each)
        if part in tests:
            raise UsageError(
                f"{folder} holds several logs of {part}: {tests[part]} and {each}",
                hint="import one model at a time: name its own folder",
            )
        tests[part] = each
    aucs = sorted(folder.rglob(AUC))
    if len(aucs) > 1:
        raise UsageError(f"{folder} holds {len(aucs)} {AUC}", hint="import one model at a time: name its own folder")
    if not tests and not aucs:
        raise UsageError(f"{folder} holds none of {', '.join((*names, AUC))}", hint="name the folder with MUSE's logs")
    return _Found(tests, aucs[0] if aucs else None)


def _part(folder: Path) -> str:
    """Which test a folder is of: it is called so, or lies as MUSE lays it (`knowmem/out/.../retain`)."""
    where = folder.resolve().parts
    if where[-1] in PARTS:
        return where[-1]
    for (test, side), part in _BY_FOLDER.items():
        if where[-1] == side and test in where:
            return part
    raise DataError(
        f"nothing says which test {folder} is of",
        hint=f"call the folder {', '.join(PARTS[:-1])} or {PARTS[-1]}",
    )


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _aggregates(folder: Path, prefix: str) -> dict[str, float]:
    """`mean_` and `max_` of each score, where the log has them."""
    path = _first(folder, OUT)
    if path is None:
        return {}
    log = mapping(read_json(path), what=str(path))
    known = {name: log[name] for name in log if name.partition("_")[2] in MEASURES}
    if not known:
        raise DataError(
            f"{path} lacks mean_rougeL (it has: {listed(log) or 'nothing'})",
            hint="check which software wrote this log (--from)",
        )
    return {f"{prefix}{name}": number(value, what=f"{path}: {name}") for name, value in known.items()}


def _history(rows: LogRows, part: str, path: Path) -> None:
    log = read_json(path)
    if not isinstance(log, list) or not log:
        raise DataError(f"{path} is no list of answers", hint="check which software wrote this log (--from)")
    entries = by_row(log, what=str(path))
    for name, values in ((name, field(entries, name, what=str(path))) for name in MEASURES):
        rows.score(part, name, numbers(values, what=f"{path} ({name})"))
    rows.generated(part, {row: _generated(entry, f"{path}, row {row},") for row, entry in entries.items()})


def _generated(entry: Mapping[str, Any], what: str) -> Generated:
    require_keys(entry, ("gt", "response"), what=what)
    rouge = {ours: entry[name] for name, ours in MEASURES.items() if ours is not None}
    prompt = text(entry.get("question")) or text(entry.get("prompt"))
    return Generated(prompt, text(entry["gt"]), text(entry["response"]), rouge)


def _texts(rows: LogRows, folder: Path) -> bool:
    """The attack scores of the texts beside an `auc.json`; whether there are any."""
    files = {side: folder / f"{side}.json" for side in SIDES if (folder / f"{side}.json").exists()}
    for side, path in files.items():
        entries = by_row(read_json(path), what=str(path))
        scores = field(entries, "ppl", what=str(path))
        names = list(mapping(next(iter(scores.values()), {}), what=f"{path}: ppl"))
        for name in names:
            rows.score(side, name, numbers(field(scores, name, what=f"{path}: ppl"), what=f"{path} ({name})"))
    return bool(files)


def _aucs(path: Path) -> dict[str, float]:
    """`forget_holdout_Min-40%` and so on: the names under which MUSE takes them out."""
    log = mapping(read_json(path), what=str(path))
    return {
        f"{pair}_{attack}": number(value, what=f"{path}: {pair}, {attack}")
        for pair, attacks in log.items()
        for attack, value in mapping(attacks, what=f"{path}: {pair}").items()
    }
