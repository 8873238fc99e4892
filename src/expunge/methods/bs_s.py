"""BS-S: forget what the model itself would say as well, so that a paraphrase is no way around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from expunge.data.encode import name_rows
from expunge.errors import UsageError
from expunge.methods.base import Context, Method, Needs, Term
from expunge.methods.generate import answered, require_questions, write
from expunge.methods.select import build_method
from expunge.methods.workshop import Provision, Workshop

_TRIES = 3
_Value = TypeVar("_Value")


class BSS(Method):
    """`L = (1 - lambda_s) L_base(D_f) + lambda_s mean_n L_base(beliefs_n)`; other roles' terms as the base's.

    Beliefs are responses sampled from the model itself, `num_beliefs` per forget question, which travel with it. Each
    of the N sets of beliefs is reduced as the forget set is, and they weigh the same (RECONSTRUCTED: the paper's
    mean over all beliefs agrees where the base averages over sequences). What the base reads of the starting model
    is read for the beliefs too.
    """

    name: ClassVar[str] = "bs_s"
    paper: ClassVar[str] = "Li et al., LLM Unlearning with LLM Beliefs, arXiv 2510.19422"
    granularity: ClassVar[str] = "sequence"

    base: dict[str, Any] = Field(default={"name": "grad_diff"}, validate_default=True)
    """The loss that is applied to both, as a recipe's `method:` section: `{name: npo, beta: 0.1}`."""
    lambda_s: float = Field(default=0.5, ge=0, le=1)
    """Share of the beliefs (a port of the method: 0.5; best in the paper: 0.6 with N = 10); 0 is the base alone."""
    num_beliefs: int = Field(default=3, ge=1)
    """N, responses per question (a port: 1; the paper up to 10, 5 in its main results)."""
    resample: PositiveInt | None = None
    """Epochs after which they are sampled anew from the model as trained so far (a port: 2); none: sampled once."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling (a port: 1)."""
    max_new_tokens: int = Field(default=200, ge=1)
    """Limit of a response (a port: 200)."""

    @field_validator("base")
    @classmethod
    def _whole(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Every key of the base, so that a run records them."""
        base = build_method(value, where="method.base")
        if reason := _unfit(base):
            raise UsageError(
                f"bs_s cannot wrap {base.name}: it {reason}",
                hint="take a base that reads the forget answers: grad_diff, npo, simnpo, wga, bs_t, ...",
            )
        return {"name": base.name, **base.model_dump(mode="json")}

    @cached_property
    def inner(self) -> Method:
        """The base method."""
        return build_method(self.base, where="method.base")

    @property
    def beliefs(self) -> tuple[str, ...]:
        """Names of the datasets that travel with the forget rows; none at `lambda_s` 0."""
        return tuple(f"belief{n}" for n in range(self.num_beliefs)) if self.lambda_s > 0 else ()

    def needs(self) -> Needs:
        """What the base needs, and for every set of beliefs what it needs for the forget rows."""
        base = self.inner.needs()

        def spread(found: Mapping[str, _Value]) -> dict[str, _Value]:
            return {**found, **(dict.fromkeys(self.beliefs, found["forget"]) if "forget" in found else {})}

        return replace(
            base,
            linked={**base.linked, **dict.fromkeys(self.beliefs, "forget")},
            rows={**base.rows, **dict.fromkeys(self.beliefs, "made")},
            references=spread(base.references),
            positions=spread(base.positions),
            skip_first=spread(base.skip_first),
            hidden=spread(base.hidden),
        )

    def losses(self, ctx: Context) -> dict[str, Term]:
        """The base's terms; of a forget micro-batch those of every set of beliefs too (`belief0_forget`, ...)."""
        if ctx.role != "forget" or not self.beliefs:
            return self.inner.losses(ctx)
        terms = {
            name: replace(term, weight=(1 - self.lambda_s) * term.weight)
            for name, term in self.inner.losses(self._without(ctx)).items()
        }
        share = self.lambda_s / self.num_beliefs
        for belief in self.beliefs:
            for name, term in self.inner.losses(self._in_place(ctx, belief)).items():
                weight = share * term.weight
                terms[f"{belief}_{name}"] = replace(term, weight=weight, dataset=term.dataset or belief)
        return terms

    def totals(self, ctx: Context) -> dict[str, Tensor]:
        """The base's, for the forget rows and for every set of beliefs apart."""
        if ctx.role != "forget" or not self.beliefs:
            return self.inner.totals(ctx)
        found = self.inner.totals(self._without(ctx))
        for belief in self.beliefs:
            for name, value in self.inner.totals(self._in_place(ctx, belief)).items():
                found[f"{belief}:{name}"] = value
        return found

    def prepare(self, workshop: Workshop) -> Provision:
        """What the base prepares, and beliefs of the starting model.

        Raises:
            UsageError: the base made tables of the forget answers, which beliefs have not.
        """
        made = self.inner.prepare(workshop)
        if not self.beliefs:
            return made
        if made.tables.get("forget"):
            raise UsageError(
                f"bs_s cannot wrap {self.inner.name} as configured: it makes a table of its own over the answers",
                hint="take a base that reads the starting model alone",
            )
        return replace(made, rows={**made.rows, **self._sampled(workshop, 0).rows})

    @property
    def refresh_every(self) -> int | None:
        """`resample`."""
        return self.resample if self.beliefs else None

    def refresh(self, workshop: Workshop, epoch: int) -> Provision:
        """Beliefs of the model as trained so far."""
        return self._sampled(workshop, epoch)

    def trainable(self) -> tuple[str, ...]:
        """The base's."""
        return self.inner.trainable()

    def wrappers(self) -> tuple[Mapping[str, Any], ...]:
        """The base's."""
        return self.inner.wrappers()

    def _without(self, ctx: Context) -> Context:
        """A forget micro-batch as the base knows it."""
        return replace(ctx, linked={name: other for name, other in ctx.linked.items() if name not in self.beliefs})

    def _in_place(self, ctx: Context, belief: str) -> Context:
        """A micro-batch whose answers are beliefs, as the base would see it; its linked rows are the questions' own."""
        prefix = f"{belief}:"
        totals = {name.removeprefix(prefix): value for name, value in ctx.totals.items() if name.startswith(prefix)}
        return replace(ctx.linked[belief], role="forget", linked=self._without(ctx).linked, totals=totals)

    def _sampled(self, workshop: Workshop, epoch: int) -> Provision:
        """One variant per set of beliefs.

        A response that stays empty is kept: that nothing comes is what the model believes, and only its end is
        unlearned.
        """
        examples = workshop.datasets["forget"].examples
        require_questions(examples, self.name)
        items = [example for _ in self.beliefs for example in examples]

        def ask(places: Sequence[int], seed: int) -> list[str]:
            return workshop.sample(
                [items[place].prompt for place in places],
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                seed=seed,
            )

        made = write(
            ask,
            len(items),
            lambda place, text: None if text.strip() else "empty",
            seed=workshop.seed,
            purpose=f"{self.name}:{epoch}",
            tries=_TRIES,
        )
        rows = sorted({items[place].row for place in made.missing})
        kept = f"; kept empty after {_TRIES} tries: {len(made.missing)} ({name_rows(rows)})" if rows else ""
        workshop.note(f"bs_s, epoch {epoch}: {self.num_beliefs} beliefs per question: {made.summary()}{kept}")
        size = len(examples)
        return Provision(
            rows={
                belief: [
                    [
                        answered(example, made.texts[number * size + place] or "", belief)
                        for place, example in enumerate(examples)
                    ]
                ]
                for number, belief in enumerate(self.beliefs)
            }
        )


def _unfit(base: Method) -> str | None:
    """Why beliefs cannot take the place of the forget answers in a method."""
    needs = base.needs()
    if isinstance(base, BSS):
        return "is bs_s itself"
    if "forget" not in needs.roles or "forget" in needs.unscored:
        return "does not read the forget answers"
    if base.refresh_every is not None:
        return "makes rows of its own between epochs"
    if base.keeps_start:
        return "changes the weights after training"
    if base.train_settings:
        return f"decides train.{next(iter(base.train_settings))} itself"
    return None
