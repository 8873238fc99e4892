"""The tiny tokenizer and Llama that other tests are built on."""

from __future__ import annotations

import torch

from expunge.testing.tiny import tiny_llama, tiny_tokenizer


def test_the_tokenizer_is_lossless_and_the_same_every_time() -> None:
    one, other = tiny_tokenizer(), tiny_tokenizer()
    for text in ("Mira Solen wrote it.", " Zoë, 漢字\n\t!", "<|end|>"):
        assert one.decode(one(text)["input_ids"]) == text
    assert one.get_vocab() == other.get_vocab()
    assert (one.pad_token, one.eos_token, one.bos_token) == ("<|pad|>", "<|end|>", None)
    chat = [{"role": "user", "content": "Hi"}]
    text = one.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Hi<|end|><|assistant|>"


def test_the_model_follows_its_seed_and_leaves_the_global_one() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = tiny_llama(300), tiny_llama(300), tiny_llama(300, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert (one.config.num_hidden_layers, one.config.hidden_size, one.training) == (2, 32, False)
    assert tiny_llama(300, num_hidden_layers=1).config.num_hidden_layers == 1
