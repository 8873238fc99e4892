"""What a wrapper is: a frozen config of one of three kinds, each with its place in a step.

`term` wraps the method itself. `combine` turns the gradients of the step's roles into one. `mask` says which entries
may move. The order is combine, mask, clip, optimizer (a mask can be told to act after clipping, where a release did).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from expunge.errors import UsageError
from expunge.methods.base import Method
from expunge.methods.workshop import Workshop

Kind = Literal["term", "combine", "mask"]


class Gradient(NamedTuple):
    """Gradient of some roles' weighted terms over one optimizer step, the same on every process."""

    tensors: dict[str, Tensor]
    """By parameter name; zero where a parameter took no part."""
    losses: dict[str, float]
    """Term -> its value, not weighted."""
    loss: float
    """Their weighted sum."""


class StepPass(Protocol):
    """One optimizer step as a combining rule sees it."""

    roles: tuple[str, ...]
    """The method's roles, anchor first."""
    named: Mapping[str, nn.Parameter]
    """What is trained, by name."""
    step: int
    """0-based."""
    epoch: int
    """0-based pass over the anchor role."""
    total_steps: int
    steps_per_epoch: int

    def gradient(self, *roles: str) -> Gradient:
        """Forward and backward of these roles' micro-batches at the present weights; leaves no `grad` behind."""

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """Make `tensors` the gradient of the step; parameters left out take no part in it."""

    def log(self, name: str, value: float) -> None:
        """Add a number to the step's event."""


class Combine:
    """A combining rule with its state."""

    @abstractmethod
    def __call__(self, step: StepPass) -> None:
        """Leave the step's gradient in the parameters, by `step.set`."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s result."""


class GradientMask:
    """Which entries may move, with its state. Entries that may not keep their bits."""

    after_clip: bool = False
    """Act after clipping instead of before it (published practice of some releases)."""

    def frozen(self) -> frozenset[str]:
        """Parameters that take no part in training at all."""
        return frozenset()

    def begin(self, *, total_steps: int) -> None:
        """Told once how many optimizer steps the run has."""

    def on_gradient(self, named: Mapping[str, nn.Parameter]) -> None:
        """Change the gradients in place."""

    def after_step(self, named: Mapping[str, nn.Parameter]) -> None:
        """Put back what must not have moved: weight decay, momentum and Muon reach past a zero gradient."""

    def logged(self) -> Mapping[str, float]:
        """Numbers for the event of the step just taken."""
        return {}

    def bequest(self) -> Mapping[str, Tensor]:
        """What the mask of a sequence's next request is given (`Workshop.inherited`); asked after the last step."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s result."""


class Wrapper(BaseModel):
    """Base of every wrapper: a frozen pydantic config whose fields are the keys of its entry in `wrappers:`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    name: ClassVar[str]
    kind: ClassVar[Kind]
    paper: ClassVar[str]
    """Where it was published."""
    experimental: ClassVar[bool] = False
    """Whether its source leaves open what we had to choose."""
    roles: ClassVar[tuple[str, ...]] = ()
    """Roles the method must have for it."""
    whole_tensors: ClassVar[bool] = False
    """Whether it reads single entries of whole weights, so that they cannot be divided among processes
    (`train.fsdp`)."""

    def require(self, method: Method) -> None:
        """Refuse a method it cannot work with.

        Raises:
            UsageError: the method lacks a role this wrapper reads.
        """
        missing = [role for role in self.roles if role not in method.needs().roles]
        if missing:
            raise UsageError(
                f"the wrapper {self.name} needs {' and '.join(missing)} rows, and {method.name} as configured reads "
                f"only {', '.join(method.needs().roles)}",
                hint="set data.retain and a method.alpha above 0" if "retain" in missing else None,
            )


class TermWrapper(Wrapper):
    """Changes the terms."""

    kind: ClassVar[Kind] = "term"

    @abstractmethod
    def wrap(self, method: Method) -> Method:
        """The method with what this adds."""


class CombineWrapper(Wrapper):
    """Changes how the roles' gradients become one."""

    kind: ClassVar[Kind] = "combine"

    @abstractmethod
    def build(self, workshop: Workshop, model: nn.Module) -> Combine:
        """The rule, before the first step; `model` has its starting weights."""


class MaskWrapper(Wrapper):
    """Says what may move."""

    kind: ClassVar[Kind] = "mask"

    @abstractmethod
    def build(self, workshop: Workshop, model: nn.Module) -> GradientMask:
        """The mask, before the first step; `model` has its starting weights."""
