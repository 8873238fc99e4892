"""What the engine promises: geometry changes nothing, a killed run continues bit for bit, trouble stops it cleanly."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from small_world import by_default

from expunge.catalog import METHODS
from expunge.errors import StoppedError
from expunge.losses.nll import nll_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.finetune import FineTune
from expunge.train import checkpoint
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Engine
from expunge.train.monitor import VOLATILE

MakeEngine = Callable[..., Engine]


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


def fit(engine: Engine, checkpoints: Checkpoints | None = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append, checkpoints=checkpoints)
    return [{k: v for k, v in event.items() if k not in VOLATILE} for event in events]


@pytest.mark.parametrize("name", METHODS.names())
def test_budget_changes_nothing_but_rounding(name: str, make_engine: MakeEngine) -> None:
    method = by_default(name)
    small, large = make_engine(method, budget=64), make_engine(method, budget=8192)
    first, second = fit(small), fit(large)
    for one, two in zip(first, second, strict=True):
        for key in ("loss", "forget", "grad_norm"):
            assert one[key] == pytest.approx(two[key], rel=2e-4, abs=1e-6), key
    for key, value in weights(small).items():
        assert torch.allclose(value, weights(large)[key], atol=2e-5), key


@pytest.mark.parametrize("name", METHODS.names())
def test_every_trainable_tensor_moves(name: str, make_engine: MakeEngine) -> None:
    engine = make_engine(by_default(name), steps=2)
    before = weights(engine)
    fit(engine)
    after = weights(engine)
    assert [key for key in engine.trained if torch.equal(after[key], before[key])] == []


@pytest.mark.parametrize("name", ["npo", "eua", "idk_dpo"])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_is_bit_equal(name: str, stop: int, make_engine: MakeEngine, tmp_path: Path) -> None:
    method = by_default(name)
    whole = make_engine(method, steps=6, optim="muon" if stop == 4 else "adamw")
    events = fit(whole)

    saved = Checkpoints(tmp_path / "checkpoints")
    killed = make_engine(method, steps=6, optim="muon" if stop == 4 else "adamw", save_steps=stop)
    with pytest.raises(SystemExit):
        killed.fit(emit=lambda event: exit() if event["step"] == stop + 1 else None, checkpoints=saved)
    resumed = make_engine(method, steps=6, optim="muon" if stop == 4 else "adamw")
    torch.manual_seed(99)
    assert saved.load(resumed) == stop
    assert fit(resumed) == events[stop:]
    for key, value in weights(resumed).items():
        assert torch.equal(value, weights(whole)[key]), key


def test_ctrl_c_ends_between_two_steps_and_resumes(make_engine: MakeEngine, tmp_path: Path) -> None:
    whole = fit(make_engine(FineTuneForget(), steps=4))
    saved = Checkpoints(tmp_path / "checkpoints")
    engine = make_engine(FineTuneForget(), steps=4, save_steps=100)

    def interrupt(event: dict[str, Any]) -> None:
        if event["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        engine.fit(emit=interrupt, checkpoints=saved)
    resumed = make_engine(FineTuneForget(), steps=4)
    assert saved.load(resumed) == 2
    assert fit(resumed) == whole[2:]


class FineTuneForget(FineTune):
    """Fine-tuning on the forget rows: the simplest objective there is."""

    def needs(self) -> Needs:
        return Needs(roles=("forget",))

    def losses(self, ctx: Context) -> dict[str, Term]:
        return {"forget": Term(nll_loss(ctx.scored.logps), unit="token", reduction="token_mean")}


class Explodes(FineTuneForget):
    """NaN from the third micro-batch on."""

    calls: ClassVar[list[int]] = []

    def losses(self, ctx: Context) -> dict[str, Term]:
        self.calls.append(1)
        term = super().losses(ctx)["forget"]
        factor = float("nan") if len(self.calls) > 2 else 1.0
        return {"forget": Term(term.values * factor, unit="token", reduction="token_mean")}


def test_a_loss_that_is_not_finite_names_step_and_rows_and_keeps_the_weights(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    Explodes.calls.clear()
    saved = Checkpoints(tmp_path / "checkpoints")
    engine = make_engine(Explodes(), budget=8192, save_steps=1)
    with pytest.raises(StoppedError, match=r"step 3: loss is nan, forget is nan.*rows: forget \d+"):
        engine.fit(emit=lambda event: None, checkpoints=saved)
    assert saved.steps() == [2]
    assert all(torch.isfinite(value).all() for value in weights(engine).values())


def test_a_full_disk_keeps_the_last_checkpoint(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Checkpoints(tmp_path / "checkpoints")
    engine = make_engine(FineTuneForget(), save_steps=1)
    write = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if "000003" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StoppedError, match=r"step 3 could not be written.*No space left") as caught:
        engine.fit(emit=lambda event: None, checkpoints=saved)
    assert "resumes from step 2" in (caught.value.hint or "")
    assert [path.name for path in saved.folder.iterdir()] == ["step-000002"]


def test_old_checkpoints_go_only_after_the_new_one_is_there(make_engine: MakeEngine, tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path / "checkpoints", keep=2)
    fit(make_engine(FineTuneForget(), steps=5, save_steps=1), saved)
    assert saved.steps() == [4, 5]


def test_gradient_checkpointing_changes_nothing(make_engine: MakeEngine) -> None:
    plain, saving = make_engine(FineTuneForget()), make_engine(FineTuneForget(), gradient_checkpointing=True)
    assert [e["loss"] for e in fit(plain)] == pytest.approx([e["loss"] for e in fit(saving)], rel=1e-6)


def test_the_last_partial_batch_counts(make_engine: MakeEngine) -> None:
    engine = make_engine(FineTuneForget(), steps=3)
    assert engine.stream.steps_per_epoch == 3
    rows = [len(engine.stream.next().rows["forget"]) for _ in range(3)]
    assert rows == [4, 4, 3]
