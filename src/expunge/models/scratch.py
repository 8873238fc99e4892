"""A new model from a config and a byte-level BPE tokenizer from text: for small worlds where no Hub is at hand."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from expunge.errors import UsageError

_ROPE = ("rope_theta", "rope_scaling")
"""Older names that every config with rotary positions takes."""
PAD, END = "<|pad|>", "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on `texts` with a chat template whose turns end in one token.

    Args:
        texts: the corpus; deterministic for the same texts in the same order.
        vocab_size: entries, the five special tokens included; at least 261 (all bytes).
    """
    if vocab_size < 261:
        raise UsageError(f"tokenizer_vocab_size is {vocab_size}", hint="256 bytes and 5 special tokens need 261")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, *_ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(_ROLES),
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(config: dict[str, Any], tokenizer: Any, *, seed: int, attn_implementation: str | None = None) -> Any:
    """A randomly initialised float32 causal LM whose vocabulary and special ids are the tokenizer's.

    Args:
        config: `model_type` and the fields of that type's config; `vocab_size` defaults to the tokenizer's.
        seed: of the initialisation alone; the global random state is left as it was.
        attn_implementation: attention kernel; the architecture's default unless given.

    Raises:
        UsageError: no or an unknown `model_type`, a key that type does not have (it would silently keep its default,
            which is that of a model of billions of weights), or values that do not go together.
    """
    fields = dict(config)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise UsageError("model.from_scratch has no model_type", hint="e.g. model_type: llama")
    fields.setdefault("vocab_size", len(tokenizer))
    fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    fields["pad_token_id"] = tokenizer.pad_token_id
    built = _config(model_type, fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(built, attn_implementation=attn_implementation, dtype=torch.float32)
    return model.eval()


def _config(model_type: str, fields: dict[str, Any]) -> Any:
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, list(CONFIG_MAPPING), n=1)
        hint = f"did you mean {near[0]}?" if near else "model_type is a name such as llama or qwen3"
        raise UsageError(f"model.from_scratch: unknown model_type {model_type!r}", hint=hint)
    kind = CONFIG_MAPPING[model_type]
    known = {*(field.name for field in dataclasses.fields(kind)), *kind.attribute_map, *_ROPE}
    if strange := [key for key in fields if key not in known]:
        near = difflib.get_close_matches(strange[0], sorted(known), n=1)
        raise UsageError(
            f"model.from_scratch: {model_type} has no {strange[0]!r}",
            hint=f"did you mean {near[0]}?" if near else f"see the documentation of {kind.__name__}",
        )
    try:
        return kind(**fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(f"model.from_scratch: {reason}", hint=f"mend the values for {kind.__name__}") from error
