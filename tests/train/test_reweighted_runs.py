"""Whole runs of what needs a sum over the step, a table or a constant of its own: nothing physical changes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from small_world import build_engine

from expunge.data.encode import Dataset
from expunge.errors import DataError, UsageError
from expunge.losses.eua import eua_margins
from expunge.methods.base import Method
from expunge.methods.bs_t import BST
from expunge.methods.ceu import CEU
from expunge.methods.eua import EUA
from expunge.methods.grad_ascent import GradAscent
from expunge.methods.grad_diff import GradDiff
from expunge.methods.idk_nll import IdkNLL
from expunge.methods.kl_min import KLMin
from expunge.methods.npo import NPO
from expunge.methods.rmu import RMU
from expunge.methods.simimp import SimImp
from expunge.methods.simsat import SimSat
from expunge.train.engine import Engine
from expunge.train.monitor import VOLATILE

MakeEngine = Callable[..., Engine]
ANNOTATED: dict[str, Any] = {"importance": "annotated"}
METHODS: list[Method] = [
    GradAscent(temperature=2.0, lowest_loss_fraction=0.6),
    GradDiff(retain="hidden", retain_layer=1),
    GradDiff(retain="hidden", retain_layer=-1, kl_positions="attended"),
    KLMin(),
    SimSat(level="group", group_size=3),
    SimSat(level="batch", beta=0.01),
    SimImp(level="sequence"),
    SimImp(level="batch"),
    SimImp(level="top_k", fraction=0.4),
    SimImp(level="random", soft=0.8),
    SimImp(**ANNOTATED),
    SimSat(**ANNOTATED, soft=0.9),
    BST(gamma=0.1),
    EUA(margin="scalar", ratio=0.3),
    EUA(energy_positions="attended", fill="neg_inf", ratio=0.3),
    EUA(retain="kl", energy_positions="attended", margin="scalar", ratio=0.3),
]


def words(method: Method) -> str:
    return "-".join([method.name, *(str(getattr(method, key)) for key in sorted(method.model_fields_set))])


@pytest.fixture
def annotated(datasets: dict[str, Dataset]) -> dict[str, Dataset]:
    """The small world, whose forget rows say what is important in their answers."""
    forget = datasets["forget"]
    examples = tuple(
        replace(each, extra=MappingProxyType({"important": [each.answer.split()[1]]})) for each in forget.examples
    )
    return {**datasets, "forget": replace(forget, examples=examples)}


@pytest.fixture
def make(
    tokenizer: Any, annotated: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Engine]:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))

    def build(method: Method, **keys: Any) -> Engine:
        datasets = keys.pop("datasets", annotated)
        return build_engine(tokenizer, datasets, method, folder=tmp_path / "provision", **keys)

    return build


def fit(engine: Engine) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append)
    return [{key: value for key, value in event.items() if key not in VOLATILE} for event in events]


def same(one: Mapping[str, Any], two: Mapping[str, Any]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, float):
            value = pytest.approx(value, rel=2e-4, abs=1e-7)
        assert two[key] == value, key


@pytest.mark.parametrize("method", METHODS, ids=words)
def test_how_a_step_is_cut_changes_nothing(method: Method, make: MakeEngine) -> None:
    """One row a micro-batch, or all of them in one."""
    whole, cut = (fit(make(method, budget=budget, steps=3)) for budget in (4096, 64))
    assert any(event["grad_norm"] > 0 for event in whole)
    for one, two in zip(whole, cut, strict=True):
        same(one, two)


BASES: list[tuple[Method, str]] = [
    (NPO(), "token"),
    (GradAscent(), "scalar"),
    (SimImp(level="batch"), "token"),
    (IdkNLL(), "token"),
    (CEU(), "scalar"),
    (RMU(layer=1), "token"),
]


@pytest.mark.parametrize(("base", "margin"), BASES, ids=lambda value: getattr(value, "name", value))
def test_energy_terms_train_beside_a_method(base: Method, margin: str, make: MakeEngine) -> None:
    wrappers = [{"name": "energy", "gamma": 0.1, "margin": margin, "ratio": 0.3}]
    whole, cut = (fit(make(base, budget=budget, steps=2, wrappers=wrappers)) for budget in (4096, 64))
    assert {"forget_energy", "retain_energy"} <= whole[0].keys()
    for one, two in zip(whole, cut, strict=True):
        same(one, two)
    alone = fit(make(base, steps=1))
    assert whole[0]["forget"] == pytest.approx(alone[0]["forget"], rel=1e-5)
    assert whole[0]["forget_energy"] > 0


def test_scalar_margins_are_means_over_the_datasets(make: MakeEngine) -> None:
    engine = make(EUA(margin="scalar", ratio=0.3))
    assert engine.supply is not None
    workshop = engine.supply.workshop  # type: ignore[attr-defined]
    for place, (role, name) in enumerate({"retain": "m_in", "forget": "m_out"}.items()):
        parts = [
            eua_margins(scored.logits, ratio=0.3, temperature=1, fill="zero")[:, place]
            for _, scored in workshop.passes(workshop.datasets[role])
        ]
        assert engine.data.constants[name].item() == pytest.approx(torch.cat(parts).mean().item(), rel=1e-6)


def test_importance_becomes_a_table_of_the_forget_tokens(make: MakeEngine, annotated: dict[str, Dataset]) -> None:
    engine = make(SimImp(importance="annotated"))
    table = engine.data.tables["forget"].own["important"]
    assert table.shape == (annotated["forget"].supervised().sum(),)
    assert set(np.unique(table)) == {0, 1}


def test_annotations_from_a_file(make: MakeEngine, datasets: dict[str, Dataset], tmp_path: Path) -> None:
    path = tmp_path / "important.json"
    path.write_text(json.dumps({str(row): "Forget" for row in range(11)}))
    named = fit(make(SimImp(importance="annotated", annotations=path), datasets=datasets, steps=1))
    assert named[0]["forget"] != 0


def test_missing_annotations_say_how_to_make_them(make: MakeEngine, datasets: dict[str, Dataset]) -> None:
    with pytest.raises(DataError, match="11 of 11 forget rows do not say what is important") as caught:
        make(SimImp(importance="annotated"), datasets=datasets)
    assert "important" in str(caught.value.hint)
    assert "method.annotations" in str(caught.value.hint)


def test_weights_that_are_all_zero_are_refused(make: MakeEngine) -> None:
    for level in ("sequence", "batch"):
        with pytest.raises(UsageError, match="every weight is zero"):
            make(SimSat(beta=50, level=level))


def test_a_ratio_that_selects_no_token_is_refused(make: MakeEngine) -> None:
    for margin in ("token", "scalar"):
        with pytest.raises(UsageError, match=r"ratio 0\.0001 selects 0 of"):
            make(EUA(ratio=1e-4, margin=margin))


def test_a_layer_that_does_not_exist_lists_those_that_do(make: MakeEngine) -> None:
    with pytest.raises(UsageError, match="layer 7 does not exist: LlamaForCausalLM has 2 blocks"):
        make(GradDiff(retain="hidden", retain_layer=7))


def test_hidden_states_of_padding_are_in_no_table(make: MakeEngine) -> None:
    with pytest.raises(Exception, match="depend on the padding"):
        make(GradDiff(retain="hidden", retain_layer=0, kl_positions="all"))
