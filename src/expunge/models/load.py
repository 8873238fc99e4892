"""Models and tokenizers from the Hub or a folder, in the dtype we can honestly train in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from expunge.config.schema import ModelSection
from expunge.errors import ModelError


class LoadedModel(NamedTuple):
    """A model on its device and where its weights came from."""

    model: Any
    revision: str | None
    """Hub commit; None for a local folder."""


def pick_device(name: str | None) -> torch.device:
    """The device asked for, else the best one there is: CUDA, MPS, CPU."""
    if name:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 autocast on accelerators; float32 on a CPU, where it is faster."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


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


def _explain(what: str, name: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(name).exists():
        hint = "a model folder holds config.json, model.safetensors and the tokenizer's files"
    else:
        hint = "there is no such folder here, and the Hub did not give it: check the id, the network and your login"
    return ModelError(f"cannot load {what} {name!r}: {first}", hint=hint)


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's config, checked to be a causal language model's.

    Raises:
        ModelError: nothing there, unreadable, or not a causal LM.
    """
    _check_place("model", name)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _explain("model", name, error) from error
    if type(config) not in AutoModelForCausalLM._model_mapping and not trust_remote_code:
        raise ModelError(
            f"{name!r} is not a causal language model: its config says {config.model_type!r}"
            f" ({', '.join(config.architectures or ['no architecture'])})",
            hint="expunge works on models that AutoModelForCausalLM loads",
        )
    return config


def load_tokenizer(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or Hub id.

    Raises:
        ModelError: nothing there, or not a fast tokenizer (spans need character offsets).
    """
    _check_place("tokenizer", name)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _explain("tokenizer", name, error) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {name!r} has no fast version, so answer spans cannot be located",
            hint="convert it once with AutoTokenizer.from_pretrained(..., from_slow=True) and save it",
        )
    return tokenizer


def load_model(section: ModelSection, *, device: torch.device) -> LoadedModel:
    """Load the causal LM in float32 on `device`, in evaluation mode.

    Raises:
        ModelError: missing, unreadable, not a causal LM, or a class without per-position logits.
    """
    name = section.model_name_or_path
    if name is None:
        raise ModelError("no model given", hint="set model.model_name_or_path=FOLDER_OR_HUB_ID")
    config = load_config(name, revision=section.model_revision, trust_remote_code=section.trust_remote_code)
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                revision=section.model_revision,
                dtype=torch.float32,
                attn_implementation=section.attn_implementation,
                trust_remote_code=section.trust_remote_code,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _explain("model", name, error) from error
    require_answer_positions(model, name)
    return LoadedModel(model.eval().to(device), getattr(config, "_commit_hash", None))


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
