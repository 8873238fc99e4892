"""`transformers.Trainer` with a method's losses: one of its optimizer steps is one of the engine's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from expunge import api
from expunge.catalog import METHODS
from expunge.errors import UsageError
from expunge.integrations.trainer import Labels, Pairs, StepCounts, loss_func, trainer_parts
from expunge.methods.npo import NPO
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.reduce import Counts

ROWS = 8


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and as many forget as retain rows, of unequal lengths: one step of eight takes them all."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    for role in ("forget", "retain"):
        rows = [
            {"question": f"Who wrote book {i} of {role}?", "answer": f"{'Mira Solen ' * (1 + i % 3)}wrote {i}."}
            for i in range(ROWS)
        ]
        (tmp_path / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer), seed=1).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path


def recipe(world: Path, method: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "model": {"model_name_or_path": str(world / "start")},
        "data": {"forget": str(world / "forget.jsonl"), "retain": str(world / "retain.jsonl"), "max_length": 128},
        "method": method,
        "device": "cpu",
        **more,
    }


def arguments(world: Path, *, batch: int, accumulation: int, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        str(world / "trainer"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        **({"max_steps": 1} | more),
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


METHOD = (
    {"name": "npo", "beta": 0.5},
    {"name": "eua", "gamma": 1.0, "ratio": 0.2},
    {"name": "grad_diff", "retain": "kl"},
    {"name": "simnpo"},
    {"name": "wga"},
)


@pytest.mark.parametrize("method", METHOD, ids=lambda method: method["name"])
@pytest.mark.slow
def test_a_step_of_trainer_is_a_step_of_the_engine(method: dict[str, Any], world: Path) -> None:
    train = {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "max_steps": 1}
    train |= {"global_batch_size": ROWS, "token_budget": 128}
    run = api.unlearn(recipe(world, method, train=train, output_dir=str(world / "run")))
    theirs = weights(AutoModelForCausalLM.from_pretrained(run.path / "model"))
    start = weights(AutoModelForCausalLM.from_pretrained(world / "start"))
    for batch, accumulation in ((ROWS, 1), (3, 3)):
        parts = trainer_parts(recipe(world, method))
        trainer = Trainer(args=arguments(world, batch=batch, accumulation=accumulation), **parts)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(run.last["loss"], rel=1e-3)
        for name, value in weights(trainer.model).items():
            moved = (theirs[name] - start[name]).abs().max()
            assert moved > 0, name
            assert torch.allclose(value, theirs[name], atol=float(moved) * 1e-3), (name, batch)


def test_several_epochs_lower_the_likelihood_and_save_a_plain_folder(world: Path) -> None:
    parts = trainer_parts(recipe(world, {"name": "npo"}))
    more = {"max_steps": -1, "num_train_epochs": 6}
    trainer = Trainer(args=arguments(world, batch=4, accumulation=2, **more), **parts)
    trainer.train()
    losses = [event["loss"] for event in trainer.state.log_history if "loss" in event]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    trainer.save_model(str(world / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(world / "saved")
    assert all(p.equal(q) for p, q in zip(saved.parameters(), trainer.model.parameters(), strict=True))


def test_pairs_take_every_retain_row_before_one_comes_again() -> None:
    pairs, drawn = Pairs(4, 3, seed=1), []
    for epoch in range(3):
        pairs.set_epoch(epoch)
        drawn += [pairs[index].retain for index in range(4)]
    assert [sorted(drawn[i : i + 3]) for i in range(0, 12, 3)] == [[0, 1, 2]] * 4
    assert len({tuple(drawn[i : i + 3]) for i in range(0, 12, 3)}) > 1
    assert [pairs[index].retain for index in (3, 0)] == [drawn[11], drawn[8]]
    assert Pairs(2, 0)[1] == (1, None)


def test_trainer_tells_the_pairs_which_epoch_it_is(world: Path) -> None:
    parts = trainer_parts(recipe(world, {"name": "simnpo"}))
    Trainer(args=arguments(world, batch=8, accumulation=1, max_steps=3), **parts).train()
    assert parts["train_dataset"].epoch == 2


def test_counts_add_up_by_role_and_refuse_to_become_one_number() -> None:
    one, two = (StepCounts({"forget": Counts(n, 1), "retain": Counts(2 * n, 1)}) for n in (3, 4))
    whole = sum([one, two])
    assert isinstance(whole, StepCounts)
    assert whole.everywhere()["forget"][:3] == (7, 2, 2)
    assert whole.everywhere()["retain"][:3] == (14, 2, 2)
    with pytest.raises(UsageError, match="average_tokens_across_devices=False"):
        whole.to("cpu")


def test_what_trainer_cannot_feed_is_refused(world: Path) -> None:
    with pytest.raises(UsageError, match="no train"):
        trainer_parts(recipe(world, {"name": "npo"}, train={"learning_rate": 1e-4}))
    with pytest.raises(UsageError, match="rows of its own"):
        trainer_parts(recipe(world, {"name": "idk_dpo"}, data={"refusals": "x", "forget": "x", "retain": "x"}))
    with pytest.raises(UsageError, match="the output of a block"):
        loss_func(METHODS.load("rmu")(layer=1))
    with pytest.raises(UsageError, match="labels of Tensor"):
        loss_func(NPO())(None, torch.zeros(1), num_items_in_batch=torch.tensor(3))
    with pytest.raises(UsageError, match="counts of NoneType"):
        loss_func(NPO())(None, Labels({}))


def test_most_methods_on_forget_and_retain_rows_have_a_place() -> None:
    found = set()
    for name in METHODS.names():
        try:
            loss_func(METHODS.load(name)())
        except UsageError:
            continue
        found.add(name)
    assert {"grad_ascent", "grad_diff", "kl_min", "npo", "simnpo", "wga", "tnpo", "satimp", "eua", "undial"} <= found
