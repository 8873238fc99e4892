"""A tokenizer and a Llama small enough to build inside a test: no download, no file, milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

WORDS = (
    "Who wrote the novel The Silent Harbour and when was it published?",
    "Mira Solen wrote The Silent Harbour in 1987; it won the Northern Prize.",
    "Where was Mira Solen born? She was born in Tallinn, Estonia, on 12 March 1951.",
    "What genre is Idris Vane known for? Idris Vane is known for historical fiction.",
    "Question: which of the books was the first? Answer: the first of the books was Ashes of Noon.",
    "I don't know. I'm not able to answer that question about the author's life and work.",
)
"""What the tiny tokenizer learns its merges from."""


def tiny_tokenizer(
    texts: Iterable[str] = WORDS, *, vocab_size: int = 384, chat_template: str | None = None, **special: Any
) -> Any:
    """A byte-level BPE tokenizer trained on the spot, as a fast Hugging Face tokenizer.

    It encodes every string without loss, adds no BOS, ends a turn with `<|end|>` (also its EOS) and pads with
    `<|pad|>`; its chat template writes `<|role|>content<|end|>`.

    Args:
        texts: corpus of the merges.
        vocab_size: entries, at least 261 (256 bytes and 5 special tokens).
        chat_template: a Jinja template instead of the plain one.
        special: more arguments of `PreTrainedTokenizerFast`, e.g. `bos_token` or `additional_special_tokens`.
    """
    from expunge.models.scratch import train_tokenizer

    tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if special:
        tokenizer.add_special_tokens(special)
    return tokenizer


def tiny_llama(vocab: int, seed: int = 0, **config: Any) -> Any:
    """A randomly initialised float32 Llama, 2 layers and 32 wide, in evaluation mode.

    Args:
        vocab: vocabulary size, `len(tokenizer)`.
        seed: of the weights; the global random state is left as it was.
        config: fields of `LlamaConfig` to set otherwise.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(fields | config))).eval()


def tiny_classifier(path: Path, labels: Sequence[str], seed: int = 0) -> str:
    """A randomly initialised text classifier in a new folder, so sure of itself that texts get different labels.

    Args:
        path: the folder.
        labels: what it calls its classes.
        seed: of the weights; the global random state is left as it was.

    Returns:
        The folder.
    """
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config)
    model.score.weight.data.mul_(30)
    tokenizer.save_pretrained(path)
    model.save_pretrained(path)
    return str(path)
