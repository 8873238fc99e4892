"""LoRA adapters through peft: put beside frozen weights, switched off for the starting model, taken into the weights.

An adapter adds `(alpha / r) B A` to the frozen weight (out, in) of a linear layer, A (r, in) drawn at random and B
(out, r) zero at the start: an adapted model begins as its base. It lies inside the model's own modules: class, config,
blocks, hooks and generation are those of the base, and whatever speaks of a weight by name (`freeze`, masks) means the
adapter's two matrices where that weight has one.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.config.schema import ModelSection
from expunge.errors import UsageError

ADAPTER = "default"
"""peft's name of the adapter that is trained."""
_MATRIX = re.compile(r"\.lora_([AB])\.[^.]+\.weight$")
_SHOWN = 16
"""Modules an error lists."""


def require_adapters(section: ModelSection, *, fsdp: bool = False, requests: bool = False) -> None:
    """Refuse settings of adapters that do not go together.

    Args:
        section: the recipe's.
        fsdp: whether the model is to be divided among processes.
        requests: whether several requests are to be carried out one after the other.

    Raises:
        UsageError: naming the key.
    """
    quantised = next((key for key in ("load_in_4bit", "load_in_8bit") if getattr(section, key)), None)
    if section.load_in_4bit and section.load_in_8bit:
        raise UsageError("model.load_in_4bit and model.load_in_8bit are both set", hint="keep one of them")
    if not section.use_peft:
        if quantised:
            raise UsageError(
                f"model.{quantised} stores weights that cannot be trained", hint="set model.use_peft=true as well"
            )
        idle = sorted(key for key in section.model_fields_set if key.startswith("lora_"))
        # Who writes `use_peft: false` beside them has switched them off.
        if idle and "use_peft" not in section.model_fields_set:
            raise UsageError(
                f"model.{idle[0]} is set and nothing gets an adapter",
                hint="set model.use_peft=true, or false to train the weights themselves",
            )
        return
    if section.from_scratch is not None:
        raise UsageError(
            "model.use_peft with model.from_scratch: an adapter is saved without the random weights beside it",
            hint="train a model with `expunge train` first, then name its folder in model.model_name_or_path",
        )
    if quantised and fsdp:
        raise UsageError(
            f"model.{quantised} with train.fsdp: quantised weights are not divided among processes",
            hint="leave train.fsdp out (quantised weights are small), or load the weights in float32",
        )
    if quantised and requests:
        raise UsageError(
            f"model.{quantised} with data.requests: a second adapter has no weights to start from, as quantised ones "
            "cannot take in the first",
            hint="load the weights in float32, or make each request a run of its own with `expunge merge` in between",
        )


def require_peft() -> None:
    """Refuse to go on without peft.

    Raises:
        UsageError: it is not installed, or older than transformers needs.
    """
    try:
        from transformers.integrations.peft import MIN_PEFT_VERSION
        from transformers.utils.peft_utils import check_peft_version

        check_peft_version(min_version=MIN_PEFT_VERSION)
        importlib.import_module("peft")
    except (ImportError, ValueError) as error:
        raise UsageError(f"adapters need the package peft: {error}", hint='pip install "expunge[lora]"') from error


def attach(model: Any, section: ModelSection, *, seed: int, base: str = "", revision: str | None = None) -> None:
    """Freeze a model and put adapters of its linear layers beside it, in place.

    Args:
        model: a plain causal LM, on its device.
        section: rank, alpha, dropout and targets.
        seed: of the first matrices; the global random state is left as it was.
        base: what the model was loaded from, for the saved adapter.
        revision: of `base`, on the Hub.

    Raises:
        UsageError: peft is missing, or a target names no linear layer, or one whose weight is also the embedding.
    """
    require_peft()
    from peft import LoraConfig

    targets = section.lora_target_modules
    if targets != "all-linear":
        _require_targets(model, tuple(targets))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=targets if targets == "all-linear" else list(targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model.add_adapter(config, ADAPTER)
    # A set in an order of its own on every run; transformers overwrites the base's name with the config's.
    config.target_modules = sorted(config.target_modules)
    config.base_model_name_or_path, config.revision = base, revision
    names = weight_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names:
            parameter.data = parameter.data.float()


def _require_targets(model: Any, targets: tuple[str, ...]) -> None:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    head = model.get_output_embeddings()
    for target in targets:
        found = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not found:
            known = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
            raise UsageError(
                f"model.lora_target_modules: no linear layer of {type(model).__name__} is named {target!r}",
                hint=f"its linear layers are named {', '.join(known[:_SHOWN])}{more}",
            )
        tied = head is not None and head.weight is model.get_input_embeddings().weight
        if tied and any(linear[name] is head for name in found):
            raise UsageError(
                f"model.lora_target_modules: the weight of {target} is also the embedding, which would get no adapter",
                hint="name other layers, or leave it out: every linear layer but the output head",
            )


def is_adapted(model: Any) -> bool:
    """Whether adapters lie in the model."""
    return any(_MATRIX.search(name) for name, _ in model.named_parameters())


def weight_name(parameter: str) -> str:
    """The name a parameter's weight has in the plain model: an adapter's matrices stand for the weight they adapt.

    `model.layers.3.mlp.down_proj.lora_A.default.weight` and `model.layers.3.mlp.down_proj.base_layer.weight` are both
    `model.layers.3.mlp.down_proj.weight`.
    """
    return _MATRIX.sub(".weight", parameter).replace(".base_layer.", ".")


def weight_names(model: Any) -> dict[str, str]:
    """Every parameter that a run may train -> the weight it stands for.

    Of a plain model all of them, under their own names; of an adapted one the adapters' matrices.
    """
    names = [name for name, _ in model.named_parameters()]
    matrices = [name for name in names if _MATRIX.search(name)]
    return {name: weight_name(name) for name in matrices or names}


def trainable(model: Any) -> dict[str, nn.Parameter]:
    """Every parameter that a run may train, by its own name."""
    names = weight_names(model)
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def first_matrices(model: Any) -> frozenset[str]:
    """The adapters' matrices A, which have no gradient as long as B is zero; none in a plain model."""
    return frozenset(name for name, _ in model.named_parameters() if _matrix(name) == "A")


def _matrix(name: str) -> str | None:
    found = _MATRIX.search(name)
    return found[1] if found else None


def is_identity(model: Any) -> bool:
    """Whether the model computes as its base does: it has no adapter, or every matrix B is zero."""
    return not any(bool(p.any()) for name, p in model.named_parameters() if _matrix(name) == "B")


@contextmanager
def without_adapters(model: Any) -> Iterator[Any]:
    """Inside, the model computes as its base; afterwards its adapters act and train as before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    # peft also decides what is trained when it switches adapters, and knows nothing of what is frozen among them.
    trained = {parameter: parameter.requires_grad for layer in layers for parameter in layer.parameters()}
    try:
        for layer in layers:
            layer.enable_adapters(enabled=False)
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for parameter, before in trained.items():
            parameter.requires_grad_(before)


@torch.no_grad()
def scale_change(model: Any, start: Mapping[str, Tensor], factor: float) -> None:
    """`theta = theta_0 + factor (theta - theta_0)` for every weight, in place.

    An adapter's change of a weight is its product, so its B is scaled and its A stays.

    Args:
        model: as trained.
        start: starting weights by name; of an adapted model nothing is read.
        factor: 1 changes nothing, 0 gives the starting model.
    """
    if is_adapted(model):
        for name, parameter in model.named_parameters():
            if _matrix(name) == "B":
                parameter.mul_(factor)
        return
    for name, parameter in model.named_parameters():
        # Exactly the starting weights at 0, and the trained ones at 1.
        parameter.copy_(torch.lerp(start[name], parameter, factor))


def describe_adapters(model: Any) -> str:
    """How much of a model is trained and where, on one line."""
    names = weight_names(model)
    entries = sum(parameter.numel() for parameter in trainable(model).values())
    # A quantised weight counts by what it stands for.
    total = int(model.num_parameters()) - entries
    modules = dict.fromkeys(weight.rpartition(".")[0].rpartition(".")[2] for weight in names.values())
    return (
        f"training {entries:,} entries of adapters beside {total:,} frozen weights ({entries / total:.2%}), rank "
        f"{model.peft_config[ADAPTER].r} on {', '.join(modules)}"
    )


def numbers(section: ModelSection) -> str:
    """What a run's weights are made of: `float32`, or `float32 adapters on a frozen float32|nf4|int8 base`."""
    if not section.use_peft:
        return section.dtype
    base = "nf4" if section.load_in_4bit else "int8" if section.load_in_8bit else section.dtype
    return f"float32 adapters on a frozen {base} base"
