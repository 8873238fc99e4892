"""What methods that let a model write share: how it is asked, what is refused, and what is said about it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from expunge.data.encode import name_rows
from expunge.data.example import Example, Turn
from expunge.errors import DataError

_WORD = re.compile(r"\w+", re.UNICODE)
_COMMON = """
a about after all also an and are as at be been but by can did do does for from had has have he her his i in into is it
its me more my not of on one or our she so some than that the their them there these they this to was we were what when
where which who whose why will with would you your
"""
"""Words that say nothing about an answer."""
_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
_COMMON_WORDS = frozenset(_COMMON.split())
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())}
_ALIKE = 0.8
"""Similarity of two spellings above which they count as one word (published: a fuzzy ratio above 80)."""
_LEAST_SPELLING = 4
"""Letters of the shortest word whose spelling may be off."""


class Written(NamedTuple):
    """What was accepted, and what was not."""

    texts: list[str | None]
    """One per question; None where nothing acceptable came."""
    refused: dict[str, int]
    """Reason -> how many texts were thrown away for it."""

    @property
    def missing(self) -> list[int]:
        """Places without a text."""
        return [place for place, text in enumerate(self.texts) if text is None]

    def summary(self) -> str:
        """`12 of 12 written, thrown away: 3 empty`."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.refused.items()))
        return f"{len(self.texts) - len(self.missing)} of {len(self.texts)} written, thrown away: {reasons or 'none'}"


def write(
    ask: Callable[[Sequence[int], int], Sequence[str]],
    count: int,
    refuse: Callable[[int, str], str | None],
    *,
    seed: int,
    purpose: str,
    tries: int,
) -> Written:
    """Ask until every question has an acceptable text, each time with another seed and only where one is missing.

    Args:
        ask: places and a seed -> one text for each place.
        count: questions; their places are 0, 1, ...
        refuse: place and text -> why it is not acceptable, or None.
        seed: of the run.
        purpose: sets this use of the seed apart from others.
        tries: how often at most, at least 1.
    """
    texts: list[str | None] = [None] * count
    refused: Counter[str] = Counter()
    pending = list(range(count))
    for attempt in range(tries):
        if not pending:
            break
        for place, text in zip(pending, ask(pending, derived_seed(seed, purpose, attempt)), strict=True):
            reason = refuse(place, text)
            if reason is None:
                texts[place] = text
            else:
                refused[reason] += 1
        pending = [place for place in pending if texts[place] is None]
    return Written(texts, dict(refused))


def derived_seed(seed: int, *labels: object) -> int:
    """A seed of its own for each use, below 2^48."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, (seed, *labels))).encode()).digest()[:6], "big")


def require_questions(examples: Sequence[Example], method: str) -> None:
    """Refuse raw texts, to which no other answer can be asked for.

    Raises:
        DataError: naming the rows.
    """
    bare = [example.row for example in examples if not example.turns]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(examples)} forget rows are raw text without a question ({name_rows(bare)}), and "
            f"{method} asks the model their questions",
            hint="give rows with question and answer (or prompt and completion, or messages)",
        )


def instructed(example: Example, prompt: str, **fields: str) -> tuple[Turn, ...]:
    """The row's conversation with its last question put into `prompt` (`{question}`, `{answer}` and `fields`)."""
    *earlier, last = example.prompt
    values = {"question": last.content, "answer": example.answer} | fields
    # In one go: a question may itself contain braces.
    filled = re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), prompt)
    return (*earlier, Turn(last.role, filled))


def answered(example: Example, text: str, label: str) -> Example:
    """The row with another answer."""
    return Example(
        f"{example.id}|{label}", example.row, turns=(*example.prompt, Turn("assistant", text)), group=example.group
    )


def cut(text: str, stops: Sequence[str]) -> str:
    """Up to the first of the stop strings."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].strip()


def words(text: str) -> list[str]:
    """Lower-case words after NFKC, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def same_text(one: str, other: str) -> bool:
    """Whether two texts are equal but for case, punctuation and white space."""
    return words(one) == words(other)


def own_words(answer: str, question: str = "") -> list[str]:
    """Words of the answer that the question does not give away, without common ones; all its words if none is left."""
    every = list(dict.fromkeys(words(answer)))
    given = set(words(question))
    return [word for word in every if word not in given and word not in _COMMON_WORDS] or every


def same_word(one: str, other: str) -> bool:
    """Whether two words are equal, a number and its name, or nearly the same spelling.

    Numbers must be equal. Published code also takes WordNet synonyms and embedding cosines above 0.6, which call many
    unrelated words alike and need two more packages.
    """
    one, other = (_DIGITS.get(word, word) for word in (one.casefold(), other.casefold()))
    if one == other:
        return True
    if min(len(one), len(other)) < _LEAST_SPELLING or any(ch.isdigit() for ch in one + other):
        return False
    return SequenceMatcher(None, one, other, autojunk=False).ratio() > _ALIKE


def matches(answer: str, output: str, *, question: str = "", overlap: float = 0.5) -> bool:
    """Whether an output still gives the answer: more than a share `overlap` of the answer's own words is in it.

    Args:
        answer: the right one.
        output: what a model said.
        question: its words prove nothing, in either.
        overlap: in [0, 1); 0: one word is enough (published).
    """
    wanted = own_words(answer, question)
    if not wanted:
        return False
    said = words(output)
    found = sum(any(same_word(word, other) for other in said) for word in wanted)
    return found > overlap * len(wanted)


def contains(answer: str, text: str, *, question: str = "") -> bool:
    """Whether a text gives the answer away: its words in a row, whatever the case, or all its own words anywhere."""
    wanted = words(answer)
    said = words(text)
    if not wanted:
        return False
    if any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1)):
        return True
    # A published filter: the answer as a substring, also inside a longer word.
    if answer.strip().casefold() in text.casefold():
        return True
    return set(own_words(answer, question)) <= set(said)
