"""Where a model keeps its transformer blocks, in whatever family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from expunge.errors import UsageError
from expunge.models.blocks import block, blocks
from expunge.testing.tiny import tiny_llama

SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    },
    # As many experts as blocks, which are lists of modules too.
    "mixtral": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 3,
    },
}


@pytest.mark.parametrize("family", SMALL)
def test_blocks_of_a_family(family: str) -> None:
    # Some families' defaults are special tokens beyond this vocabulary.
    config = AutoConfig.for_model(
        family, vocab_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SMALL[family]
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    seen: list[torch.Tensor] = []
    for each in blocks(model):
        each.register_forward_hook(
            lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert [tuple(state.shape) for state in seen] == [(1, 3, 16)] * 3


def test_blocks_are_counted_from_both_ends_and_an_unknown_one_lists_them() -> None:
    model = tiny_llama(300)
    assert list(blocks(model)) == list(model.model.layers)
    assert block(model, 1) is block(model, -1) is model.model.layers[1]
    for index in (2, -3):
        with pytest.raises(UsageError, match=f"layer {index} does not exist: LlamaForCausalLM has 2 blocks") as caught:
            block(model, index)
        assert caught.value.hint == "layers are 0 to 1"


def test_a_model_without_such_a_list_is_refused() -> None:
    model = tiny_llama(300)
    model.model.layers = nn.ModuleList([model.model.layers[0]])
    with pytest.raises(UsageError, match="no list of 2 transformer blocks"):
        blocks(model)
