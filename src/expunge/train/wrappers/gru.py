"""GRU: the unlearning gradient without its component against the retain gradient; and two forms without retain rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.methods.workshop import Workshop
from expunge.models.adapters import trainable
from expunge.train.gradients import added, averaged, cosine, dot, gru_projection, scaled
from expunge.train.wrappers.base import Combine, CombineWrapper, StepPass
from expunge.train.wrappers.retaining import RetainingCombine, forget_gradient, on_device, retain_gradient

_PAPER = "Wang et al., GRU: Mitigating the Trade-off between Unlearning and Retention, arXiv 2503.09117"


class GRU(RetainingCombine):
    """`g = g_u` where `<g_u, m_r> >= 0`, else `g_u - (<g_u, m_r> / ||m_r||^2) m_r`, with m_r averaged over steps.

    Both gradients are those of the whole optimizer step, and the inner product is one number over everything that is
    trained. The guarantee is of first order and for plain gradient descent: AdamW and Muon reshape the step after it.
    With `retain: kl` in the method, m_r is the gradient of that divergence.
    """

    name: ClassVar[str] = "gru"
    paper: ClassVar[str] = _PAPER

    ema_new_weight: float = Field(default=0.8, gt=0, le=1)
    """Weight of the step's retain gradient in the average, whose start is zero (authors: 0.8, runs with 0.6 and 0.99,
    where it is called gamma); 1: no average."""
    project: Literal["forget", "sum"] = "forget"
    """What is projected: the forget gradient, or the method's whole gradient with its retain part (authors' `gd`)."""
    add_retain: float = Field(default=0.0, ge=0)
    """Weight of the step's own retain gradient, as the method weighs it, added after projecting (authors' `+ce`)."""
    min_cosine: float = Field(default=-1.0, ge=-1, lt=0)
    """Take cosines below this as this when projecting, which leaves some conflict (authors' `cos_clip`: -0.5)."""

    def build(self, workshop: Workshop, model: nn.Module) -> GRUCombine:
        """The rule with an empty average."""
        return GRUCombine(self)


class GRUCombine(Combine):
    """The rule at work.

    Args:
        config: its keys.
    """

    def __init__(self, config: GRU) -> None:
        self.config = config
        self.average: dict[str, Tensor] | None = None

    def __call__(self, step: StepPass) -> None:
        """Project, add the retain gradient where asked, and log the cosine."""
        retain = retain_gradient(step).tensors
        unlearn = forget_gradient(step).tensors
        if self.config.project == "sum":
            unlearn = added(unlearn, retain)
        if self.average is not None:
            self.average = on_device(self.average, retain)
        self.average = averaged(self.average, retain, new_weight=self.config.ema_new_weight)
        projected = gru_projection(unlearn, self.average, min_cosine=self.config.min_cosine)
        tensors = projected.tensors
        if self.config.add_retain:
            tensors = added(tensors, retain, self.config.add_retain)
        step.set(tensors)
        step.log("cosine", projected.cosine)
        step.log("projected", float(projected.changed))

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {"average": self.average or {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Combine.load_state_dict`."""
        self.average = dict(state["average"]) or None


class GRUTau(CombineWrapper):
    """RECONSTRUCTED: `g = (max(0, <g_u, tau>) / ||tau||^2) tau`, tau what memorising the forget set again changes.

    `tau` is a copy of the starting model, fine-tuned on the forget rows, minus the starting model. A step can only take
    back along tau, so knowledge in other directions is untouched to first order; no retain rows are needed. The
    paper's retain-data-free form is known by name alone; this is one reading of it, not the authors' method.
    """

    name: ClassVar[str] = "gru_tau"
    paper: ClassVar[str] = f"reconstructed, from the idea of {_PAPER}"
    experimental: ClassVar[bool] = True

    learning_rate: float = Field(default=1e-5, gt=0)
    """Of the fine-tuning that makes tau."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the forget rows that make tau."""

    def build(self, workshop: Workshop, model: nn.Module) -> GRUTauCombine:
        """The rule with tau, made now."""
        dataset = workshop.datasets.get("forget") or next(iter(workshop.datasets.values()))
        memorised = workshop.fine_tuned(dataset, learning_rate=self.learning_rate, epochs=self.epochs)
        start = trainable(model)
        with torch.no_grad():
            return GRUTauCombine({name: p.detach() - start[name] for name, p in trainable(memorised).items()})


class GRUTauCombine(Combine):
    """The rule at work.

    Args:
        tau: parameter -> its change by memorising.
    """

    def __init__(self, tau: Mapping[str, Tensor]) -> None:
        self.tau = dict(tau)

    def __call__(self, step: StepPass) -> None:
        """Keep the component along tau, or nothing where it points the other way."""
        unlearn = step.gradient(*step.roles).tensors
        self.tau = on_device({name: self.tau[name] for name in unlearn}, unlearn)
        tau = self.tau
        square, product = dot(tau, tau), dot(unlearn, tau)
        step.set(scaled(tau, max(0.0, product) / square if square > 0 else 0.0))
        step.log("cosine", cosine(unlearn, tau))

    def state_dict(self) -> dict[str, Any]:
        """Tau: made again on another machine, it would differ."""
        return {"tau": self.tau}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Combine.load_state_dict`."""
        self.tau = dict(state["tau"])


class GRUProx(CombineWrapper):
    """RECONSTRUCTED: GRU's rule with `g_r = theta - theta_o`, so no step leads further from the starting model.

    `theta - theta_o` is the gradient of half the squared distance from the starting weights; no retain rows are needed.
    The first step is free, there is no distance yet. One reading of the paper's retain-data-free form, which is known
    by name alone; not the authors' method.
    """

    name: ClassVar[str] = "gru_prox"
    paper: ClassVar[str] = f"reconstructed, from the idea of {_PAPER}"
    experimental: ClassVar[bool] = True

    def build(self, workshop: Workshop, model: nn.Module) -> GRUProxCombine:
        """The rule with a copy of the starting weights."""
        return GRUProxCombine({name: p.detach().clone() for name, p in trainable(model).items()})


class GRUProxCombine(Combine):
    """The rule at work.

    Args:
        start: starting weights by parameter name.
    """

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        self.start = dict(start)

    def __call__(self, step: StepPass) -> None:
        """Project the method's whole gradient."""
        unlearn = step.gradient(*step.roles).tensors
        self.start = on_device({name: self.start[name] for name in unlearn}, unlearn)
        away = {name: step.named[name].detach() - start for name, start in self.start.items()}
        projected = gru_projection(unlearn, away)
        step.set(projected.tensors)
        step.log("cosine", projected.cosine)
        step.log("projected", float(projected.changed))
