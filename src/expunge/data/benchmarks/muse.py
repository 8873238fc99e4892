"""MUSE (Shi et al., 2407.06460): its subsets, where they lie, and how its questions are asked.

`knowmem` holds questions about forget and retain texts, each with a pool of questions that are answered in front of it;
`verbmem` beginnings of forget texts and how they go on; `privleak` forget texts and texts nobody trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from expunge.config.schema import SourceSpec
from expunge.data.example import ASKED, Example, Turn
from expunge.data.readers import ENDINGS
from expunge.data.source import load_examples
from expunge.errors import DataError

HUB = "muse-bench/MUSE-News"
"""Where MUSE is published; its other corpus is `muse-bench/MUSE-Books`."""

_OLDER = {"retain_qa": "retain2_qa", "retain_qa_icl": "retain2_qa_icl"}
"""Names in the first release of the files."""
_SHOT = "Question: {question}\nAnswer: {answer}\n\n"
_QUESTION = "Question: {question}\nAnswer: "


@dataclass(frozen=True)
class Part:
    """One split of one subset."""

    subset: str
    split: str
    format: str
    """What its rows must be, as `expunge.data.formats` calls it."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Our column -> MUSE's."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What the published file calls the columns of `format`."""
        return tuple(self.fields.get(ours, ours) for ours in self.format.split("/"))

    @property
    def name(self) -> str:
        """`knowmem/forget_qa`: what its rows are called, wherever they come from."""
        return f"{self.subset}/{self.split}"


FORGET_QA = Part("knowmem", "forget_qa", "question/answer")
RETAIN_QA = Part("knowmem", "retain_qa", "question/answer")
VERBATIM = Part("verbmem", "forget", "prompt/completion", {"completion": "gt"})
FORGET_TEXTS = Part("privleak", "forget", "text")
HOLDOUT_TEXTS = Part("privleak", "holdout", "text")


def has_subset(muse: str, subset: str) -> bool:
    """Whether a subset can be asked for: a folder may hold some of them, the Hub has all."""
    folder = Path(muse).expanduser()
    return (folder / subset).is_dir() if folder.is_dir() else True


def questions(muse: str, part: Part, *, limit: int | None = None) -> tuple[Example, ...]:
    """The questions of a split as they are published: every question of its pool with its answer, then the one asked.

    The prompt is `Question: q\\nAnswer: a\\n\\n` of each pair of the split `..._icl`, then `Question: q\\nAnswer: `; it
    ends in a blank.

    Args:
        muse: a folder of MUSE's files, or a Hub id.
        part: `FORGET_QA` or `RETAIN_QA`.
        limit: only the first questions; the pool stays whole.

    Raises:
        DataError: a split is missing, unreadable, or holds other rows.
    """
    pool = load_part(muse, replace(part, split=f"{part.split}_icl"))
    shots = "".join(_SHOT.format(question=shot.prompt[-1].content, answer=shot.answer) for shot in pool)
    return tuple(_asked(example, shots) for example in load_part(muse, part)[:limit])


def _asked(example: Example, shots: str) -> Example:
    question = example.prompt[-1].content
    prompt = Turn("user", shots + _QUESTION.format(question=question))
    return replace(example, turns=(prompt, example.turns[-1]), extra={**example.extra, ASKED: question})


def continuations(muse: str, *, limit: int | None = None) -> tuple[Example, ...]:
    """Beginnings of forget texts and how they go on; a blank is put in front of what follows where none divides them.

    MUSE cuts at a token's edge and drops the white space there. Without it a text would go on in the middle of a word,
    which no training text does.

    Raises:
        DataError: the split is missing, unreadable, or holds other rows.
    """
    return tuple(_divided(example) for example in load_part(muse, VERBATIM)[:limit])


def _divided(example: Example) -> Example:
    prompt, answer = example.prompt[-1].content, example.answer
    if not prompt or prompt[-1].isspace() or answer[0].isspace():
        return example
    return replace(example, turns=(*example.prompt, Turn("assistant", f" {answer}")))


def load_part(muse: str, part: Part) -> list[Example]:
    """The rows of one split, with ids that do not depend on where they lie.

    Args:
        muse: a folder with a folder per subset (`knowmem/forget_qa.json`, or `forget_qa-00000-of-00001.parquet` as on
            the Hub), or a Hub id.
        part: which split.

    Raises:
        DataError: there is no such split, it is unreadable, or its rows lack their columns.
    """
    folder = Path(muse).expanduser()
    if folder.is_dir():
        place = folder / part.subset
        source = SourceSpec(path=str(place), split=_local_split(place, part.split), fields=dict(part.fields))
    else:
        source = SourceSpec(path=muse, name=part.subset, split=part.split, fields=dict(part.fields))
    loaded = load_examples(source, tofu="", role=part.name, published=part.columns)
    if loaded.format != part.format:
        raise DataError(
            f"{loaded.origin} holds {loaded.format} rows, but MUSE's {part.name} are {part.format} rows",
            hint="use the published files",
        )
    return [replace(example, id=f"{part.name}:{example.row}") for example in loaded.examples]


def _local_split(folder: Path, split: str) -> str:
    """The name a split has in a folder: its own, or that of the first release."""
    present = _splits(folder)
    for name in (split, _OLDER.get(split, split)):
        if name in present:
            return name
    raise DataError(
        f"{folder} has no {split}.json",
        hint=f"it has {', '.join(present)}" if present else f"it must hold MUSE's {folder.name} files",
    )


def _splits(folder: Path) -> Sequence[str]:
    files = sorted(path for path in folder.glob("*") if path.suffix in ENDINGS)
    return list(dict.fromkeys(path.stem.partition("-0")[0] for path in files))
