"""The transformer blocks of a causal LM, by index."""

from __future__ import annotations

from typing import Any

from torch import nn

from expunge.errors import UsageError


def blocks(model: Any) -> nn.ModuleList:
    """The transformer blocks, first to last: the outermost list of as many modules as the config says there are layers.

    Raises:
        UsageError: the model keeps its blocks in no such list.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise UsageError(
            f"{type(model).__name__} has no list of {count} transformer blocks", hint="use a method that names no layer"
        )
    return lists[0]


def recompute_blocks(model: Any) -> None:
    """Let the backward pass compute activations again, block by block (gradient checkpointing)."""
    arguments = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(arguments)
    else:
        # Its name before transformers 5.23.
        model.gradient_checkpointing_enable(arguments)


def block(model: Any, index: int) -> nn.Module:
    """Block `index`, from 0; negative ones count from the end.

    Raises:
        UsageError: there is no such block.
    """
    found = blocks(model)
    if not -len(found) <= index < len(found):
        raise UsageError(
            f"layer {index} does not exist: {type(model).__name__} has {len(found)} blocks",
            hint=f"layers are 0 to {len(found) - 1}",
        )
    return found[index]
