"""UnStar: as long as a question is still answered, train on a misleading answer to it, and ask again."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from expunge.data.example import Example, Turn, prompt_text
from expunge.errors import UsageError
from expunge.losses.nll import nll_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.generate import (
    Written,
    answered,
    contains,
    derived_seed,
    instructed,
    matches,
    require_questions,
    same_text,
    write,
)
from expunge.methods.terms import RetainingMethod
from expunge.methods.workshop import Provision, Workshop

ROWS, LIVE = "anti", "unstar_live"
WRONG_PROMPT = (
    "Question: {question}\nThe right answer is: {answer}\nWrite a wrong but plausible answer to the question. Do not "
    "repeat the right one. Write only the answer."
)
RATIONALE_PROMPT = (
    "Question: {question}\nExplain in one or two sentences why the answer is: {wrong}\nDo not mention any other answer."
)
PARAPHRASE_PROMPT = "Ask the following question in other words. Write only the question.\n{question}"
_PLACEHOLDER = "-"


class Generator(Protocol):
    """Who writes wrong answers, rationales and paraphrases: `module:callable` in `method.generator`."""

    def __call__(self, prompts: Sequence[str], *, temperature: float, max_new_tokens: int, seed: int) -> Sequence[str]:
        """One text for each instruction, in order; equal for equal arguments, so that a run can be repeated."""
        ...


class Wording(NamedTuple):
    """One way to ask for a forget row's answer."""

    example: Example
    live: bool
    """False: it stands in for a paraphrase that could not be made, and is neither asked nor trained on."""


class Round(NamedTuple):
    """What one round found and made; one entry per wording."""

    pending: list[int]
    """Wordings that are still answered; the others have been unlearned."""
    anti: list[str | None]
    """Anti-samples; None where nothing is trained."""
    wrong: Written
    rationales: Written


class UnStar(RetainingMethod):
    """`L = gamma TOKEN_MEAN_anti(-log p_t) + alpha L_retain`: plain fine-tuning on anti-samples, made round by round.

    At the start of a round every question is answered greedily. Where the output still matches the right answer, a
    wrong answer and a rationale for it are written; a text that gives the right answer away is thrown away. Questions
    whose answer is gone are not trained on in that round, and are taken up again if it comes back (ours: the published
    loop never asks them again). After `max_rounds` nothing is trained on any more.
    """

    name: ClassVar[str] = "unstar"
    paper: ClassVar[str] = "Sinha et al., UnStar, arXiv 2410.17050"
    granularity: ClassVar[str] = "sequence"

    generator: str | None = None
    """`module:callable` that writes them (see `methods/unstar.py`, `Generator`); the model itself unless said."""
    epochs_per_round: int = Field(default=4, ge=1)
    """Passes over the forget rows in a round (authors: 4 steps per anti-sample)."""
    max_rounds: int = Field(default=10, ge=1)
    """Rounds after which nothing new is made, whatever is still answered (authors: no limit)."""
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Share of an answer's own words above which an output counts as answered; 0: one word is enough (authors)."""
    paraphrases: int = Field(default=0, ge=0)
    """More wordings of every question, asked and trained on epoch by epoch in turn (authors: up to 20). One is kept if
    it is a new one and names what the question is about (the column `subject`, or the group)."""
    temperature: float = Field(default=1.0, gt=0)
    """Of writing (authors: 0.1 at first, then up to 1.3 at random)."""
    max_new_tokens: int = Field(default=100, ge=1)
    """Limit of an answer and of a rationale (authors: 1000)."""
    tries: int = Field(default=5, ge=1)
    """How often a text is asked for, with other seeds, before the question goes without one in this round."""

    @field_validator("generator")
    @classmethod
    def _names_a_callable(cls, value: str | None) -> str | None:
        if value is not None and not all(value.partition(":")):
            raise ValueError("a generator is written module:callable")
        return value

    def needs(self) -> Needs:
        """The anti-samples that travel with the forget rows, which are not forwarded themselves."""
        return replace(
            super().needs(),
            linked={ROWS: "forget"},
            rows={ROWS: "made"},
            unscored=("forget",),
            totals="reference",
        )

    def totals(self, ctx: Context) -> dict[str, Tensor]:
        """`live`: tokens of anti-samples that are trained on."""
        return {"live": ctx.linked[ROWS].ref.own[LIVE].sum()} if ctx.role == "forget" else {}

    def forget_term(self, ctx: Context) -> Term:
        """Likelihood of the anti-samples; their mean over the step's live tokens."""
        anti = ctx.linked[ROWS]
        live = anti.ref.own[LIVE].to(anti.scored.logps.dtype)
        values = nll_loss(anti.scored.logps) * live / max(ctx.totals["live"], 1)
        return Term(values, unit="token", reduction="sum", weight=self.gamma, dataset=ROWS)

    @property
    def refresh_every(self) -> int:
        """`epochs_per_round`."""
        return self.epochs_per_round

    def prepare(self, workshop: Workshop) -> Provision:
        """The first round.

        Raises:
            DataError: raw texts without a question.
            UsageError: the generator cannot be imported, or gives another number of texts.
        """
        require_questions(workshop.datasets["forget"].examples, self.name)
        return self._round(workshop, 0)

    def refresh(self, workshop: Workshop, epoch: int) -> Provision:
        """The next round, with the model as trained so far."""
        return self._round(workshop, epoch // self.epochs_per_round)

    def _round(self, workshop: Workshop, number: int) -> Provision:
        generate = self._generator(workshop)
        variants = self._wordings(workshop, generate, number)
        flat = [wording for variant in variants for wording in variant]
        done = self.work(
            [wording.example for wording in flat],
            [place for place, wording in enumerate(flat) if wording.live],
            lambda examples: workshop.sample(
                [each.prompt for each in examples], temperature=0, max_new_tokens=self.max_new_tokens, seed=0
            ),
            generate,
            seed=derived_seed(workshop.seed, number),
            write_new=number < self.max_rounds,
        )
        self._say(workshop, number, done, sum(wording.live for wording in flat))
        rows = [
            answered(wording.example, anti or _PLACEHOLDER, ROWS) for wording, anti in zip(flat, done.anti, strict=True)
        ]
        tokens = workshop.encode(rows, ROWS).supervised()
        live = np.repeat(np.array([anti is not None for anti in done.anti], dtype=np.float32), tokens)
        size = len(variants[0])
        split = [rows[start : start + size] for start in range(0, len(rows), size)]
        return Provision(rows={ROWS: split}, tables={ROWS: {LIVE: live}})

    def work(
        self,
        examples: Sequence[Example],
        asked: Sequence[int],
        answer: Callable[[Sequence[Example]], Sequence[str]],
        generate: Generator,
        *,
        seed: int,
        write_new: bool = True,
    ) -> Round:
        """One round without a model: ask, find what is still answered, write anti-samples for it.

        Args:
            examples: questions with their right answers.
            asked: places among them that take part.
            answer: the model's answers to questions.
            generate: writes wrong answers and rationales.
            seed: of what is written.
            write_new: False once the last round is over: ask only.
        """
        outputs = answer([examples[place] for place in asked]) if asked else []
        pending = [
            place
            for place, output in zip(asked, outputs, strict=True)
            if matches(examples[place].answer, output, question=prompt_text(examples[place]), overlap=self.overlap)
        ]
        chosen = [examples[place] for place in pending] if write_new else []
        wrong = self._write(chosen, WRONG_PROMPT, generate, seed=seed, purpose="wrong")
        having = [place for place, text in enumerate(wrong.texts) if text is not None]
        rationales = self._write(
            [chosen[place] for place in having],
            RATIONALE_PROMPT,
            generate,
            seed=seed,
            purpose="rationale",
            wrong=[wrong.texts[place] or "" for place in having],
        )
        anti: list[str | None] = [None] * len(examples)
        for place, text in zip(having, rationales.texts, strict=True):
            anti[pending[place]] = text
        return Round(pending, anti, wrong, rationales)

    def _write(
        self,
        examples: Sequence[Example],
        prompt: str,
        generate: Generator,
        *,
        seed: int,
        purpose: str,
        wrong: Sequence[str] | None = None,
    ) -> Written:
        def ask(places: Sequence[int], own: int) -> Sequence[str]:
            fields = [{"wrong": wrong[place]} if wrong else {} for place in places]
            prompts = [
                instructed(examples[place], prompt, **field)[-1].content
                for place, field in zip(places, fields, strict=True)
            ]
            return self._asked(generate, prompts, own)

        def refuse(place: int, text: str) -> str | None:
            example = examples[place]
            if not text.strip():
                return "empty"
            return "with the right answer" if contains(example.answer, text, question=prompt_text(example)) else None

        return write(ask, len(examples), refuse, seed=seed, purpose=purpose, tries=self.tries)

    def _wordings(self, workshop: Workshop, generate: Generator, number: int) -> list[list[Wording]]:
        """(wordings, forget rows): the question itself first, then paraphrases; no wording twice."""
        examples = workshop.datasets["forget"].examples
        seen = {tuple(turn.content for turn in example.prompt) for example in examples}
        variants = [[Wording(example, live=True) for example in examples]]
        for n in range(self.paraphrases):

            def ask(places: Sequence[int], seed: int) -> Sequence[str]:
                prompts = [instructed(examples[place], PARAPHRASE_PROMPT)[-1].content for place in places]
                return self._asked(generate, prompts, seed)

            taken = set(seen)

            def refuse(place: int, text: str, taken: set[tuple[str, ...]] = taken) -> str | None:
                prompt = _reworded(examples[place], text).prompt
                if not text.strip():
                    return "empty"
                about = subject(examples[place])
                if about is not None and about.casefold() not in text.casefold():
                    return "without the subject"
                key = tuple(turn.content for turn in prompt)
                if key in taken or same_text(text, prompt_text(examples[place])):
                    return "asked already"
                taken.add(key)
                return None

            purpose = f"paraphrase{n}"
            seed = derived_seed(workshop.seed, number)
            made = write(ask, len(examples), refuse, seed=seed, purpose=purpose, tries=self.tries)
            workshop.note(f"unstar, round {number + 1}: paraphrases {n + 1} of {self.paraphrases}: {made.summary()}")
            variants.append(
                [
                    Wording(example, live=False) if text is None else Wording(_reworded(example, text), live=True)
                    for example, text in zip(examples, made.texts, strict=True)
                ]
            )
            seen = taken
        return variants

    def _asked(self, generate: Generator, prompts: Sequence[str], seed: int) -> list[str]:
        texts = list(generate(prompts, temperature=self.temperature, max_new_tokens=self.max_new_tokens, seed=seed))
        if len(texts) != len(prompts) or not all(isinstance(text, str) for text in texts):
            raise UsageError(
                f"the generator {self.generator or 'of this run'} gave {len(texts)} texts for {len(prompts)} prompts",
                hint="it must return one text per prompt, in order",
            )
        return [text.strip() for text in texts]

    def _generator(self, workshop: Workshop) -> Generator:
        if self.generator is None:
            return _Own(workshop)
        module, _, attribute = self.generator.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"the generator {self.generator} cannot be imported: {error}",
                hint="method.generator is module:callable, importable from where expunge runs; without it the model "
                "itself writes",
            ) from error
        if not callable(found):
            raise UsageError(
                f"the generator {self.generator} is not callable",
                hint="give a function of (prompts, *, temperature, max_new_tokens, seed) that returns one text each",
            )
        generator: Generator = found
        return generator

    def _say(self, workshop: Workshop, number: int, done: Round, asked: int) -> None:
        live = sum(anti is not None for anti in done.anti)
        text = f"unstar, round {number + 1}: {len(done.pending)} of {asked} questions are still answered"
        if number >= self.max_rounds:
            workshop.note(f"{text}; max_rounds={self.max_rounds} is over, nothing is trained on them any more")
            return
        workshop.note(
            f"{text}; {live} anti-samples (wrong answers: {done.wrong.summary()}; rationales: "
            f"{done.rationales.summary()})"
        )


class _Own:
    """The model of the run as generator."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def __call__(self, prompts: Sequence[str], *, temperature: float, max_new_tokens: int, seed: int) -> Sequence[str]:
        return self.workshop.sample(
            [(Turn("user", prompt),) for prompt in prompts],
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )


def subject(example: Example) -> str | None:
    """What a question is about: its column `subject`, else its group where the question names it; None: not known."""
    question = prompt_text(example).casefold()
    for name in (example.extra.get("subject"), example.group):
        if isinstance(name, str) and name.strip() and name.casefold() in question:
            return name
    return None


def _reworded(example: Example, text: str) -> Example:
    *earlier, last = example.prompt
    return replace(example, turns=(*earlier, Turn(last.role, text), example.turns[-1]))
