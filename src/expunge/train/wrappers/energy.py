"""Energy as an added term: any method, with the two hinges of EUA beside its own terms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from expunge.errors import UsageError
from expunge.methods.base import Context, Method, Needs, Over, Term
from expunge.methods.energy import EnergyKeys, EnergyTerms
from expunge.methods.eua import EUA
from expunge.methods.workshop import Provision, Workshop
from expunge.train.wrappers.base import TermWrapper

_ROLES = ("forget", "retain")


class EnergyTerm(TermWrapper, EnergyKeys):
    """Adds `gamma (TOKEN_MEAN_f relu(m_out - E)^2 + TOKEN_MEAN_r relu(E - m_in)^2)` on answer positions.

    The method keeps its name and keys; what it needs and what this needs are put together. Answer positions are those
    that predict an answer token; those that hold one where the method scores these (RMU).
    """

    name: ClassVar[str] = "energy"
    paper: ClassVar[str] = "Yang et al., Distinguishable Deletion, arXiv 2605.16776"
    roles: ClassVar[tuple[str, ...]] = _ROLES

    gamma: float = Field(default=0.05, ge=0)
    """Weight of both energy terms; the method's own gamma stays what it is."""

    def wrap(self, method: Method) -> Method:
        """The method with both energy terms.

        Raises:
            UsageError: EUA, which has them; or positions at which no margin can be kept.
        """
        if isinstance(method, EUA):
            raise UsageError("eua is made of energy terms already", hint="set method.gamma in place of the wrapper")
        needs = method.needs()
        for role in _ROLES:
            if needs.positions_of(role) == "all":
                raise UsageError(
                    f"{method.name} as configured scores padding of the {role} rows, for which no margin can be kept",
                    hint="set method.profile=canonical, or method.kl_positions=answer",
                )
        base = type(method)
        # A subclass, so that the method keeps its keys, its name and everything else it does.
        combined: Any = type(
            base.__name__,
            (_WithEnergy, base),
            {"__module__": base.__module__, "__doc__": base.__doc__, "energies": EnergyTerms(self, self.gamma)},
        )
        values: dict[str, Any] = {key: getattr(method, key) for key in base.model_fields}
        wrapped: Method = combined.model_construct(_fields_set=set(method.model_fields_set), **values)
        return wrapped


class _WithEnergy(Method):
    """What a method gains; comes before its class in the order of resolution."""

    energies: ClassVar[EnergyTerms]

    def needs(self) -> Needs:
        """The method's needs, and both margins; what it did not forward is forwarded."""
        needs = super().needs()
        own = self.energies.references
        references = {role: (*needs.references.get(role, ()), *own) for role in _ROLES}
        return replace(
            needs,
            roles=(*needs.roles, *(role for role in _ROLES if role not in needs.roles)),
            unscored=tuple(role for role in needs.unscored if role not in _ROLES),
            references={**needs.references, **{role: asked for role, asked in references.items() if asked}},
            truncate=False,
        )

    def prepare(self, workshop: Workshop) -> Provision:
        """What the method prepares, and the scalar margins."""
        made, own = super().prepare(workshop), self.energies.prepare(workshop)
        return replace(made, constants={**made.constants, **own.constants})

    def losses(self, ctx: Context) -> dict[str, Term]:
        """The method's terms, `forget_energy` and `retain_energy`."""
        own = ctx.role in super().needs().roles
        terms = super().losses(ctx) if own else {}  # type: ignore[safe-super]
        over: Over = "answer" if self.needs().positions_of(ctx.role) == "attended" else "scored"
        if ctx.role == "forget":
            terms = {**terms, "forget_energy": self.energies.forget(ctx, over=over)}
        elif ctx.role == "retain":
            terms = {**terms, "retain_energy": self.energies.retain(ctx, over=over)}
        return terms
