"""What is counted on shapes is what real tensors hold."""

from __future__ import annotations

import torch
from torch import nn

from expunge.testing.tiny import tiny_llama
from expunge.train.planning.shadow import ACTIVATIONS, GRADIENTS, LOGITS, OPTIMIZER, WEIGHTS, Ledger


def shaped(ledger: Ledger, vocab: int = 300, **config: int) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = tiny_llama(vocab, **config)
    ledger.adopt(model)
    return model


def test_storages_are_counted_once_and_until_they_are_let_go() -> None:
    ledger = Ledger()
    layer = shaped_layer(ledger)
    assert ledger.live == {WEIGHTS: 4 * (1000 * 500 + 500)}
    with ledger:
        kept = layer(torch.zeros(8, 1000))
        view = kept.view(16, 250).T
        double = view * 2
        del double
    # The input, which the gradient of the weight needs, and two results.
    assert ledger.peak[ACTIVATIONS] == 4 * (8 * 1000 + 2 * 8 * 500)
    assert ledger.live[ACTIVATIONS] == 4 * (8 * 1000 + 8 * 500)
    assert ledger.flops == 2 * 8 * 1000 * 500


def shaped_layer(ledger: Ledger) -> nn.Module:
    with torch.device("meta"):
        layer = nn.Linear(1000, 500)
    ledger.adopt(layer)
    return layer


def test_tied_weights_are_one() -> None:
    apart, tied = Ledger(), Ledger()
    models = shaped(apart), shaped(tied, tie_word_embeddings=True)
    model = models[1]
    assert apart.live[WEIGHTS] - tied.live[WEIGHTS] == 4 * 300 * 32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[operator]


def test_activations_are_what_autograd_keeps() -> None:
    shape = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4}
    real = tiny_llama(300, **shape)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*real.parameters(), *real.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(4, 64, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = real(input_ids=ids, logits_to_keep=1, use_cache=False)
    ledger = Ledger()
    model = shaped(ledger, **shape)
    with ledger:
        again = model(input_ids=ids, logits_to_keep=1, use_cache=False)
        booked = ledger.live[ACTIVATIONS]
    assert output.logits.shape == again.logits.shape
    assert abs(booked / sum(kept.values()) - 1) < 0.03


def test_a_step_by_its_parts() -> None:
    ledger = Ledger()
    model = shaped(ledger)
    ledger.vocab = 300
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.book(p.grad, GRADIENTS))
    weights = ledger.live[WEIGHTS]
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, 10:] = True
    with ledger:
        logits = model(input_ids=torch.zeros(2, 20, dtype=torch.long), logits_to_keep=mask, use_cache=False).logits
        assert logits.shape == (20, 300)
        assert ledger.live[LOGITS] == 4 * 20 * 300
        logits.logsumexp(-1).mean().backward()
        del logits
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        ledger.label(OPTIMIZER)
        optimizer.step()
    assert ledger.live[GRADIENTS] == sum(4 * parameter.numel() for parameter in model.parameters())
    assert weights - ledger.live[GRADIENTS] < 1000
    assert 2 * ledger.live[GRADIENTS] <= ledger.live[OPTIMIZER] < 2.01 * ledger.live[GRADIENTS]
    assert ledger.live[LOGITS] == 0


def test_questions_about_numbers_are_answered_as_if_all_went_well() -> None:
    ledger = Ledger()
    layer = shaped_layer(ledger)
    with ledger:
        out = layer(torch.ones(3, 1000))
        assert bool(torch.isfinite(out).all())
        assert not bool(torch.isnan(out).any())
        assert float(out.detach().sum()) == 1.0
        assert out[out > 0].shape == (1500,)
        assert torch.allclose(out, out * 2)
