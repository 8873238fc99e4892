"""Logits in chunks: the same values and gradients as from all logits at once, and never more than a chunk of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from expunge.catalog import METHODS
from expunge.config.schema import ModelSection
from expunge.data.collate import Batch, collate
from expunge.data.encode import Dataset
from expunge.evals.trace import token_stats
from expunge.losses.logprobs import normalise
from expunge.models.adapters import attach
from expunge.models.chunks import LOGIT_BYTES, chunk_of, per_position
from expunge.models.head import Finish, Head, Projected, projection
from expunge.models.reference import Reference
from expunge.models.reference_table import reference_table
from expunge.models.score import Scored, obstacle, score
from expunge.models.scratch import new_model
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.engine import Engine
from expunge.train.microbatch import Plan
from expunge.train.step import StepRun

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from layouts import Task, carry_out, in_processes
from small_world import SMALL, build_engine, encoded

VOCAB = 384
CHUNKS = (1, 7, 10_000)


@dataclass(frozen=True)
class Case:
    """A method with keys of its own."""

    method: str
    keys: Mapping[str, Any]
    wrappers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join((self.method, *(str(value) for value in self.keys.values()), *self.wrappers))


CASES = [
    *(Case(name, SMALL.get(name, {})) for name in METHODS.names() if name != "oracle_matching"),
    Case("oracle_matching", {"num_oracles": 1, "oracle_epochs": 1}),
    Case("oracle_matching", {"num_oracles": 1, "oracle_epochs": 1, "distance": "kl"}),
    Case("whp", {"labels": "soft", "reinforced_epochs": 1}),
    Case("eua", {"temperature": 2.0, "margin": "scalar"}),
    Case("eua", {"energy_positions": "attended", "fill": "neg_inf"}),
    Case("grad_ascent", {"temperature": 2.0, "lowest_loss_fraction": 0.5}),
    Case("simnpo", {"retain": "kl", "kl_positions": "attended"}),
    Case("grad_diff", {"retain": "hidden", "retain_layer": 0}),
    Case("undial", {"alpha": 1.0, "retain": "kl"}),
    Case("npo", {}, wrappers=("energy",)),
]


class Widest(TorchDispatchMode):
    """Remembers the largest number of rows of a vocabulary's width that any operation made."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor) and each.is_floating_point() and each.ndim > 1 and each.shape[-1] == VOCAB:
                # The head's weight, transposed, is as wide.
                self.rows = max(self.rows, 0 if len(each) == 32 else each.numel() // VOCAB)
        return made


class Step(NamedTuple):
    loss: Tensor
    gradient: dict[str, Tensor]


@pytest.fixture(scope="module")
def rows() -> dict[str, Dataset]:
    return encoded(tiny_tokenizer(vocab_size=VOCAB))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))


def world(rows: Mapping[str, Dataset], case: Case, folder: Path, **settings: Any) -> Engine:
    tokenizer = tiny_tokenizer(vocab_size=VOCAB)
    return build_engine(
        tokenizer,
        dict(rows),
        METHODS.load(case.method)(**case.keys),
        folder=folder,
        budget=2048,
        model=settings.pop("model", None) or tiny_llama(len(tokenizer), seed=1).double(),
        wrappers=[{"name": name} for name in case.wrappers],
        global_batch_size=2,
        **settings,
    )


def step(engine: Engine, plan: Plan, chunk: int | None) -> Step:
    engine.logits_chunk = chunk
    for parameter in engine.trained.values():
        parameter.grad = None
    run = StepRun(engine, plan)
    losses = run.backward(*run.roles)
    return Step(losses.total, {name: p.grad.clone() for name, p in engine.trained.items() if p.grad is not None})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_chunk_changes_neither_loss_nor_gradient(case: Case, rows: dict[str, Dataset], tmp_path: Path) -> None:
    engine = world(rows, case, tmp_path)
    plan = engine.splitter(engine.stream.next())
    scored = min(int(engine.splitter.scored[each.role][each.rows].sum()) for each in plan.micro_batches)
    assert projection(engine.model).obstacle == ""
    whole = step(engine, plan, None)
    assert whole.gradient
    for chunk in CHUNKS:
        with Widest() if chunk == 7 else nullcontext() as widest:
            parts = step(engine, plan, chunk)
        assert torch.allclose(parts.loss, whole.loss, rtol=1e-10, atol=1e-12)
        assert parts.gradient.keys() == whole.gradient.keys()
        for name, expected in whole.gradient.items():
            assert torch.allclose(parts.gradient[name], expected, rtol=1e-10, atol=1e-10), name
        assert widest is None or widest.rows <= chunk < scored


SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
    "phi": {},  # Its head has a bias.
}


def batch_of(rows: Mapping[str, Dataset], count: int = 3) -> Batch:
    return collate(rows["forget"], list(range(count)), pad_id=0)


def gradients(scored: Scored, model: nn.Module) -> dict[str, Tensor]:
    """Of something that reads every position and the whole distribution."""
    loss = (scored.logps.sin() + scored.scaled_lse(2.0)).sum()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_does_after_its_head_is_done_to_each_chunk(family: str, rows: dict[str, Dataset]) -> None:
    tokenizer = tiny_tokenizer(vocab_size=VOCAB)
    model = new_model({"model_type": family, **SIZE, **FAMILIES[family]}, tokenizer, seed=1).double()
    if model.lm_head.bias is not None:
        nn.init.normal_(model.lm_head.bias)
    whole, parts = (score(model, batch_of(rows), logits_chunk=chunk) for chunk in (None, 5))
    assert isinstance(parts.distribution, Projected)
    assert torch.allclose(parts.logits, whole.logits, rtol=1e-12)
    expected = gradients(whole, model)
    for name, found in gradients(parts, model).items():
        assert torch.allclose(found, expected[name], rtol=1e-10, atol=1e-12), name


def doubled(model: Any) -> Any:
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)
    return model


class OtherLinear(nn.Linear):
    """What an adapter or a quantised layer is."""


def other_head(model: Any) -> Any:
    model.lm_head.__class__ = OtherLinear
    return model


@pytest.mark.parametrize(
    ("change", "reason"), [(doubled, "in a way its config does not say"), (other_head, "is a OtherLinear")]
)
def test_a_head_that_is_not_understood_gives_all_logits_and_a_run_says_so(
    change: Callable[[Any], Any], reason: str, rows: dict[str, Dataset], tmp_path: Path
) -> None:
    model = change(tiny_llama(VOCAB, seed=1))
    scored = score(model, batch_of(rows), logits_chunk=2)
    assert isinstance(scored.distribution, Tensor)
    assert reason in obstacle(model, 2, count=3)
    assert obstacle(model, None, count=3) == obstacle(model, 2, count=2) == ""
    events: list[dict[str, Any]] = []
    world(rows, Case("npo", {}), tmp_path, model=model, logits_chunk=2, steps=1).fit(emit=events.append)
    assert [event["event"] for event in events] == ["warning", "step"]
    assert reason in events[0]["text"]


def test_logits_are_made_in_chunks_where_all_of_them_would_be_large() -> None:
    cpu = torch.device("cpu")
    assert chunk_of("auto", count=131, vocab=128_000, device=cpu) is None
    assert chunk_of("auto", count=132, vocab=128_000, device=cpu) == 131
    assert chunk_of("auto", count=20_000, vocab=400, device=cpu) is None
    assert chunk_of("auto", count=10, vocab=1 << 30, device=cpu) == 1
    assert chunk_of("auto", count=132, vocab=128_000, device=torch.device("cuda")) is None
    assert chunk_of(None, count=10**6, vocab=128_000, device=cpu) is None
    assert (chunk_of(8, count=8, vocab=9, device=cpu), chunk_of(8, count=9, vocab=9, device=cpu)) == (None, 8)


def test_hidden_states_are_kept_beside_chunks_and_a_shortened_forward_has_no_logits(rows: dict[str, Dataset]) -> None:
    model, batch = tiny_llama(VOCAB, seed=1), batch_of(rows)
    whole, parts = (score(model, batch, hidden=0, logits_chunk=chunk) for chunk in (None, 4))
    assert whole.hidden is not None
    assert parts.hidden is not None
    assert torch.equal(parts.hidden, whole.hidden)
    assert parts.vocab == VOCAB
    assert isinstance(parts.distribution, Projected)
    short = score(model, batch, hidden=0, truncate=True, logits_chunk=4)
    assert short.logits.shape == (len(batch.targets), 0)


def test_under_autocast_chunks_are_as_exact_as_all_logits(rows: dict[str, Dataset]) -> None:
    model, batch = tiny_llama(VOCAB, seed=1), batch_of(rows, 6)
    exact = gradients(score(model, batch, logits_chunk=None), model)["lm_head.weight"]
    errors = []
    for chunk in (None, 5):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scored = score(model, batch, logits_chunk=chunk)
        assert scored.logits.dtype == torch.bfloat16
        found = gradients(scored, model)["lm_head.weight"]
        assert found.dtype == torch.float32
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 1.2 * errors[0] < 0.05


def test_forwards_without_gradient_leave_nothing_to_differentiate(rows: dict[str, Dataset]) -> None:
    model, batch = tiny_llama(VOCAB, seed=1), batch_of(rows)
    with torch.no_grad():
        scored = score(model, batch, logits_chunk=4)
    assert not scored.logps.requires_grad
    assert not scored.logits.requires_grad
    with torch.inference_mode():
        asked = partial(token_stats, moments=False)
        parts, whole = (score(model, batch, logits_chunk=chunk).per_position(asked) for chunk in (4, None))
    assert parts.rank is None
    assert torch.equal(parts.hit, whole.hit)
    assert torch.allclose(parts.logp, whole.logp)


def projected(step: int) -> Projected:
    generator = torch.Generator().manual_seed(0)
    shapes = {"states": (5, 3), "weight": (7, 3), "bias": (7,)}
    made = {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    return Projected(made["states"], Head(made["weight"], made["bias"], Finish(1.5, 2.0)), step)


def test_a_second_derivative_is_exact() -> None:
    held = projected(2)
    targets = torch.tensor([0, 1, 2, 3, 6])

    def loss(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        chunked = Projected(states, held.head._replace(weight=weight, bias=bias), held.step)
        return per_position(normalise, chunked, targets).logp.square().sum()

    leaves = (held.states, held.head.weight, held.head.bias)
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_values_beside_the_logits_are_constants_and_may_be_logits_to_be_made() -> None:
    held, other = projected(2), projected(3)
    weights = torch.rand(5, dtype=torch.float64, requires_grad=True)

    def product(logits: Tensor, theirs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return (logits * theirs).sum(-1) * weight, logits.argmax(-1)

    parts, best = per_position(product, held, other, weights)
    whole, expected = per_position(product, held[:], other, weights)
    assert torch.allclose(parts, whole)
    assert torch.equal(best, expected)
    parts.sum().backward()
    assert held.states.grad is not None
    assert other.states.grad is None
    assert weights.grad is None


def test_a_reference_table_is_the_same_in_chunks(rows: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tuple(Reference(kind) for kind in ("seq_logp", "token_logp", "eua_margin", "hidden"))
    model, batch = tiny_llama(VOCAB, seed=1), batch_of(rows, 6)

    def table(key: str) -> Any:
        made = reference_table(
            model, rows["forget"], asked, model_key=key, pad_id=0, positions="predict", token_budget=512
        )
        return made.values(batch)

    whole = table("whole")
    monkeypatch.setitem(LOGIT_BYTES, "cpu", 4 * VOCAB * 3)
    parts = table("parts")
    assert isinstance(score(model, batch).distribution, Projected)
    for name in ("seq_logp", "token_logp", "eua_margin", "logits"):
        assert torch.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "kl_min", "idk_dpo"])
def test_processes_that_copy_or_divide_a_model_agree_with_one(method: str, tmp_path: Path) -> None:
    task = Task(method, budget=256, settings={"logits_chunk": None})
    chunked = task._replace(settings={"logits_chunk": 5})
    alone = carry_out(task, tmp_path)
    tasks = [chunked, chunked._replace(divided=True)]
    for found in in_processes(tasks, tmp_path, cache=tmp_path / "cache"):
        for ours, theirs in zip(found["steps"], alone["steps"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
        assert found["weights"] == pytest.approx(alone["weights"], rel=1e-6)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "lm_head")])
def test_adapters_get_the_same_gradient(targets: Any, rows: dict[str, Dataset]) -> None:
    pytest.importorskip("peft")
    model = tiny_llama(VOCAB, seed=1)
    attach(model, ModelSection(use_peft=True, lora_r=2, lora_target_modules=targets), seed=0, base="", revision=None)
    model.double()
    whole, parts = (score(model, batch_of(rows), logits_chunk=chunk) for chunk in (None, 5))
    assert isinstance(parts.distribution, Projected) == (targets == "all-linear"), "an adapted head is not plain"
    expected = gradients(whole, model)
    assert all("lora" in name for name in expected)
    for name, found in gradients(parts, model).items():
        assert torch.allclose(found, expected[name], rtol=1e-10, atol=1e-12), name
