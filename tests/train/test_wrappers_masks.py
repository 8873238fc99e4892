"""Masks: exactly the chosen entries move, whatever decays or remembers, and a resumed run has the same mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.catalog import METHODS
from expunge.data.encode import Dataset
from expunge.errors import DataError, StoppedError, UsageError
from expunge.testing.tiny import tiny_llama
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Engine
from expunge.train.monitor import VOLATILE
from expunge.train.wrappers.layers import LayersMask, chosen_parameters, layer_numbers
from expunge.train.wrappers.select import build_wrapper, wrap
from expunge.train.wrappers.wagle import WAGLE, EntryMask, largest, share_of, wagle_score

MakeEngine = Callable[..., Engine]


def fit(engine: Engine, checkpoints: Checkpoints | None = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append, checkpoints=checkpoints)
    return [{k: v for k, v in event.items() if k not in VOLATILE} for event in events]


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32)


def fixed(engine: Engine) -> Mapping[str, Tensor]:
    (mask,) = engine.masks
    assert isinstance(mask, EntryMask)
    return mask.fixed


# The score and the choice

THETA, G_F, G_R = (
    torch.tensor(values, dtype=torch.float64)
    for values in ([0.1, -0.2, 0.3, 0.05], [1, 0.5, -2, 0], [0.2, -0.1, 0.1, 5])
)


def test_the_published_score() -> None:
    score = wagle_score(THETA, G_F, G_R, gamma=2)
    assert score.tolist() == pytest.approx([0, -0.075, -0.5, 0])
    assert largest({"w": score.abs()}, 2)["w"].tolist() == [False, True, True, False]


def test_the_limits_of_gamma() -> None:
    assert wagle_score(THETA, G_F, G_R, gamma=1e12).tolist() == pytest.approx((THETA * G_F).tolist(), abs=1e-6)
    small = wagle_score(THETA, G_F, G_R, gamma=1e-12).abs() * 1e-12
    assert small.tolist() == pytest.approx((G_R * G_F).abs().tolist(), abs=1e-6)


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 1e-30, 0.5, 0.75, 1.0, 3.0, 1e20]), min_size=1, max_size=9), max_size=4),
    st.integers(0, 40),
)
def test_the_threshold_is_that_of_a_stable_sort(tensors: list[list[float]], wanted: int) -> None:
    flat = [value for values in tensors for value in values]
    count = min(wanted, len(flat))
    masks = largest({str(i): torch.tensor(values) for i, values in enumerate(tensors)}, count)
    order = sorted(range(len(flat)), key=lambda place: -flat[place])
    expected = set(order[:count])
    found = [bool(value) for mask in masks.values() for value in mask]
    assert found == [place in expected for place in range(len(flat))]


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10_000))
def test_single_numbers_are_chosen_as_by_sorting(count: int, seed: int) -> None:
    scores = torch.randn(60, generator=torch.Generator().manual_seed(seed)).abs()
    mask = largest({"a": scores[:20].reshape(4, 5), "b": scores[20:]}, count)
    found = torch.cat([each.flatten() for each in mask.values()])
    assert set(found.nonzero().flatten().tolist()) == set(scores.topk(count).indices.tolist())


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(StoppedError, match="scores of w are no numbers"):
        largest({"w": torch.tensor([1.0, math.nan])}, 1)


@pytest.mark.parametrize(
    ("ratio", "count", "share"), [(0.29, 100, 29), (0.95, 10, 9), (1.0, 7, 7), (0.5, 1, 0), (1e-7, 10**8, 10)]
)
def test_the_share_is_that_of_the_written_number(ratio: float, count: int, share: int) -> None:
    assert share_of(ratio, count) == share


# In a run


@pytest.mark.parametrize("score_loss", ["nll", "method"])
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_masked_entries_keep_their_bits(optim: str, score_loss: str, make_engine: MakeEngine) -> None:
    keys = {"name": "wagle", "ratio": 0.6, "score_loss": score_loss}
    engine = make_engine(METHODS.load("grad_diff")(), wrappers=[keys], optim=optim, weight_decay=0.5, steps=6)
    before, mask = weights(engine), dict(fixed(engine))
    total = sum(value.numel() for value in before.values())
    assert sum(int(each.sum()) for each in mask.values()) == total - math.floor(0.6 * total)
    fit(engine)
    moved = 0
    for name, value in weights(engine).items():
        held = mask.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(bits(value)[held], bits(before[name])[held]), name
        moved += int((value != before[name])[~held].sum())
    assert moved > 0.5 * total


def test_stale_momentum_does_not_move_what_a_mask_holds(make_engine: MakeEngine) -> None:
    """The mask comes when the optimizer already remembers gradients."""
    for optim in ("adamw", "muon"):
        engine = make_engine(METHODS.load("grad_diff")(), optim=optim, weight_decay=0.5, steps=6)
        engine.total_steps = 3
        fit(engine)
        before, named = weights(engine), dict(engine.model.named_parameters())
        half = {name: torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for name, p in named.items()}
        engine.masks, engine.total_steps = (EntryMask(half, named),), 6
        fit(engine)
        for name, value in weights(engine).items():
            assert torch.equal(bits(value)[~half[name]], bits(before[name])[~half[name]]), name
            assert (value != before[name])[half[name]].any(), name


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_mask_of_everything_leaves_every_bit(optim: str, make_engine: MakeEngine) -> None:
    engine = make_engine(METHODS.load("grad_diff")(), optim=optim, weight_decay=0.5, steps=4)
    before, named = weights(engine), dict(engine.model.named_parameters())
    engine.masks = (EntryMask({n: torch.zeros_like(p, dtype=torch.bool) for n, p in named.items()}, named),)
    assert [event["grad_norm"] for event in fit(engine)] == [0.0] * 4
    assert all(torch.equal(bits(value), bits(before[name])) for name, value in weights(engine).items())


def test_a_ratio_of_one_changes_nothing(make_engine: MakeEngine) -> None:
    plain = make_engine(METHODS.load("grad_diff")(), weight_decay=0.1)
    masked = make_engine(METHODS.load("grad_diff")(), wrappers=[{"name": "wagle", "ratio": 1.0}], weight_decay=0.1)
    assert fit(plain) == fit(masked)
    assert all(torch.equal(value, weights(masked)[name]) for name, value in weights(plain).items())


def test_where_the_mask_acts_decides_the_norm_that_is_clipped(make_engine: MakeEngine) -> None:
    def first(**keys: Any) -> dict[str, Any]:
        wrappers = [{"name": "wagle", "ratio": 0.1, "gamma": 1e6, **keys}] if keys else []
        return fit(make_engine(METHODS.load("grad_diff")(), wrappers=wrappers, steps=1))[0]

    plain, before, after = first(), first(after_clip=False), first(after_clip=True)
    assert before["grad_norm"] < plain["grad_norm"] == after["grad_norm"]


def test_the_mask_is_the_one_the_run_began_with(make_engine: MakeEngine, tmp_path: Path) -> None:
    def build() -> Engine:
        wrappers = [{"name": "gru"}, {"name": "wagle", "ratio": 0.4}]
        return make_engine(METHODS.load("npo")(), wrappers=wrappers, steps=6, save_steps=4, weight_decay=0.1)

    whole = build()
    start = weights(whole)
    events = fit(whole)
    saved = Checkpoints(tmp_path / "checkpoints")
    killed = build()
    with pytest.raises(SystemExit):
        killed.fit(emit=lambda event: exit() if event["step"] == 5 else None, checkpoints=saved)
    resumed = build()
    mask = dict(fixed(resumed))
    # As if this machine had ranked the weights otherwise.
    resumed.masks[0]._hold({name: torch.ones_like(p, dtype=torch.bool) for name, p in start.items()})  # type: ignore[attr-defined]
    assert saved.load(resumed) == 4
    assert fixed(resumed).keys() == mask.keys()
    assert all(torch.equal(fixed(resumed)[name], mask[name]) for name in mask)
    assert fit(resumed) == events[4:]
    for name, value in weights(resumed).items():
        assert torch.equal(value, weights(whole)[name]), name
        assert torch.equal(value[mask[name]], start[name][mask[name]]), name


def test_a_score_of_the_methods_own_loss_is_another_than_that_of_the_answers(make_engine: MakeEngine) -> None:
    """Refusals are what is trained on, so they rank the weights."""

    def masks(method: Any, score_loss: str) -> Mapping[str, Tensor]:
        keys = {"name": "wagle", "ratio": 0.5, "gamma": 1e6, "score_loss": score_loss}
        return fixed(make_engine(method, wrappers=[keys]))

    ascent = METHODS.load("grad_diff")(gamma=0.3)
    answers, same = masks(ascent, "nll"), masks(ascent, "method")
    differ = sum(int((answers[name] != same[name]).sum()) for name in answers)
    assert differ <= 4  # ascent has the same gradient times -0.3, up to rounding
    refusals = masks(METHODS.load("idk_dpo")(), "method")
    assert sum(int((answers[name] != refusals[name]).sum()) for name in answers) > 100


def test_a_ratio_that_selects_nothing_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match=r"ratio 1e-09 of \d+ weights is none"):
        make_engine(METHODS.load("grad_diff")(), wrappers=[{"name": "wagle", "ratio": 1e-9}])
    for ratio in (0, 1.5, -1, math.nan):
        with pytest.raises(UsageError, match="wrapper wagle, ratio"):
            build_wrapper({"name": "wagle", "ratio": ratio})
    with pytest.raises(UsageError, match="the wrapper wagle needs retain rows"):
        wrap(METHODS.load("grad_ascent")(), [{"name": "wagle"}])


def test_the_run_says_how_large_the_two_terms_are(
    tokenizer: Any, datasets: dict[str, Dataset], make_engine: MakeEngine
) -> None:
    engine = make_engine(METHODS.load("grad_diff")())
    workshop = engine.supply.workshop  # type: ignore[union-attr]
    said: list[str] = []
    workshop.progress = lambda event: said.append(event.get("text", ""))
    WAGLE(ratio=0.5).build(workshop, engine.model)
    assert "wagle lets " in said[-1]
    assert "times |theta g_f|" in said[-1]


# Layers


@pytest.mark.parametrize(
    ("written", "numbers"),
    [(1, (1,)), ("5-7", (5, 6, 7)), ("0, 2,5-6", (0, 2, 5, 6)), ([1, "3-4"], (1, 3, 4)), (-1, (-1,)), ("1,1", (1,))],
)
def test_how_layers_are_written(written: Any, numbers: tuple[int, ...]) -> None:
    assert layer_numbers(written) == numbers
    assert build_wrapper({"name": "layers", "layers": written}).layers == numbers  # type: ignore[attr-defined]


@pytest.mark.parametrize("written", ["7-5", "a", "1.5", 1.5, "", [], True, "-3-5"])
def test_layers_that_are_none_are_refused(written: Any) -> None:
    with pytest.raises(UsageError, match="wrapper layers"):
        build_wrapper({"name": "layers", "layers": written})


def test_what_is_chosen() -> None:
    model = tiny_llama(100)
    names = {name for name, _ in model.named_parameters()}
    first = chosen_parameters(model, (0,), None)
    assert first == {name for name in names if name.startswith("model.layers.0.")}
    assert chosen_parameters(model, (-1,), "mlp") == {
        f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }
    assert chosen_parameters(model, None, "lm_head|embed") == {"lm_head.weight", "model.embed_tokens.weight"}
    assert len(chosen_parameters(model, (0, 1), "(q|v)_proj")) == 4


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_frozen_parameters_keep_their_bits(optim: str, make_engine: MakeEngine) -> None:
    keys = {"name": "layers", "layers": 1, "modules": "mlp"}
    engine = make_engine(METHODS.load("grad_diff")(), wrappers=[keys], optim=optim, weight_decay=0.5)
    before = weights(engine)
    fit(engine)
    moved = [name for name, value in weights(engine).items() if not torch.equal(bits(value), bits(before[name]))]
    assert moved == [f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    remembered = {id(p) for o in engine.optimizers.each for group in o.param_groups for p in group["params"]}
    assert len(remembered) == 3


def test_layers_wagle_and_a_rule_go_together(make_engine: MakeEngine) -> None:
    wrappers = [{"name": "layers", "layers": 0}, {"name": "wagle", "ratio": 0.5}, {"name": "gru"}]
    engine = make_engine(METHODS.load("npo")(), wrappers=wrappers, weight_decay=0.5)
    before = weights(engine)
    mask = next(each for each in engine.masks if isinstance(each, EntryMask))
    fit(engine)
    for name, value in weights(engine).items():
        held = mask.fixed[name] if ".layers.0." in name else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(bits(value)[held], bits(before[name])[held]), name


def test_a_layer_or_module_that_does_not_exist_lists_what_does(make_engine: MakeEngine) -> None:
    method = METHODS.load("grad_diff")()
    with pytest.raises(UsageError, match="layer 2 does not exist: LlamaForCausalLM has 2 blocks") as error:
        make_engine(method, wrappers=[{"name": "layers", "layers": "0-7"}])
    assert error.value.hint == "layers are 0 to 1"
    with pytest.raises(UsageError, match="no module's name matches 'mpl'") as error:
        make_engine(method, wrappers=[{"name": "layers", "layers": 0, "modules": "mpl"}])
    assert "mlp.down_proj" in str(error.value.hint)
    with pytest.raises(UsageError, match="no module's name matches 'head_lm'") as error:
        make_engine(method, wrappers=[{"name": "layers", "modules": "head_lm"}])
    assert "model.layers.N.mlp.gate_proj" in str(error.value.hint)
    for keys in ({}, {"modules": "("}, {"layers": 0, "locate": {}}, {"locate": {"top": 0}}, {"locate": {"kind": "x"}}):
        with pytest.raises(UsageError, match="wrapper layers"):
            build_wrapper({"name": "layers", **keys})


def with_subjects(datasets: dict[str, Dataset]) -> dict[str, Dataset]:
    """The first of the rows names its subject in a column; the others have none."""
    forget = datasets["forget"]
    first = replace(forget.examples[0], extra=MappingProxyType({"subject": "Ashes of Noon"}))
    return {**datasets, "forget": replace(forget, examples=(first, *forget.examples[1:]))}


def test_layers_are_located_once_and_only_those_train(
    tokenizer: Any, datasets: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch, make_engine: MakeEngine
) -> None:
    monkeypatch.setattr("expunge.models.tracing._greedy", lambda model, fact: fact.answer)
    told = with_subjects(datasets)
    keys = {"name": "layers", "modules": "mlp", "locate": {"top": 1, "window": 1, "samples": 2}}
    engine = make_engine.func(tokenizer, told, METHODS.load("grad_diff")(), **make_engine.keywords, wrappers=[keys])  # type: ignore[attr-defined]
    before = weights(engine)
    fit(engine)
    moved = {name for name, value in weights(engine).items() if not torch.equal(value, before[name])}
    assert moved in [chosen_parameters(engine.model, (layer,), "mlp") for layer in (0, 1)]


def test_facts_that_cannot_be_traced_are_said(
    tokenizer: Any, datasets: dict[str, Dataset], make_engine: MakeEngine
) -> None:
    method, keys = METHODS.load("grad_diff")(), {"name": "layers", "locate": {"samples": 1}}
    with pytest.raises(DataError, match="no forget row says which words of its question name its subject"):
        make_engine(method, wrappers=[keys])
    with pytest.raises(DataError, match="the model begins none of 1 answers as their rows do"):
        make_engine.func(tokenizer, with_subjects(datasets), method, **make_engine.keywords, wrappers=[keys])  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="locate is to choose 5 of 2 layers"):
        make_engine(method, wrappers=[{"name": "layers", "locate": {"top": 5}}])


def test_another_choice_on_resume_is_refused() -> None:
    saved = LayersMask(frozenset({"a"})).state_dict()
    LayersMask(frozenset({"a"})).load_state_dict(saved)
    with pytest.raises(UsageError, match="chooses other layers than when this run began"):
        LayersMask(frozenset({"b"})).load_state_dict(saved)
