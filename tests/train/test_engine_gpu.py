"""The same promises on a GPU: float32 weights under bfloat16 autocast. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import by_default

from expunge.catalog import METHODS
from expunge.data.collate import collate
from expunge.data.encode import Dataset
from expunge.evals.trace import token_stats
from expunge.models.decode import greedy
from expunge.models.load import autocast
from expunge.models.score import score
from expunge.testing.tiny import tiny_llama
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Engine
from expunge.train.monitor import VOLATILE

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")]

MakeEngine = Callable[..., Engine]


def on_gpu(tokenizer: Any) -> Any:
    return tiny_llama(len(tokenizer), seed=1).to("cuda")


def fit(engine: Engine, checkpoints: Checkpoints | None = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append, checkpoints=checkpoints)
    return [{k: v for k, v in event.items() if k not in VOLATILE} for event in events]


@pytest.mark.parametrize("name", METHODS.names())
def test_autocast_follows_float32_and_keeps_float32_weights(name: str, make_engine: MakeEngine, tokenizer: Any) -> None:
    method = by_default(name)
    cpu, gpu = make_engine(method, steps=3), make_engine(method, steps=3, model=on_gpu(tokenizer))
    for one, two in zip(fit(cpu), fit(gpu), strict=True):
        assert two["forget"] == pytest.approx(one["forget"], rel=0.05, abs=0.02)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.1, abs=0.02)
    assert {p.dtype for p in gpu.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_resumed_run_is_bit_equal(optim: str, make_engine: MakeEngine, tokenizer: Any, tmp_path: Path) -> None:
    method = METHODS.load("npo")()

    def engine(**settings: Any) -> Engine:
        return make_engine(method, steps=6, model=on_gpu(tokenizer), optim=optim, **settings)

    whole, saved = fit(engine()), Checkpoints(tmp_path / "checkpoints")
    killed = engine(save_steps=3)
    with pytest.raises(SystemExit):
        killed.fit(emit=lambda event: exit() if event["step"] == 4 else None, checkpoints=saved)
    resumed = engine()
    assert saved.load(resumed) == 3
    assert fit(resumed) == whole[3:]


def test_trace_numbers_follow_the_cpu(tokenizer: Any, datasets: dict[str, Dataset]) -> None:
    batch = collate(datasets["forget"], list(range(6)), pad_id=0)
    with torch.inference_mode():
        cpu = score(tiny_llama(len(tokenizer), seed=1), batch)
        with autocast(torch.device("cuda")):
            gpu = score(on_gpu(tokenizer), batch.to(torch.device("cuda")))
    here, there = (token_stats(s.logits, s.targets, moments=True) for s in (cpu, gpu))
    assert there.logp.dtype == torch.float32
    assert torch.allclose(here.logp, there.logp.cpu(), atol=0.05)
    assert here.mu is not None
    assert there.mu is not None
    assert torch.allclose(here.mu, there.mu.cpu(), atol=0.05)


def test_generation_drops_finished_rows(tokenizer: Any) -> None:
    model = on_gpu(tokenizer)
    prompts = [[5, 6, 7], [9], [11, 12, 13, 14, 15]]
    made = greedy(model, prompts, max_new_tokens=[4, 9, 2], end_ids=set(), pad_id=0).outputs
    assert [len(output.token) for output in made] == [4, 9, 2]
