"""What a model, a tokenizer or any settings *are*, as a SHA-256: the parts of every content key."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from expunge.models.adapters import is_adapted, is_identity, weight_name, weight_names


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def model_digest(model: Any) -> str:
    """SHA-256 of weights and persistent buffers as they are in memory (names, shapes, dtype, bytes), tied ones once.

    The weights that compute, not the files they came from: a folder, a Hub snapshot and a checkpoint of the same
    weights agree, and nothing that was edited after loading is missed. An adapter that changes nothing yet is left
    out: such a model is its base.
    """
    sha = hashlib.sha256(type(model).__name__.encode())
    adapters = weight_names(model) if is_adapted(model) else {}
    persistent = set(model.state_dict())
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in persistent}
    tensors = dict(model.named_parameters()) | buffers
    plain = {weight_name(name): tensor for name, tensor in tensors.items() if name not in adapters}
    named = sorted(plain.items())
    if not is_identity(model):
        named += [(name, tensor) for name, tensor in sorted(model.named_parameters()) if name in adapters]
        scales = {name: module.scaling for name, module in model.named_modules() if hasattr(module, "lora_A")}
        sha.update(digest_json(scales).encode())
    for name, tensor in named:
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sha.update(memoryview(data.numpy()))
    return sha.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's vocabulary, merges and rules."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
