"""RMU: representation misdirection."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from expunge.data.collate import Positions
from expunge.errors import UsageError
from expunge.losses.hidden import mean_inverse_length
from expunge.losses.rmu import control_vector, rmu_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import RetainingMethod
from expunge.methods.workshop import Provision, Workshop
from expunge.models.blocks import block

DOWN = r"\.mlp\.(down_proj|c_proj|dense_4h_to_h|fc2)\."
"""How model families name the second matrix of a block's MLP."""


class RMU(RetainingMethod):
    """`L = gamma SEQ_MEAN_f(||h_l - v||^2 / d) + alpha L_retain`, v one random direction of length `coefficient`.

    `retain: hidden` (the default) keeps the same block's output on retain rows as it was. The forward ends after that
    block where nothing reads logits; only the MLP outputs of the layers up to it are trained. Hidden states are those
    of the positions that hold an answer token.

    In the profile `openunlearning` sequence means are OpenUnlearning's product `mean_b(S_b) mean_b(1 / N_b)`, ours
    where all answers are equally long. It also lets the gradients of untrained parameters into the clipping norm,
    which is not reproduced.
    """

    name: ClassVar[str] = "rmu"
    paper: ClassVar[str] = "Li et al., The WMDP Benchmark, arXiv 2403.03218"
    granularity: ClassVar[str] = "hidden"

    layer: int = Field(default=7, ge=0)
    """Transformer block, from 0, whose output is misdirected (authors and OpenUnlearning: 7 of 32)."""
    coefficient: float = Field(default=2.0, gt=0)
    """Length of v (OpenUnlearning: 2; authors about 6.5 for Zephyr-7B); above that of the states it replaces."""
    retain: Literal["nll", "kl", "hidden"] = "hidden"
    """Retain term (published: hidden)."""
    parameters: tuple[str, ...] | None = None
    """Regular expressions of the parameters that are trained. Unless said: the MLP outputs of the blocks
    `layer - 2` to `layer` (published); `[""]` trains all of them, as OpenUnlearning's own defaults do."""

    def needs(self) -> Needs:
        """Hidden states of forget answers, and what the retain term reads; logits only if that is not hidden states."""
        needs = super().needs()
        return replace(
            needs,
            positions={**needs.positions, "forget": "held"},
            hidden={**needs.hidden, "forget": self.layer},
            truncate=self.alpha == 0 or self.retain == "hidden",
        )

    def prepare(self, workshop: Workshop) -> Provision:
        """The direction, drawn once.

        Raises:
            UsageError: the model has no such layer.
        """
        block(workshop.model, self.layer)
        width = workshop.model.config.get_text_config().hidden_size
        return Provision(constants={"control": control_vector(width, coefficient=self.coefficient, seed=workshop.seed)})

    def forget_term(self, ctx: Context) -> Term:
        """Distance from the direction, per position."""
        scored = ctx.scored
        if scored.hidden is None:
            raise UsageError("no hidden states were kept of the forget rows", hint="declare them in Needs.hidden")
        values = rmu_loss(scored.hidden, ctx.constants["control"])
        if self.canonical:
            return Term(values, unit="token", reduction="seq_mean", weight=self.gamma)
        values = values * mean_inverse_length(scored.row, scored.num_rows).to(values.dtype)
        return Term(values, unit="token", reduction="seq_sum", weight=self.gamma)

    def trainable(self) -> tuple[str, ...]:
        """The MLP outputs below and at the layer, or what `parameters` says."""
        if self.parameters is not None:
            return self.parameters
        layers = "|".join(str(layer) for layer in range(max(0, self.layer - 2), self.layer + 1))
        return (rf"\.({layers}){DOWN}",)

    @property
    def hidden_layer(self) -> int | None:
        """The retain term's block: the misdirected one unless another is named."""
        return self.layer if self.retain_layer is None else self.retain_layer

    @property
    def retain_positions(self) -> Positions:
        """Hidden states are kept where they are misdirected: at the positions that hold an answer token."""
        return "held" if self.retain == "hidden" and self.kl_positions is None else super().retain_positions
