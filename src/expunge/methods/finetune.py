"""Plain fine-tuning with the same engine: makes target and retrained models, and nothing else."""

from __future__ import annotations

from typing import ClassVar

from expunge.losses.nll import nll_loss
from expunge.methods.base import Context, Method, Needs, Term


class FineTune(Method):
    """Token-mean negative log-likelihood of the supervised tokens of `data.train`."""

    name: ClassVar[str] = "finetune"
    paper: ClassVar[str] = "maximum likelihood"

    def needs(self) -> Needs:
        """One dataset, `train`; no reference."""
        return Needs(roles=("train",))

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`train`: -log p of every supervised token, averaged over the tokens of the step."""
        return {"train": Term(nll_loss(ctx.scored.logps), unit="token", reduction="token_mean")}
