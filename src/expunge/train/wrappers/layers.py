"""Training only some layers or sub-modules, named or found by causal tracing; everything else is taken out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from torch import nn

from expunge.errors import DataError, UsageError
from expunge.methods.workshop import Workshop
from expunge.models.adapters import weight_names
from expunge.models.blocks import blocks
from expunge.models.tracing import facts_of, locate
from expunge.train.wrappers.base import GradientMask, MaskWrapper

NAMES_SHOWN = 16
"""Modules an error lists."""


def layer_numbers(value: Any) -> Any:
    """`5`, `"5-7"`, `"0,2,5-7"` or a list of such, as a tuple of numbers; negative ones count from the end."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, list | tuple):
        return tuple(number for item in value for number in layer_numbers(item))
    numbers: list[int] = []
    for part in str(value).split(","):
        span = re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if span is None:
            raise ValueError("layers are written 5, 5-7, or as a list of these")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first or (span[2] and first < 0):
            raise ValueError(f"{part.strip()} is no range of layers from a lower to a higher number")
        numbers += range(first, last + 1)
    return tuple(dict.fromkeys(numbers))


class Locate(BaseModel):
    """How causal tracing chooses layers: where restoring a clean state brings a corrupted forget answer back."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    top: int = Field(default=1, ge=1)
    """How many layers: those with the largest indirect effect."""
    kind: Literal["mlp", "self_attn", "block"] = "mlp"
    """What is restored."""
    window: int = Field(default=10, ge=1)
    """Layers restored together, centred on one, for `mlp` and `self_attn` (authors: 10); a block goes alone."""
    noise: float = Field(default=3.0, ge=0)
    """Noise on the subject's embeddings, in their standard deviations (authors: 3)."""
    samples: int = Field(default=10, ge=1)
    """Corrupted copies (authors: 10)."""
    facts: int = Field(default=32, ge=1)
    """At most so many forget rows, the first whose answer starts as the model would start it."""
    seed: int = Field(default=1, ge=0)
    """Of the noise (authors: 1)."""


class Layers(MaskWrapper):
    """Trains `modules` inside `layers`; every other parameter, embeddings and head included, is frozen.

    Frozen parameters are no part of the optimizer: no weight decay, no momentum, no memory. Give `layers`, `modules`,
    both, or `locate`.
    """

    name: ClassVar[str] = "layers"
    paper: ClassVar[str] = "Agrawal & Huang, SHA256 at SemEval-2025 Task 4, arXiv 2504.12996"

    layers: Annotated[tuple[int, ...] | None, BeforeValidator(layer_numbers)] = None
    """Transformer blocks from 0: `5`, `5-7`, `[0, 2, 5-7]` (authors: 0-5, for OLMo)."""
    modules: str | None = None
    """Regular expression, searched in parameter names inside a block (`mlp`, `self_attn.(q|v)_proj`); in full names
    where no layers are given (authors: mlp)."""
    locate: Locate | None = None
    """Choose the layers by causal tracing on the forget rows, with the starting model, instead of naming them."""

    @field_validator("modules")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _something(self) -> Layers:
        if self.layers is None and self.modules is None and self.locate is None:
            raise ValueError("give layers, modules or locate: without them nothing would be frozen")
        if self.layers is not None and self.locate is not None:
            raise ValueError("layers are either named or located")
        if self.layers == ():
            raise ValueError("no layer is named: nothing would be trained")
        return self

    def build(self, workshop: Workshop, model: nn.Module) -> LayersMask:
        """The mask, with layers looked up or located.

        Raises:
            UsageError: a layer or module that does not exist; says which do.
            DataError: no forget row can be traced.
        """
        layers = self.layers if self.locate is None else self._located(workshop, model, self.locate)
        chosen = chosen_parameters(model, layers, self.modules)
        return LayersMask(frozenset(weight_names(model).values()) - chosen)

    def _located(self, workshop: Workshop, model: nn.Module, how: Locate) -> tuple[int, ...]:
        count = len(blocks(model))
        if how.top > count:
            raise UsageError(
                f"locate is to choose {how.top} of {count} layers", hint=f"set locate.top to {count} or less"
            )
        forget = workshop.datasets.get("forget")
        facts = facts_of(forget, workshop.tokenizer) if forget else []
        if not facts:
            raise DataError(
                "no forget row says which words of its question name its subject",
                hint="give the rows a column `subject`, or `group`, whose text stands in the question; or name layers",
            )
        found = locate(
            model,
            facts,
            kind=how.kind,
            window=how.window,
            noise=how.noise,
            samples=how.samples,
            limit=how.facts,
            seed=how.seed,
            token_budget=workshop.token_budget,
        )
        layers = found.top(how.top)
        effects = ", ".join(f"{layer}: {effect:.3f}" for layer, effect in enumerate(found.effects))
        workshop.note(
            f"causal tracing of {found.facts} facts ({how.kind}) chose layers {', '.join(map(str, layers))} "
            f"(indirect effect by layer: {effects})"
        )
        return layers


class LayersMask(GradientMask):
    """The mask at work.

    Args:
        frozen: parameters that are not trained.
    """

    def __init__(self, frozen: frozenset[str]) -> None:
        self._frozen = frozen

    def frozen(self) -> frozenset[str]:
        """See `GradientMask.frozen`."""
        return self._frozen

    def state_dict(self) -> dict[str, Any]:
        """What is frozen."""
        return {"frozen": sorted(self._frozen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the same parameters are frozen.

        Raises:
            UsageError: tracing chose others than when the run began; its optimizer state is for those.
        """
        if frozenset(state["frozen"]) != self._frozen:
            raise UsageError(
                "causal tracing now chooses other layers than when this run began",
                hint="resume on the machine it began on, or start anew with --overwrite and name the layers",
            )


def chosen_parameters(model: nn.Module, layers: tuple[int, ...] | None, modules: str | None) -> frozenset[str]:
    """Names of the weights inside `layers` whose names match `modules`; of an adapted model, of those with an adapter.

    Args:
        model: a causal LM.
        layers: block indices, negative ones from the end; None: names are searched in the whole model.
        modules: regular expression; None: everything in those layers.

    Raises:
        UsageError: a layer or module that does not exist, with those that do.
    """
    names = list(dict.fromkeys(weight_names(model).values()))
    if layers is None:
        found = frozenset(name for name in names if re.search(modules or "", name))
        return found or _no_module(modules, names)
    stack = blocks(model)
    for layer in layers:
        if not -len(stack) <= layer < len(stack):
            raise UsageError(
                f"layer {layer} does not exist: {type(model).__name__} has {len(stack)} blocks",
                hint=f"layers are 0 to {len(stack) - 1}",
            )
    prefix = next(name for name, module in model.named_modules() if module is stack)
    wanted = {layer % len(stack) for layer in layers}
    inside = {
        name: name.removeprefix(f"{prefix}.{layer}.")
        for layer in wanted
        for name in names
        if name.startswith(f"{prefix}.{layer}.")
    }
    found = frozenset(name for name, short in inside.items() if modules is None or re.search(modules, short))
    return found or _no_module(modules, list(inside.values()))


def _no_module(modules: str | None, names: list[str]) -> frozenset[str]:
    known = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name.rpartition(".")[0]) for name in names))
    shown = ", ".join(known[:NAMES_SHOWN])
    more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    raise UsageError(f"no module's name matches {modules!r}", hint=f"there are {shown}{more}")
