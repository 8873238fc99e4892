"""One step's passes: role by role or at once, totals before them, tables and rows a method made, frozen parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from expunge.catalog import METHODS
from expunge.data.example import Turn
from expunge.errors import DataError, UsageError
from expunge.losses.nll import nll_loss
from expunge.methods.base import Context, Method, Needs, Term
from expunge.methods.workshop import Provision, Workshop
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Engine
from expunge.train.monitor import VOLATILE
from expunge.train.step import StepRun
from expunge.train.wrappers.base import Combine, GradientMask, StepPass
from expunge.train.wrappers.select import wrap

MakeEngine = Callable[..., Engine]


def fit(engine: Engine, checkpoints: Checkpoints | None = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    engine.fit(emit=events.append, checkpoints=checkpoints)
    return [{k: v for k, v in event.items() if k not in VOLATILE} for event in events]


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


class Sum(Combine):
    """The plain sum, role by role."""

    def __call__(self, step: StepPass) -> None:
        parts = [step.gradient(role).tensors for role in step.roles]
        step.set({name: sum(part[name] for part in parts) for name in step.named})
        step.log("parts", len(parts))


@pytest.mark.parametrize("name", ["grad_diff", "eua", "idk_dpo"])
def test_gradients_of_the_roles_add_up_to_that_of_the_step(name: str, make_engine: MakeEngine) -> None:
    whole, apart = make_engine(METHODS.load(name)()), make_engine(METHODS.load(name)())
    apart.combine = Sum()
    for one, two in zip(fit(whole), fit(apart), strict=True):
        assert two.pop("parts") == 2
        assert one.keys() == two.keys()
        assert [two[key] for key in ("loss", "grad_norm")] == pytest.approx(
            [one[key] for key in ("loss", "grad_norm")], rel=1e-4
        )


def test_a_pass_for_a_role_that_is_not_there_is_a_bug(make_engine: MakeEngine) -> None:
    engine = make_engine(METHODS.load("grad_ascent")())
    run = StepRun(engine, engine.splitter(engine.stream.next()))
    with pytest.raises(ValueError, match="no role 'retain'"):
        run.gradient("retain")


class ByTotals(Method):
    """Ascent divided by a step total, and a fine-tuning term over linked rows alone."""

    name: ClassVar[str] = "by_totals"
    paper: ClassVar[str] = "none"
    before: ClassVar[str] = "scored"

    def needs(self) -> Needs:
        return Needs(roles=("forget",), linked={"alternate": "forget"}, totals="scored")

    def totals(self, ctx: Context) -> dict[str, Tensor]:
        return {"mass": ctx.scored.logps.exp().sum()}

    def losses(self, ctx: Context) -> dict[str, Term]:
        other = ctx.linked["alternate"]
        return {
            "forget": Term(ctx.scored.logps / ctx.totals["mass"], unit="token", reduction="sum"),
            "other": Term(nll_loss(other.scored.logps), unit="token", reduction="token_mean", dataset="alternate"),
        }


def test_totals_and_linked_counts_do_not_depend_on_the_micro_batches(make_engine: MakeEngine) -> None:
    small, large = fit(make_engine(ByTotals(), budget=64)), fit(make_engine(ByTotals(), budget=8192))
    for one, two in zip(small, large, strict=True):
        for key in ("forget", "other", "grad_norm"):
            assert one[key] == pytest.approx(two[key], rel=2e-4)


class LinkedOnly(ByTotals):
    """Reads the linked rows alone."""

    name: ClassVar[str] = "linked_only"

    def needs(self) -> Needs:
        return Needs(roles=("forget",), linked={"alternate": "forget"}, unscored=("forget",))

    def losses(self, ctx: Context) -> dict[str, Term]:
        values = nll_loss(ctx.linked["alternate"].scored.logps)
        return {"forget": Term(values, unit="token", reduction="token_mean", dataset="alternate")}


def test_a_role_that_only_carries_rows_is_not_forwarded(make_engine: MakeEngine) -> None:
    engine = make_engine(LinkedOnly())
    plan = engine.splitter(engine.stream.next())
    tokens = sum(int(engine.splitter.lengths["alternate"][mb.linked["alternate"]].sum()) for mb in plan.micro_batches)
    assert plan.tokens == tokens
    context = StepRun(engine, plan)._context("forget", [0], {"alternate": [0]}, {})
    with pytest.raises(UsageError, match="not forwarded"):
        _ = context.scored


class OnHidden(LinkedOnly):
    """Reads hidden states of a block."""

    name: ClassVar[str] = "hidden"
    truncated: bool = False

    def needs(self) -> Needs:
        return Needs(roles=("forget",), hidden={"forget": 0}, truncate=self.truncated)

    def losses(self, ctx: Context) -> dict[str, Term]:
        assert ctx.scored.hidden is not None
        assert (ctx.scored.logits.shape[1] == 0) is self.truncated
        return {"forget": Term(ctx.scored.hidden.square().mean(-1), unit="token", reduction="seq_mean")}


def test_a_forward_may_end_after_the_block_that_is_read(make_engine: MakeEngine) -> None:
    whole, cut = make_engine(OnHidden(), steps=2), make_engine(OnHidden(truncated=True), steps=2)
    assert [e["loss"] for e in fit(whole)] == [e["loss"] for e in fit(cut)]
    for name, value in weights(cut).items():
        assert torch.equal(value, weights(whole)[name]), name


class Inventor(Method):
    """Makes rows, a table and a constant; new rows every second epoch."""

    name: ClassVar[str] = "inventor"
    paper: ClassVar[str] = "none"
    short: bool = False

    def needs(self) -> Needs:
        return Needs(roles=("forget",), linked={"made": "forget"}, rows={"made": "made"})

    def prepare(self, workshop: Workshop) -> Provision:
        parts = [(batch, scored.logps.exp()) for batch, scored in workshop.passes(workshop.datasets["forget"])]
        table = workshop.per_position(workshop.datasets["forget"], parts)
        return Provision(
            self._rows(workshop, "first"),
            {"forget": {"p0": table[:-1] if self.short else table}},
            {"scale": torch.tensor([2.0])},
        )

    @property
    def refresh_every(self) -> int | None:
        return 2

    def refresh(self, workshop: Workshop, epoch: int) -> Provision:
        norm = sum(float(p.detach().square().sum()) for p in workshop.model.parameters())
        return Provision(self._rows(workshop, f"at {norm:.4f}"))

    def losses(self, ctx: Context) -> dict[str, Term]:
        assert ctx.ref.own["p0"].shape == ctx.scored.logps.shape
        scale = float(ctx.constants["scale"])
        return {
            "forget": Term(ctx.ref.own["p0"] * ctx.scored.logps, unit="token", reduction="token_mean"),
            "made": Term(
                scale * nll_loss(ctx.linked["made"].scored.logps),
                unit="token",
                reduction="token_mean",
                dataset="made",
            ),
        }

    def _rows(self, workshop: Workshop, text: str) -> Mapping[str, Any]:
        examples = workshop.datasets["forget"].examples
        return {
            "made": [
                [
                    replace(e, id=f"{e.id}|{text}{n}", turns=(*e.prompt, Turn("assistant", f"{text} {n}")))
                    for e in examples
                ]
                for n in range(2)
            ]
        }


def test_what_a_method_makes_is_made_once_and_read_back_on_resume(make_engine: MakeEngine, tmp_path: Path) -> None:
    whole = make_engine(Inventor(), steps=14)
    events = fit(whole)
    texts = {e.answer.split(" ")[0] for e in whole.data.datasets["made"].examples}
    assert texts == {"at"}

    for stop in (4, 8, 11):
        saved = Checkpoints(tmp_path / f"checkpoints-{stop}")
        folder = tmp_path / f"provision-{stop}"
        killed = make_engine(Inventor(), steps=14, save_steps=stop, folder=folder)
        with pytest.raises(SystemExit):
            killed.fit(emit=lambda event, last=stop + 1: exit() if event["step"] == last else None, checkpoints=saved)
        resumed = make_engine(Inventor(), steps=14, folder=folder)
        assert saved.load(resumed) == stop
        assert fit(resumed) == events[stop:]
        for name, value in weights(resumed).items():
            assert torch.equal(value, weights(whole)[name]), name


def test_a_table_of_another_length_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(DataError, match="'p0' of forget has"):
        make_engine(Inventor(short=True))


class Upper(GradientMask):
    """Only the upper half of every tensor may move."""

    def __init__(self, model: nn.Module, *, after_clip: bool) -> None:
        self.after_clip = after_clip
        self.start = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_gradient(self, named: Mapping[str, nn.Parameter]) -> None:
        for p in named.values():
            if p.grad is not None:
                p.grad[: len(p) // 2] = 0

    def after_step(self, named: Mapping[str, nn.Parameter]) -> None:
        with torch.no_grad():
            for name, p in named.items():
                p[: len(p) // 2] = self.start[name][: len(p) // 2]


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("after_clip", [False, True])
def test_masked_entries_keep_their_bits_and_are_out_of_the_norm(
    optim: str, after_clip: bool, make_engine: MakeEngine
) -> None:
    engine = make_engine(METHODS.load("grad_diff")(), optim=optim, weight_decay=0.5)
    free = make_engine(METHODS.load("grad_diff")(), optim=optim, weight_decay=0.5)
    before = weights(engine)
    engine.masks = (Upper(engine.model, after_clip=after_clip),)
    masked, unmasked = fit(engine), fit(free)
    assert (masked[0]["grad_norm"] == unmasked[0]["grad_norm"]) is after_clip
    for name, value in weights(engine).items():
        half = len(value) // 2
        assert torch.equal(value[:half], before[name][:half]), name
        assert not torch.equal(value[half:], before[name][half:]), name


class OneLayer(Inventor):
    """Trains one matrix."""

    name: ClassVar[str] = "one_layer"
    pattern: str = r"layers\.1\.mlp\.down_proj"

    def trainable(self) -> tuple[str, ...]:
        return (self.pattern,)


def test_only_the_chosen_parameters_train(make_engine: MakeEngine) -> None:
    engine = make_engine(OneLayer(), weight_decay=0.1)
    before = weights(engine)
    fit(engine)
    moved = [name for name, value in weights(engine).items() if not torch.equal(value, before[name])]
    assert moved == ["model.layers.1.mlp.down_proj.weight"]
    with pytest.raises(UsageError, match="no parameter's name matches"):
        make_engine(OneLayer(pattern="layers.9"))


def test_wrappers_are_refused_by_name_key_and_number() -> None:
    method = METHODS.load("grad_ascent")()
    with pytest.raises(UsageError, match="a wrapper without a name"):
        wrap(method, [{}])
    with pytest.raises(UsageError, match="unknown wrapper 'nosuch'"):
        wrap(method, [{"name": "nosuch"}])
    with pytest.raises((UsageError, ValidationError)):
        wrap(method, [{"name": "gru", "nosuch": 1}])
