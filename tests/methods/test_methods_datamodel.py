"""One-step influence and oracle matching: what a step comes to, and where nothing must move."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from expunge import api
from expunge.config.schema import DataSection, ModelSection, TrainSection
from expunge.data.encode import Dataset
from expunge.data.prepare import prepare, template_of
from expunge.errors import ModelError, UsageError
from expunge.losses.oracle import centred, oracle_kl_loss, oracle_mse_loss
from expunge.methods.iau import IAU
from expunge.methods.oracle_matching import TABLE, OracleMatching
from expunge.models.load import load_model, load_tokenizer
from expunge.runs.run import Run
from expunge.testing.contexts import make_context
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.optim import Optimizers
from expunge.train.provision import read_provision

Unlearn = Callable[..., Path]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder, with forget and retain rows beside it."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer), seed=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for role, count in (("forget", 5), ("retain", 9)):
        rows = [{"question": f"Who is {role} {i}?", "answer": f"It is {role[: 2 + i % 4]}."} for i in range(count)]
        (tmp_path / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "model"


@pytest.fixture
def unlearn(start: Path) -> Unlearn:
    """Carry a recipe out on it; the run directory."""

    def run(method: dict[str, Any], name: str = "run", **train: Any) -> Path:
        recipe = {
            "model": {"model_name_or_path": str(start)},
            "data": data_section(start).model_dump(mode="json", exclude_unset=True),
            "method": method,
            "train": {"token_budget": 256, "global_batch_size": 3, **train},
            "output_dir": str(start.parent / name),
            "device": "cpu",
        }
        return api.unlearn(recipe).path

    return run


def data_section(start: Path) -> DataSection:
    sources = {role: str(start.parent / f"{role}.jsonl") for role in ("forget", "retain")}
    return DataSection.model_validate({**sources, "max_length": 128})


def weights(folder: Path) -> dict[str, Tensor]:
    model = load_model(ModelSection(model_name_or_path=str(folder)), device=torch.device("cpu")).model
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def encoded(start: Path) -> dict[str, Dataset]:
    data = data_section(start)
    template = template_of(data, load_tokenizer(str(start)))
    return dict(prepare(data, template, roles=("forget", "retain")).datasets)


def likelihood_gradient(folder: Path, dataset: Dataset) -> tuple[dict[str, Tensor], int]:
    """Gradient of the summed NLL of the answers, by transformers' own logits, and the number of tokens."""
    model = load_model(ModelSection(model_name_or_path=str(folder)), device=torch.device("cpu")).model
    total, count = torch.zeros(()), 0
    for item in dataset.encoded:
        ids = torch.from_numpy(item.input_ids).long()[None]
        mask = torch.from_numpy(item.supervised)[1:]
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + nn.functional.cross_entropy(logits[mask], ids[0, 1:][mask], reduction="sum")
        count += int(mask.sum())
    total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, count


# IAU


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_one_step_over_everything(reduce: str, start: Path, unlearn: Unlearn) -> None:
    rate = 0.1 if reduce == "mean" else 0.001
    run = unlearn({"name": "iau", "reduce": reduce}, learning_rate=rate)
    before, after, datasets = weights(start), weights(run / "model"), encoded(start)
    (forget, nf), (retain, nr) = (likelihood_gradient(start, datasets[role]) for role in ("forget", "retain"))
    scales = (1 / nf, 1 / nr) if reduce == "mean" else (1.0, 1.0)
    moved = 0.0
    for name, value in after.items():
        expected = before[name] + rate * (scales[0] * forget[name] - scales[1] * retain[name])
        assert torch.allclose(value, expected, atol=1e-6), name
        moved = max(moved, float((value - before[name]).abs().max()))
    assert moved > 1e-4
    (step,) = (event for event in Run.open(run).events() if event["event"] == "step")
    assert (step["step"], step["total"], step["lr"]) == (1, 1, rate)
    assert Run.open(run).manifest.resolved["train"]["optim"] == "sgd"


@pytest.mark.slow
def test_the_plan_counts_one_step_of_all_rows(start: Path) -> None:
    plan = api.plan(
        {
            "train": {"learning_rate": 10},
            "model": {"model_name_or_path": str(start)},
            "data": data_section(start).model_dump(mode="json", exclude_unset=True),
            "method": {"name": "iau"},
            "device": "cpu",
        }
    )
    assert (plan.steps, plan.batch, plan.memory.optimizer) == (1, {"forget": 5, "retain": 9}, 0)
    assert plan.warnings == ()


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_equal_sets_cancel(reduce: str) -> None:
    method = IAU(reduce=reduce)
    ctx = make_context(method, "forget")
    (forget,), (retain,) = (method.losses(replace(ctx, role=role)).values() for role in ("forget", "retain"))
    assert forget.reduction == retain.reduction
    assert torch.equal(forget.values + retain.values, torch.zeros_like(forget.values))


@settings(derandomize=True, max_examples=25)
@given(st.integers(0, 1000), st.floats(1e-4, 1.0))
def test_on_a_quadratic_the_step_is_exact(seed: int, rate: float) -> None:
    """`L_r - L_f` of two quadratics: SGD's step is `eta (grad L_f - grad L_r)`, a fresh Adam's only its sign."""
    generator = torch.Generator().manual_seed(seed)
    value, forget, retain = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    for optim in ("sgd", "adamw"):
        model = Line(value)
        section = TrainSection(optim=optim, learning_rate=rate, lr_scheduler_type="constant", adam_epsilon=0)
        optimizers = Optimizers(model, section, total_steps=1)
        loss = 0.5 * ((model.weight - retain) ** 2).sum() - 0.5 * ((model.weight - forget) ** 2).sum()
        loss.backward()
        optimizers.step()
        step = (value - forget) - (value - retain)
        expected = value + rate * (step if optim == "sgd" else step.sign())
        assert torch.allclose(model.weight.detach(), expected, atol=1e-12)


class Line(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value.clone())

    def get_input_embeddings(self) -> None:
        return None

    def get_output_embeddings(self) -> None:
        return None


# Oracle losses


@pytest.mark.parametrize("loss", [oracle_mse_loss, oracle_kl_loss])
def test_a_constant_per_position_changes_nothing(loss: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    shift = 10 * torch.randn(5, 1, generator=generator, dtype=torch.float64)
    values = loss(logits, target)
    assert values.shape == (5,)
    assert (values > 0).all()
    assert torch.allclose(loss(logits + shift, target), values)
    assert torch.allclose(loss(logits, target - shift), values)
    assert torch.allclose(loss(target + shift, target), torch.zeros(5, dtype=torch.float64), atol=1e-12)


def test_the_mse_of_two_logits() -> None:
    values = oracle_mse_loss(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 0.0]]))
    assert values.tolist() == [1.0]


def test_linear_models_converge_to_the_retrained_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, solution = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((40, 4), (4, 6)))
    weight = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, tolerance_grad=1e-14, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = oracle_mse_loss(inputs @ weight, inputs @ solution).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert torch.allclose(centred(weight.detach()), centred(solution), atol=1e-6)


# Oracle matching


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_the_starting_model_as_its_own_oracle_is_a_fixed_point(distance: str, start: Path, unlearn: Unlearn) -> None:
    method = {"name": "oracle_matching", "oracles": [str(start)], "distance": distance}
    run = unlearn(method, optim="sgd", learning_rate=0.1, max_steps=4)
    steps = [event for event in Run.open(run).events() if event["event"] == "step"]
    assert max(abs(event["loss"]) for event in steps) < 1e-6
    for name, value in weights(run / "model").items():
        assert torch.allclose(value, weights(start)[name], atol=1e-6), name


def test_a_run_is_an_oracle_and_the_mean_of_several_is_matched(start: Path, unlearn: Unlearn) -> None:
    tokenizer = tiny_tokenizer()
    folders = []
    for seed in (5, 6):
        folder = start.parent / f"oracle-{seed}"
        tiny_llama(len(tokenizer), seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    method = {"name": "oracle_matching", "oracles": [str(folder) for folder in folders]}
    run = unlearn(method, learning_rate=1e-3, max_steps=6)
    steps = [event for event in Run.open(run).events() if event["event"] == "step"]
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    table = read_provision(run / "provision/epoch-0000").tables["forget"][TABLE]
    dataset = encoded(start)["forget"]
    expected = np.mean([answer_logits(folder, dataset) for folder in folders], axis=0)
    assert np.allclose(table, expected, atol=1e-5)

    assert unlearn({"name": "oracle_matching", "oracles": [str(run)]}, name="second", max_steps=1).is_dir()


def answer_logits(folder: Path, dataset: Dataset) -> np.ndarray:
    model = load_model(ModelSection(model_name_or_path=str(folder)), device=torch.device("cpu")).model
    found = []
    for item in dataset.encoded:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(item.input_ids).long()[None]).logits[0, :-1]
        found.append(centred(logits[torch.from_numpy(item.supervised)[1:]]).numpy())
    return np.concatenate(found)


def test_oracles_are_trained_where_none_are_given(start: Path, unlearn: Unlearn) -> None:
    method = {"name": "oracle_matching", "num_oracles": 2, "oracle_epochs": 1}
    one, two = (unlearn(method, name=name, max_steps=1) for name in ("one", "two"))
    first, again = (read_provision(run / "provision/epoch-0000").tables for run in (one, two))
    assert first["retain"][TABLE].shape[1] == len(tiny_tokenizer())
    for role in ("forget", "retain"):
        assert np.array_equal(first[role][TABLE], again[role][TABLE])
    alone = unlearn({**method, "num_oracles": 1}, name="alone", max_steps=1)
    table = read_provision(alone / "provision/epoch-0000").tables["forget"][TABLE]
    assert not np.allclose(table, first["forget"][TABLE])


def test_a_table_that_would_be_too_large_is_refused_before_any_training(unlearn: Unlearn) -> None:
    with pytest.raises(UsageError, match=r"oracle_matching keeps \d+ answer tokens times \d+ .*max_table_gb is 1e-05"):
        unlearn({"name": "oracle_matching", "max_table_gb": 1e-5})


def test_an_oracle_of_other_tokens_is_refused(start: Path, unlearn: Unlearn) -> None:
    other = tiny_tokenizer(["entirely other words"] * 3, vocab_size=300)
    tiny_llama(len(other), seed=2).save_pretrained(start.parent / "other")
    other.save_pretrained(start.parent / "other")
    with pytest.raises(ModelError, match="has another tokenizer than the starting model"):
        unlearn({"name": "oracle_matching", "oracles": [str(start.parent / "other")]})
    tiny_llama(len(tiny_tokenizer()) + 8, seed=2).save_pretrained(start.parent / "wide")
    tiny_tokenizer().save_pretrained(start.parent / "wide")
    with pytest.raises(ModelError, match="an oracle has 392 logits, the starting model 384"):
        unlearn({"name": "oracle_matching", "oracles": [str(start.parent / "wide")]}, name="second")


def test_nothing_is_ascended() -> None:
    method = OracleMatching(gamma=2.0, alpha=0.5)
    ctx = make_context(method, "forget")
    own = {TABLE: torch.randn(ctx.scored.logits.shape)}
    for role, weight in {"forget": 2.0, "retain": 0.5}.items():
        (term,) = method.losses(replace(ctx, role=role, ref=ctx.ref._replace(own=own))).values()
        assert term.weight == weight
        assert (term.values >= 0).all()
