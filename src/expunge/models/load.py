"""Models and tokenizers from the Hub or a folder, in the dtype we can honestly train in.

An adapter's folder stands for the model with the adapter in its weights.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import cached_file

from expunge.config.schema import ModelSection
from expunge.data.encode import Dataset
from expunge.errors import ExpungeError, ModelError, UsageError
from expunge.losses.place import kind_of
from expunge.models.adapter_folder import AdapterFolder, find_adapter, put_on


class LoadedModel(NamedTuple):
    """A model on its device and where its weights came from."""

    model: Any
    revision: str | None
    """Hub commit; None for a local folder."""


def pick_device(name: str | None) -> torch.device:
    """The device asked for, else the best one there is: CUDA, MPS, CPU.

    Raises:
        UsageError: this machine has no such device.
    """
    if name:
        return _device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _device(name: str) -> torch.device:
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if (device.index or 0) >= counts.get(device.type, 0):
        raise UsageError(
            f"there is no device {name!r} here",
            hint=f"known: {', '.join(kind for kind, count in counts.items() if count)}",
        )
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 autocast on accelerators; float32 on a CPU, where it is faster."""
    return torch.float32 if kind_of(device) == "cpu" else torch.bfloat16


def require_precision(bf16: bool | None, device: torch.device) -> None:
    """Refuse a recipe whose `train.bf16` says otherwise than `compute_dtype`.

    Raises:
        UsageError: bfloat16 asked for on a CPU, or refused on an accelerator.
    """
    if bf16 is None or bf16 == (compute_dtype(device) == torch.bfloat16):
        return
    why = (
        "a CPU computes in float32 here, where bfloat16 is slower and less exact"
        if bf16
        else "an accelerator computes in bfloat16 here, with float32 weights, so that runs on several machines agree"
    )
    raise UsageError(f"train.bf16 is {str(bf16).lower()} on {device.type}: {why}", hint="leave train.bf16 out")


@contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """Run the block in `compute_dtype(device)`; the weights stay float32."""
    dtype = compute_dtype(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and advice off stderr while we load or save."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def _check_place(what: str, name: str) -> None:
    """Refuse a path that does not exist before anything asks the network for it."""
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(
            f"cannot load {what} {name!r}: there is no such folder",
            hint="give an existing folder or a Hub id such as org/name",
        )


@contextmanager
def _explained(what: str, name: str) -> Iterator[None]:
    """Quietly run a loading function of transformers; whatever it raises is about the folder it was given."""
    try:
        with quiet():
            yield
    except ExpungeError:
        raise
    except Exception as error:
        raise _explain(what, name, error) from error


def _explain(what: str, name: str, error: Exception) -> ModelError:
    reason = shorten(str(error), 300, placeholder=" ...") or type(error).__name__
    if "attention" in reason.lower() or "attn_implementation" in reason:
        hint = "leave model.attn_implementation out, or set model.attn_implementation=sdpa or eager"
    elif Path(name).exists():
        hint = "a model folder holds config.json, model.safetensors and the tokenizer's files"
    else:
        hint = "there is no such folder here, and the Hub did not give it: check the id, the network and your login"
    return ModelError(f"cannot load {what} {name!r}: {reason}", hint=hint)


def _adapter(name: str, revision: str | None) -> AdapterFolder | None:
    """The adapter that lies there, of weights that are to be found and hold no adapter themselves."""
    _check_place("model", name)
    adapter = find_adapter(name, revision=revision)
    if adapter is None:
        return None
    if not Path(adapter.base).exists() and (adapter.base.startswith((".", "/", "~")) or adapter.base.count("/") != 1):
        raise ModelError(
            f"the adapter {name!r} adapts {adapter.base!r}, and there is no such folder",
            hint="call expunge from the folder that name counts from, or mend base_model_name_or_path in "
            f"{adapter.path / 'adapter_config.json'}",
        )
    if find_adapter(adapter.base, revision=adapter.base_revision) is not None:
        raise ModelError(
            f"the adapter {name!r} adapts another adapter, {adapter.base!r}",
            hint=f"merge that one (expunge merge {adapter.base} --out FOLDER) and name the folder in "
            "base_model_name_or_path",
        )
    return adapter


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's config, checked to be a causal language model's; of an adapter, its base's.

    Raises:
        ModelError: nothing there, unreadable, or not a causal LM.
    """
    adapter = _adapter(name, revision)
    if adapter is not None:
        return load_config(adapter.base, revision=adapter.base_revision, trust_remote_code=trust_remote_code)
    with _explained("model", name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    causal = type(config) in AutoModelForCausalLM._model_mapping and not config.is_encoder_decoder
    if not causal and not trust_remote_code:
        raise ModelError(
            f"{name!r} is not a causal language model: its config says {config.model_type!r}"
            f" ({', '.join(config.architectures or ['no architecture'])})",
            hint="expunge works on models that AutoModelForCausalLM loads",
        )
    return config


def load_tokenizer(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or Hub id; of an adapter without one, its base's.

    Raises:
        ModelError: nothing there, or not a fast tokenizer (spans need character offsets).
    """
    _check_place("tokenizer", name)
    adapter = find_adapter(name, revision=revision)
    if adapter is not None and not _has_tokenizer(name, revision):
        name, revision = adapter.base, adapter.base_revision
    with _explained("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {name!r} has no fast version, so answer spans cannot be located",
            hint="convert it once with AutoTokenizer.from_pretrained(..., from_slow=True) and save it",
        )
    return tokenizer


def load_classifier(name: str, *, device: torch.device) -> tuple[Any, Any]:
    """A sequence classifier in float32 on `device`, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: nothing there, unreadable, or weights without the classifier's.
    """
    _check_place("classifier", name)
    with _explained("classifier", name):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{name!r} is no trained classifier: its weights lack {', '.join(missing[:3])}",
            hint="name a model that was fine-tuned for sequence classification",
        )
    return model.to(device).eval(), tokenizer


def _has_tokenizer(name: str, revision: str | None) -> bool:
    found = cached_file(
        name,
        "tokenizer_config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def loading(section: ModelSection, name: str) -> ModelSection:
    """How another model than a recipe's own is loaded: with the same kernels, remote code and quantisation."""
    return ModelSection(
        model_name_or_path=name,
        attn_implementation=section.attn_implementation,
        trust_remote_code=section.trust_remote_code,
        load_in_4bit=section.load_in_4bit,
        load_in_8bit=section.load_in_8bit,
    )


def load_model(section: ModelSection, *, device: torch.device, merge: bool = False) -> LoadedModel:
    """Load the causal LM in float32 on `device`, in evaluation mode.

    An adapter is taken into the weights of its base; where those are quantised, which would lose most of it, it stays
    beside them.

    Args:
        section: what is loaded, and how.
        device: where to.
        merge: make quantised weights float32 again, with their rounding, and take the adapter into them too.

    Raises:
        ModelError: missing, unreadable, lacking weights, not a causal LM, or a class without per-position logits; an
            adapter that does not fit its base.
        UsageError: quantised weights where there is no CUDA or no bitsandbytes; an adapter without peft.
    """
    name = section.model_name_or_path
    if name is None:
        raise ModelError("no model given", hint="set model.model_name_or_path=FOLDER_OR_HUB_ID")
    adapter = _adapter(name, section.model_revision)
    if adapter is None:
        return _load_weights(section, name, device)
    quantised = section.load_in_4bit or section.load_in_8bit
    base = section.model_copy(update={"model_name_or_path": adapter.base, "model_revision": adapter.base_revision})
    # On the CPU, so that every device gets the same bits.
    model = _load_weights(base, adapter.base, device if quantised else torch.device("cpu")).model
    with _explained("adapter", name):
        if quantised and merge:
            model.dequantize()
        model = put_on(model, adapter, merge=merge or not quantised).eval()
    return LoadedModel(model if quantised else model.to(device), adapter.revision)


def _load_weights(section: ModelSection, name: str, device: torch.device) -> LoadedModel:
    quantised = quantisation(section, device)
    config = load_config(name, revision=section.model_revision, trust_remote_code=section.trust_remote_code)
    with _explained("model", name):
        model, found = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            revision=section.model_revision,
            dtype=torch.float32,
            attn_implementation=section.attn_implementation,
            trust_remote_code=section.trust_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **quantised,
        )
    _require_weights(name, found)
    require_answer_positions(model, name)
    model = model.eval() if quantised else model.eval().to(device)
    require_causal(model, name)
    return LoadedModel(model, getattr(config, "_commit_hash", None))


def quantisation(section: ModelSection, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights in 4 or 8 bits; empty for float32.

    Raises:
        UsageError: packed weights where there is no CUDA or no bitsandbytes.
    """
    key = next((key for key in ("load_in_4bit", "load_in_8bit") if getattr(section, key)), None)
    if key is None:
        return {}
    _require_cuda(key, device)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(f"model.{key} needs the package bitsandbytes", hint='pip install "expunge[lora,bitsandbytes]"')
    config = BitsAndBytesConfig(
        load_in_4bit=section.load_in_4bit,
        load_in_8bit=section.load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _require_cuda(key: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise UsageError(
            f"model.{key} needs a GPU with CUDA, and this is to run on {device.type}",
            hint="leave it out: adapters train beside float32 weights as well; a finished run's model is measured "
            "elsewhere after `expunge merge RUN`",
        )


def _require_weights(name: str, found: dict[str, Any]) -> None:
    """Refuse a model of which transformers filled in weights at random: it is not the one that was meant."""
    missing = sorted(str(key) for key in found["missing_keys"])
    mismatched = sorted(f"{key} is {tuple(got)}, not {tuple(wanted)}" for key, got, wanted in found["mismatched_keys"])
    if missing or mismatched:
        lacks = [f"lacks {len(missing)} weights ({_some(missing)})"] if missing else []
        differs = [f"has weights of other shapes ({_some(mismatched)})"] if mismatched else []
        raise ModelError(
            f"the model {name!r} {' and '.join(lacks + differs)}",
            hint="its config.json and its weights do not belong together; save the model again",
        )


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@torch.inference_mode()
def require_causal(model: Any, name: str) -> None:
    """Refuse a model whose logits depend on later tokens: an encoder reads the answer it is to be trained on.

    Asked of the model itself, because encoders such as BERT are catalogued as causal and a config need not say.
    """
    size = vocabulary_size(model)
    pair = torch.tensor([[1, 2, 3, 4], [1, 2, 3, size // 2]], device=next(model.parameters()).device) % size
    one, other = model(input_ids=pair).logits
    changes = (one - other).abs().amax(-1)  # (4,)
    # Measured by what the last token changes in its own place: the logits of a fresh model are all small.
    if changes[:-1].max() > 1e-4 * changes[-1] + 1e-5 * one.abs().max():
        raise ModelError(
            f"{name!r} is not a causal language model: {type(model).__name__} lets a token see those after it",
            hint="expunge works on decoder-only models; an encoder cannot be unlearned with answer likelihoods",
        )


def require_vocabulary(dataset: Dataset, tokenizer: Any, *, size: int) -> None:
    """Refuse rows with tokens that the model has no embedding for.

    Args:
        dataset: encoded rows.
        tokenizer: what encoded them, to name the token.
        size: rows of the model's embedding.

    Raises:
        ModelError: the tokenizer is larger than the model, and the rows use it.
    """
    largest = np.array([int(item.input_ids.max()) for item in dataset.encoded])
    if (rows := np.flatnonzero(largest >= size)).size:
        token = int(largest[rows[0]])
        raise ModelError(
            f"{len(rows)} of {len(largest)} {dataset.role} examples have tokens beyond the model's {size} embeddings: "
            f"token {token} ({tokenizer.convert_ids_to_tokens(token)!r}) in row {dataset.examples[rows[0]].row}",
            hint=f"the tokenizer has {len(tokenizer)} tokens: use the model's own, or resize the model's embeddings",
        )


def padding_id(tokenizer: Any, *, size: int) -> int:
    """An id to pad with that the model can look up; padding is masked, so which one never matters.

    Args:
        tokenizer: its padding token is taken where the model has it.
        size: rows of the model's embedding.
    """
    own = tokenizer.pad_token_id
    return own if own is not None and own < size else 0


def vocabulary_size(model: Any) -> int:
    """Rows of the model's input embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def require_answer_positions(model: Any, name: str) -> None:
    """Refuse a class whose forward cannot return the logits of chosen positions only."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{type(model).__name__} ({name!r}) does not take `logits_to_keep`",
            hint="use a model class of transformers 5.21 or newer that does; nearly all decoder-only ones do",
        )


def context_length(config: Any) -> int | None:
    """The longest input the model was made for, in tokens; None where its config does not say."""
    value = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(value) if value else None
