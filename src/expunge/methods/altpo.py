"""AltPO: prefer answers of the model's own making to the forgotten one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from expunge.data.encode import name_rows
from expunge.data.example import Example
from expunge.errors import DataError
from expunge.methods.base import Needs
from expunge.methods.generate import Written, answered, cut, instructed, require_questions, same_text, write
from expunge.methods.idk_dpo import IdkDPO
from expunge.methods.workshop import Provision, Workshop

COLUMN = "alternate"
PROMPT = (
    "{question}\n\nOne answer to this question is: {answer}\nWrite another plausible answer to it, of the same form "
    "but with different facts. Write only the answer."
)
_STOPS = ("Question:", "Q:", "\n\n")


class AltPO(IdkDPO):
    """IdkDPO's loss with in-domain alternatives in place of refusals: `num_alternates` per question, one an epoch.

    In epoch e every forget row travels with alternative e mod k, so k epochs here are one epoch over the published
    list of (question, alternative) rows. Rows that bring a column `alternate` (a text, or a list of texts) are not
    rewritten.
    """

    name: ClassVar[str] = "altpo"
    paper: ClassVar[str] = "Mekala et al., Alternate Preference Optimization, arXiv 2409.13474"

    alternates: Literal["auto", "model", "column"] = "auto"
    """Who writes them: the starting model, or the rows' column `alternate`; `auto`: the column where there is one."""
    num_alternates: int = Field(default=5, ge=1)
    """Alternatives the model writes per question (authors: 5); a column decides by its own length."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling (authors: 1)."""
    max_new_tokens: int = Field(default=200, ge=1)
    """Limit of an alternative (authors: 200)."""
    prompt: str = PROMPT
    """How the model is asked; `{question}` and `{answer}` are filled in. A model that follows no instructions may do
    better with `{question}` alone."""
    tries: int = Field(default=10, ge=1)
    """How often a question is asked, with other seeds, until an alternative is neither empty nor the answer itself."""

    @field_validator("prompt")
    @classmethod
    def _asks(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("the prompt must contain {question}")
        return value

    def needs(self) -> Needs:
        """As IdkDPO, with rows of its own making."""
        return replace(super().needs(), rows={"alternate": "made"})

    def prepare(self, workshop: Workshop) -> Provision:
        """The alternatives, read from the rows or written by the starting model.

        Raises:
            DataError: rows without an alternative, or with another number of them than the others; or rows for which
                the model wrote nothing else.
        """
        examples = workshop.datasets["forget"].examples
        require_questions(examples, self.name)
        given = self.alternates == "column" or (
            self.alternates == "auto" and any(COLUMN in example.extra for example in examples)
        )
        variants = _from_column(examples) if given else self._written(workshop, examples)
        if given:
            workshop.note(f"altpo: {len(variants)} alternatives per question from the column {COLUMN!r}")
        rows = [
            [answered(example, text, f"alternate{number}") for example, text in zip(examples, variant, strict=True)]
            for number, variant in enumerate(variants)
        ]
        return Provision(rows={"alternate": rows})

    def _written(self, workshop: Workshop, examples: Sequence[Example]) -> list[list[str]]:
        """(alternatives, rows) texts."""
        # One item per (alternative, row), so that one call of the sampler has them all.
        items = [example for _ in range(self.num_alternates) for example in examples]

        def ask(places: Sequence[int], seed: int) -> list[str]:
            texts = workshop.sample(
                [instructed(items[place], self.prompt) for place in places],
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                seed=seed,
            )
            return [cut(text, _STOPS) for text in texts]

        def refuse(place: int, text: str) -> str | None:
            if not text:
                return "empty"
            return "equal to the answer" if same_text(text, items[place].answer) else None

        made = write(ask, len(items), refuse, seed=workshop.seed, purpose=self.name, tries=self.tries)
        workshop.note(f"altpo: alternatives by the starting model: {made.summary()}")
        texts = self._complete(made, items)
        size = len(examples)
        return [texts[number * size : (number + 1) * size] for number in range(self.num_alternates)]

    def _complete(self, made: Written, items: Sequence[Example]) -> list[str]:
        texts = [text for text in made.texts if text is not None]
        if len(texts) < len(items):
            rows = sorted({items[place].row for place in made.missing})
            raise DataError(
                f"the model wrote no alternative answer for {len(rows)} forget rows in {self.tries} tries each "
                f"({name_rows(rows)}); thrown away: {_reasons(made.refused)}",
                hint=f"raise method.temperature or method.tries, set method.prompt='{{question}}', or give these rows "
                f"a column {COLUMN!r}",
            )
        return texts


def _reasons(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items()))


def _from_column(examples: Sequence[Example]) -> list[list[str]]:
    """(alternatives, rows) texts as given.

    Raises:
        DataError: rows without any, with another number than the first row, or that repeat the answer.
    """
    lists = [_list(example.extra.get(COLUMN)) for example in examples]
    without = [example.row for example, texts in zip(examples, lists, strict=True) if not texts]
    if without:
        raise DataError(
            f"{len(without)} of {len(examples)} forget rows have no alternative answer ({name_rows(without)})",
            hint=f"fill the column {COLUMN!r} (a text or a list of texts), or let the model write all of them with "
            "method.alternates=model",
        )
    other = [example.row for example, texts in zip(examples, lists, strict=True) if len(texts) != len(lists[0])]
    if other:
        raise DataError(
            f"forget row {examples[0].row} has {len(lists[0])} alternatives and {len(other)} others have another "
            f"number ({name_rows(other)})",
            hint="give every row as many: one of them is taken per epoch",
        )
    same = [
        example.row
        for example, texts in zip(examples, lists, strict=True)
        if any(same_text(text, example.answer) for text in texts)
    ]
    if same:
        raise DataError(
            f"{len(same)} forget rows have an alternative equal to their answer ({name_rows(same)})",
            hint="it would be made likelier and less likely at once: replace it",
        )
    return [list(variant) for variant in zip(*lists, strict=True)]


def _list(value: object) -> tuple[str, ...]:
    """The texts of a cell; none where there is anything but texts in it."""
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else ()
    return texts if all(isinstance(text, str) and text.strip() for text in texts) else ()
