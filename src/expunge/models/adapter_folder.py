"""Adapter folders as peft and transformers read them: found, put onto their base, joined, written."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils.hub import extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from expunge.errors import ModelError
from expunge.models.adapters import ADAPTER, require_peft

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight$")


class AdapterFolder(NamedTuple):
    """An adapter on disk, or in the cache of the Hub."""

    name: str
    """Folder or Hub id, as it was asked for."""
    path: Path
    """Where its files lie."""
    base: str
    """Folder or Hub id of the weights it adapts."""
    base_revision: str | None
    revision: str | None
    """Hub commit; None for a local folder."""


class Adapter(NamedTuple):
    """A LoRA adapter in memory."""

    config: Any
    """peft's LoraConfig."""
    tensors: dict[str, Tensor]
    """`<module>.lora_A.weight` (r, in) and `<module>.lora_B.weight` (out, r)."""


def find_adapter(name: str, *, revision: str | None = None) -> AdapterFolder | None:
    """The adapter that a folder or Hub id holds; None where it holds a model, or nothing.

    Raises:
        ModelError: it holds both, or does not say what it adapts.
    """
    try:
        file = find_adapter_config_file(name, revision=revision)
    # Not a folder and no id of the Hub either: for the loader to say.
    except (OSError, ValueError):
        return None
    if file is None:
        return None
    path = Path(file).parent
    if (Path(name) / "config.json").exists():
        raise ModelError(
            f"{name} holds a model and an adapter, and which of them is meant cannot be told",
            hint="move adapter_config.json and the adapter's weights into a folder of their own",
        )
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint="save the adapter again") from error
    if not base:
        raise ModelError(
            f"the adapter {name!r} does not say which model it adapts",
            hint=f"write it into base_model_name_or_path in {file}",
        )
    return AdapterFolder(name, path, str(base), config.get("revision"), extract_commit_hash(str(file), None))


def put_on(model: Any, adapter: AdapterFolder, *, merge: bool) -> Any:
    """The model with an adapter's weights.

    Args:
        model: its base, on the CPU where weights are to be merged; changed in place.
        adapter: any kind that peft can merge.
        merge: add its product to the weights, which makes a plain model; else it stays beside them.

    Raises:
        ModelError: the adapter belongs to another base.
    """
    require_peft()
    from peft import PeftConfig, get_peft_model

    source = adapter.name if Path(adapter.name).exists() else str(adapter.path)
    config = PeftConfig.from_pretrained(source)
    config.inference_mode = True
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # peft asks transformers for a property by its former name.
        warnings.simplefilter("ignore", FutureWarning)
        # Made first and filled then: loaded in one go, matrices beside a 4-bit base would be rounded to bfloat16.
        adapted = get_peft_model(model, config, ADAPTER)
        result = adapted.load_adapter(source, ADAPTER)
    strange = [*result.missing_keys, *result.unexpected_keys]
    if strange:
        raise ModelError(
            f"the adapter {adapter.name!r} does not fit its base {adapter.base!r}: {len(strange)} tensors are missing "
            f"or left over ({strange[0]})",
            hint="name the model it was trained on in base_model_name_or_path of its adapter_config.json",
        )
    # Merged weights are a model's like any other: peft had frozen them.
    return adapted.merge_and_unload(safe_merge=True).requires_grad_(True) if merge else adapted.get_base_model()


def read_adapter(folder: AdapterFolder) -> Adapter:
    """A plain LoRA adapter: its configuration and matrices.

    Raises:
        ModelError: another kind, which one LoRA adapter cannot stand for together with a second one.
    """
    require_peft()
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder.path))
    file = folder.path / WEIGHTS
    tensors = load_file(file) if file.exists() else {}
    plain = config.peft_type == "LORA" and not (config.use_dora or config.rank_pattern or config.alpha_pattern)
    strange = [key for key in tensors if not _KEY.match(key)]
    if not (plain and tensors) or strange:
        raise ModelError(
            f"the adapter {folder.name!r} is no plain LoRA adapter"
            + (f" (it holds {strange[0]})" if strange else "")
            + ", so a second one cannot be joined to it",
            hint=f"merge it first: expunge merge {folder.name} --out FOLDER, and start from that folder",
        )
    return Adapter(config, {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()})


def joined(first: Adapter, second: Adapter) -> Adapter:
    """One adapter that changes every weight by what two change it by: `s_1 B_1 A_1 + s_2 B_2 A_2 = [s_1 B_1, s_2 B_2]
    [A_1; A_2]`.

    Its rank is the sum of both; a module that only one of them adapts has zeros for the other.

    Args:
        first: relative to the model that the result is relative to.
        second: relative to that model with `first` in its weights.
    """
    rank = first.config.r + second.config.r
    matrices: dict[str, Tensor] = {}
    modules = sorted({_KEY.sub(r"\g<module>", key) for key in (*first.tensors, *second.tensors)})
    for module in modules:
        parts = [_matrices(adapter, module, modules_of=(first, second)) for adapter in (first, second)]
        matrices[f"{module}.lora_A.weight"] = torch.cat([a for a, _ in parts], 0)
        matrices[f"{module}.lora_B.weight"] = torch.cat([b for _, b in parts], 1)
    config = copy.deepcopy(second.config)
    config.r, config.lora_alpha, config.use_rslora = rank, rank, False
    config.target_modules = modules
    config.base_model_name_or_path = first.config.base_model_name_or_path
    config.revision = first.config.revision
    return Adapter(config, matrices)


def _matrices(adapter: Adapter, module: str, *, modules_of: tuple[Adapter, Adapter]) -> tuple[Tensor, Tensor]:
    """A and scaled B of one module; zeros where this adapter has none there."""
    config, tensors = adapter.config, adapter.tensors
    key_a, key_b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
    if key_a in tensors:
        scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        return tensors[key_a].float(), tensors[key_b].float() * scale
    other = next(item.tensors for item in modules_of if key_a in item.tensors)
    return other[key_a].new_zeros(config.r, other[key_a].shape[1]), other[key_b].new_zeros(
        other[key_b].shape[0], config.r
    )


def write_adapter(model: Any, folder: Path) -> None:
    """Write an adapted model's adapter as transformers and peft load it.

    One that was trained on a base with an adapter in it is joined to that one, so that what is written adapts plain
    weights: neither library loads an adapter of an adapter.

    Args:
        model: a causal LM with adapters (`expunge.models.adapters.attach`).
        folder: exists.

    Raises:
        ModelError: the base's adapter is gone, or no plain LoRA adapter.
    """
    from peft import get_peft_model_state_dict

    own = copy.deepcopy(model.peft_config[ADAPTER])
    # Embeddings are never adapted here, and to find out peft would ask the Hub.
    matrices = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    adapter = Adapter(own, {key: tensor.detach().cpu() for key, tensor in matrices.items()})
    earlier = find_adapter(own.base_model_name_or_path, revision=own.revision) if own.base_model_name_or_path else None
    if earlier is not None:
        adapter = joined(read_adapter(earlier), adapter)
    adapter.config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    adapter.config.save_pretrained(str(folder))
    save_file(
        {f"{_PREFIX}{key}": tensor.contiguous() for key, tensor in adapter.tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    model.generation_config.save_pretrained(str(folder))
