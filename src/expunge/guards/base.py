"""What every guard shares: whom it guards, what it decides, and what a person gets to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from expunge.config.schema import Recipe
from expunge.data.example import Turn
from expunge.data.prepare import template_of
from expunge.data.template import Template
from expunge.errors import UsageError
from expunge.models.decode import Continuation, Progress, end_ids, greedy
from expunge.models.fingerprint import model_digest, tokenizer_digest
from expunge.models.load import (
    compute_dtype,
    context_length,
    load_model,
    load_tokenizer,
    loading,
    padding_id,
    pick_device,
    vocabulary_size,
)

Prompt = str | Sequence[Turn]
"""A question, or a conversation that waits for an answer."""


class Decision(NamedTuple):
    """What a guard says to one prompt."""

    score: float
    """What it decided on; for an energy guard the energy, higher = unknown."""
    refused: bool


class Reply(NamedTuple):
    """What a person gets to read."""

    text: str
    """The model's answer; the guard's refusal where it refused, and then nothing that the model wrote."""
    energy: float
    """The score of the decision."""
    refused: bool


class Identity(NamedTuple):
    """What a guard's numbers hold for: another model, wording or precision has other energies."""

    model: str
    """SHA-256 of the weights."""
    tokenizer: str
    """SHA-256 of the tokenizer."""
    template: str
    """SHA-256 of the template."""
    dtype: str
    """What the forward pass computes in."""


class Subject(NamedTuple):
    """A model that can be asked: what a guard stands in front of."""

    model: Any
    """Evaluation mode, on its device."""
    tokenizer: Any
    template: Template

    @property
    def pad_id(self) -> int:
        """Masked or after every real token, so its value never matters."""
        return padding_id(self.tokenizer, size=vocabulary_size(self.model))

    def identity(self) -> Identity:
        """What tells this subject from another; reads every weight once."""
        device = next(self.model.parameters()).device
        return Identity(
            model=model_digest(self.model),
            tokenizer=tokenizer_digest(self.tokenizer),
            template=self.template.digest,
            dtype=str(compute_dtype(device)).removeprefix("torch."),
        )

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The tokens an answer to each prompt starts from.

        Raises:
            UsageError: a prompt is empty, or leaves no room for an answer.
        """
        rows = [self.template.prompt_ids(turns) for turns in as_turns(prompts)]
        limit = context_length(self.model.config)
        for number, row in enumerate(rows, start=1):
            if limit is not None and len(row) >= limit:
                raise UsageError(
                    f"prompt {number} has {len(row)} tokens, the model reads {limit} with its answer",
                    hint="ask a shorter question",
                )
        return rows

    def answer(
        self, rows: list[list[int]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Continuation]:
        """Greedy answers to tokenised prompts, each within the model's context."""
        limit = context_length(self.model.config)
        room = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(row)) for row in rows]
        ends = end_ids(self.model, self.template)
        made = greedy(self.model, rows, max_new_tokens=room, end_ids=ends, pad_id=self.pad_id, progress=progress)
        return made.outputs

    def text(self, tokens: Sequence[int]) -> str:
        """Generated tokens as text."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


class Guard(Protocol):
    """Stands in front of one model and decides prompt by prompt.

    A guard that looks at something else than energy (a classifier of prompts, a list of words) has the same four
    operations, so that commands and reports need not know which it is.
    """

    name: ClassVar[str]
    """Also the beginning of its file's name, `<name>_guard.json`."""

    def decide(self, prompts: Sequence[Prompt]) -> list[Decision]:
        """Whether each prompt is refused, in order; nothing of an answer is returned.

        Raises:
            UsageError: an empty prompt.
            MetricError: a score that is not a finite number: neither an answer nor a refusal would be a decision.
        """
        ...

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 200) -> list[Reply]:
        """Answer each prompt greedily, or refuse it without showing what the model would have said.

        Raises:
            UsageError, MetricError: as `decide`.
        """
        ...

    def save(self, folder: Path) -> Path:
        """Write the guard beside the model it was made for, atomically; returns the file."""
        ...

    @classmethod
    def load(cls, folder: Path, subject: Subject) -> Self:
        """The guard that lies in `folder`, in front of `subject`.

        Raises:
            UsageError: there is none.
            ModelError: it is unreadable, or was made for another model, tokenizer, template or dtype.
        """
        ...


def as_turns(prompts: Sequence[Prompt]) -> list[tuple[Turn, ...]]:
    """Every prompt as a conversation.

    Raises:
        UsageError: a prompt without text, or with bytes that no text has.
    """
    found = [(Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]
    for number, turns in enumerate(found, start=1):
        if not any(turn.content.strip() for turn in turns):
            raise UsageError(
                "the question is empty" if len(found) == 1 else f"prompt {number} of {len(found)} is empty",
                hint="ask something",
            )
        if any("\ud800" <= character <= "\udfff" for turn in turns for character in turn.content):
            raise UsageError(
                "the question is not UTF-8" if len(found) == 1 else f"prompt {number} of {len(found)} is not UTF-8",
                hint="check the encoding of the terminal or of the file it comes from",
            )
    return found


def load_subject(
    model: str, recipe: Recipe | None, *, template: str | None = None, device: str | None = None
) -> Subject:
    """Load a model, its tokenizer and the template that a run's recipe names.

    Args:
        model: folder or Hub id.
        recipe: the run's settings; defaults where there are none.
        template: in place of the recipe's.
        device: in place of the recipe's.

    Raises:
        ExpungeError: any of them cannot be used.
    """
    settings = recipe or Recipe()
    tokenizer = load_tokenizer(model, trust_remote_code=settings.model.trust_remote_code)
    built = template_of(settings.data, tokenizer, name=template)
    loaded = load_model(loading(settings.model, model), device=pick_device(device or settings.device))
    return Subject(loaded.model, tokenizer, built)
