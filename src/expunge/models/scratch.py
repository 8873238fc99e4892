"""A new model from a config and a byte-level BPE tokenizer from text: for small worlds where no Hub is at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from expunge.errors import UsageError

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


def new_model(config: dict[str, Any], tokenizer: Any, *, seed: int, attn_implementation: str) -> Any:
    """A randomly initialised float32 causal LM whose vocabulary and special ids are the tokenizer's.

    Args:
        config: `model_type` and the fields of that type's config; `vocab_size` defaults to the tokenizer's.
        seed: of the initialisation alone; the global random state is left as it was.
    """
    fields = dict(config)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise UsageError("model.from_scratch has no model_type", hint="e.g. model_type: llama")
    fields.setdefault("vocab_size", len(tokenizer))
    fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    fields["pad_token_id"] = tokenizer.pad_token_id
    try:
        built = AutoConfig.for_model(model_type, **fields)
    except (ValueError, KeyError) as error:
        raise UsageError(f"model.from_scratch: {error}", hint="model_type is a name such as llama or qwen3") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(built, attn_implementation=attn_implementation, dtype=torch.float32)
    return model.eval()
