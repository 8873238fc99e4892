"""Run our methods on recorded losses of published implementations: same inputs, same numbers, same gradients.

A folder holds `losses.json`: padded logits and labels (Hugging Face convention: not shifted, -100 where unsupervised),
and per case the hyper-parameters, the loss, its parts and the gradient with respect to the logits. Here the recorded
logits stand for a model's output, become the flat layout, and go through the method object and the engine's reduction.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from expunge.catalog import METHODS
from expunge.data.collate import Positions
from expunge.errors import DataError
from expunge.methods.base import Context, Method
from expunge.models.reference import ReferenceValues
from expunge.models.score import Scored
from expunge.testing.contexts import reference_values
from expunge.train.reduce import Counts, counts, term_loss

Profile = Literal["canonical", "openunlearning"]
IGNORED = -100


class Tolerance(NamedTuple):
    """How close two numbers must be: `|a - b| <= atol + rtol |b|`."""

    rtol: float
    atol: float


LOSS = Tolerance(1e-9, 1e-12)
"""Losses and their parts, both sides in float64."""
GRADIENT = Tolerance(1e-8, 1e-12)
"""Gradients, both sides in float64."""
FLOAT32 = Tolerance(2e-5, 2e-6)
"""Either, when we compute in float32."""


class Counterpart(NamedTuple):
    """How a recorded method is configured here."""

    method: str
    """Catalogue name."""
    keys: Mapping[str, str] = {}
    """Recorded hyper-parameter -> our key, beside gamma, alpha and the retain term, which all share."""
    same: Mapping[str, Any] = {}
    """Recorded hyper-parameters that have one value here, and which."""


COUNTERPARTS: dict[str, Counterpart] = {
    "GradAscent": Counterpart("grad_ascent"),
    "GradDiff": Counterpart("grad_diff"),
    "KL retain loss": Counterpart("grad_diff"),
    "NPO": Counterpart("npo", {"beta": "beta"}),
    "SimNPO": Counterpart("simnpo", {"beta": "beta", "delta": "delta"}),
    "DPO": Counterpart("idk_dpo", {"beta": "beta"}),
    "AltPO": Counterpart("idk_dpo", {"beta": "beta"}),
    "WGA": Counterpart("wga", {"beta": "beta"}),
    "SatImp": Counterpart("satimp", {"beta1": "beta1", "beta2": "beta2"}),
    "EUA": Counterpart("eua", {"beta1": "ratio", "beta2": "temperature"}),
    "UNDIAL": Counterpart("undial", {"beta": "beta"}),
    "CE-U": Counterpart("ceu", {"ignore_first_n_answer_tokens": "skip_first"}),
    "PDU": Counterpart(
        "pdu",
        {"retain_loss_eps": "epsilon", "dual_step_size": "dual_lr", "dual_update_upon": "every"},
        {"primal_dual": True},
    ),
    "RMU": Counterpart("rmu", {"steering_coeff": "coefficient"}),
}
"""Recorded method -> ours. To add a method: one line here."""

QUIRK = "_QUIRK"
"""Ends the id of a case that records what is probably a bug, which the published profile has and ours has not."""

_SHARED_KEYS = {"gamma": "gamma", "alpha": "alpha"}
_RETAIN = {"NLL": "nll", "KL": "kl", "EMBED_DIFF": "hidden"}
_CONTROL = "control"


@dataclass(frozen=True)
class Padded:
    """One recorded batch: logits, or the hidden states of a block."""

    key: str
    input_ids: Tensor  # (B, T)
    labels: Tensor  # (B, T), not shifted
    attention_mask: Tensor  # (B, T) bool
    logits: Tensor  # (B, T, V) float64
    ref_logits: Tensor  # (B, T, V) float64

    @property
    def answer(self) -> Tensor:
        """(B, T) bool, positions whose next label is supervised."""
        supervised = torch.zeros_like(self.attention_mask)
        supervised[:, :-1] = self.labels[:, 1:] != IGNORED
        return supervised

    def mask(self, positions: Positions, *, skip_first: int = 0) -> Tensor:
        """(B, T) bool, the positions that are scored."""
        if positions == "all":
            return torch.ones_like(self.attention_mask)
        if positions == "attended":
            return self.attention_mask
        if positions == "held":
            return self.labels != IGNORED
        return self.answer & (self.answer.cumsum(1) > skip_first)


class DualUpdate(NamedTuple):
    """The multiplier of a recorded constraint around its step."""

    before: float
    after: float


@dataclass(frozen=True)
class LossCase:
    """One recorded loss."""

    id: str
    method: str
    """As recorded, without the remark in brackets and the retain term."""
    params: Mapping[str, Any]
    batches: Mapping[str, Padded]
    """Role (forget, retain, alternate) -> inputs."""
    loss: float
    components: Mapping[str, float]
    """`forget_loss` and `retain_loss`, unweighted; empty where only the total was recorded."""
    gradients: Mapping[str, Tensor]
    """Role -> (B, T, V) gradient of `loss`; zero where none reached the inputs."""
    note: str = ""
    control: Tensor | None = None
    """(d,) direction of the hidden states (RMU)."""
    dual: DualUpdate | None = None
    """Of a constraint on the retain loss (PDU)."""

    @property
    def quirk(self) -> bool:
        """Whether it records what is probably a bug."""
        return self.id.endswith(QUIRK)

    @property
    def constant(self) -> float:
        """What the recorded loss holds beside the terms, without gradient: `-lambda epsilon` of a constraint."""
        return 0.0 if self.dual is None else -self.dual.before * float(self.params["retain_loss_eps"])


@dataclass
class Outcome:
    """What our method made of a case, summed over micro-batches."""

    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    """Unweighted, by name."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Role -> (B, T, V)."""

    @property
    def components(self) -> dict[str, float]:
        """The terms as they are recorded: everything but the plain retain term is the forget loss."""
        retain = {"retain_loss": self.terms["retain"]} if "retain" in self.terms else {}
        return {"forget_loss": sum(v for k, v in self.terms.items() if k != "retain"), **retain}


def load_loss_cases(folder: Path) -> list[LossCase]:
    """The cases of `folder/losses.json` in file order.

    Raises:
        DataError: no such file.
    """
    path = folder / "losses.json"
    if not path.is_file():
        raise DataError(f"no losses.json in {folder}", hint="name a folder of recorded losses")
    content = json.loads(path.read_text())
    inputs = {key: _padded(key, value) for key, value in content["inputs"].items()}
    states = content.get("rmu_inputs") or {}
    return [
        _case(record, _states(record, states) if "control_vec" in record else inputs) for record in content["cases"]
    ]


def _padded(key: str, value: Mapping[str, Any]) -> Padded:
    return Padded(
        key=key,
        input_ids=torch.tensor(value["input_ids"]),
        labels=torch.tensor(value["labels"]),
        attention_mask=torch.tensor(value["attention_mask"]).bool(),
        logits=torch.tensor(value["logits"], dtype=torch.float64),
        ref_logits=torch.tensor(value["ref_logits"], dtype=torch.float64),
    )


def _states(record: Mapping[str, Any], states: Mapping[str, Any]) -> dict[str, Padded]:
    """Hidden states in the place of logits, with the case's own labels."""
    found = {}
    for role in ("forget", "retain"):
        labels = torch.tensor(record[f"{role}_labels"])
        hidden = torch.tensor(states[f"{role}_activations"], dtype=torch.float64)
        found[role] = Padded(
            key=role,
            input_ids=labels.clamp(min=0),
            labels=labels,
            attention_mask=torch.ones_like(labels).bool(),
            logits=hidden,
            ref_logits=torch.tensor(states.get(f"ref_{role}_activations", hidden.tolist()), dtype=torch.float64),
        )
    return found


def _case(record: Mapping[str, Any], inputs: Mapping[str, Padded]) -> LossCase:
    named = record.get("inputs") or {key: key for key in inputs}
    batches = {role: inputs[key] for role, key in named.items() if key is not None}
    recorded = record.get("grad_wrt_logits") or record.get("grad_wrt_activations") or {}
    control = record.get("control_vec")
    return LossCase(
        id=record["id"],
        method=record["method"].split(" (")[0].removesuffix("+KL"),
        params=record["params"],
        batches=batches,
        loss=record["loss"],
        components=record.get("components") or _logged(record),
        gradients={role: _gradient(recorded.get(batch.key), batch) for role, batch in batches.items()},
        note=record.get("note") or "",
        control=None if control is None else torch.tensor(control, dtype=torch.float64),
        dual=_dual(record),
    )


def _logged(record: Mapping[str, Any]) -> dict[str, float]:
    """The parts of a loss that were not recorded as such but logged."""
    steps = record.get("logged") or ()
    return {name: value for each in steps for name, value in each.items() if name.endswith("_loss")}


def _dual(record: Mapping[str, Any]) -> DualUpdate | None:
    """The multiplier before the step stands in the note, the one after it in a field of its own.

    Raises:
        DataError: the note does not say it.
    """
    after = record.get("preferences_after")
    if after is None:
        return None
    before = re.search(r"preferences[^\[]*\[[^,\]]+, *([^\]]+)\]", record.get("note") or "")
    if before is None:
        raise DataError(f"{record['id']}: the note does not say `preferences [forget, retain]` before the step")
    return DualUpdate(float(before[1]), float(after[1]))


def _gradient(flat: list[float] | None, batch: Padded) -> Tensor:
    if flat is None:
        return torch.zeros_like(batch.logits)
    return torch.tensor(flat, dtype=torch.float64).reshape(batch.logits.shape)


def build_method(case: LossCase, *, profile: Profile = "openunlearning", **changes: Any) -> Method:
    """Our method with the recorded hyper-parameters.

    Args:
        case: of a method in `COUNTERPARTS`.
        profile: `openunlearning` is what the cases record.
        changes: keys that win over the recorded ones.

    Raises:
        DataError: a method, hyper-parameter or retain term that has no counterpart here: skipping it would compare
            another objective.
    """
    if case.method not in COUNTERPARTS:
        raise DataError(f"{case.id}: unknown method {case.method!r}", hint="add it to COUNTERPARTS")
    ours = COUNTERPARTS[case.method]
    known = {**_SHARED_KEYS, **ours.keys}
    keys: dict[str, Any] = {"profile": profile}
    if case.dual is not None:
        keys["alpha"] = case.dual.before
    for name, value in case.params.items():
        if name == "retain_loss_type" and value in _RETAIN:
            keys["retain"] = _RETAIN[value]
        elif name in known:
            keys[known[name]] = value
        elif name not in ours.same or ours.same[name] != value:
            raise DataError(f"{case.id}: {name}={value!r} has no counterpart", hint="map it in COUNTERPARTS")
    method: Method = METHODS.load(ours.method)(**keys | changes)
    return method


def run_case(
    case: LossCase,
    method: Method,
    *,
    rows: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Outcome:
    """Loss, unweighted terms and logit gradients of `method` on the case's inputs, as one optimizer step.

    Args:
        case: the inputs.
        method: see `build_method`.
        rows: sequences per micro-batch; None: all in one.
        dtype: of the logits.

    Raises:
        DataError: the method reads a dataset the case does not hold.
    """
    needs = method.needs()
    missing = [name for name in (*needs.roles, *needs.linked) if name not in case.batches]
    if missing:
        raise DataError(f"{case.id}: no inputs for {', '.join(missing)}", hint="record them in the case")
    leaves = {name: batch.logits.to(dtype, copy=True).requires_grad_() for name, batch in case.batches.items()}
    outcome = Outcome()
    # A constraint the method brings weighs the retain loss; before the step's own update, by what it starts with.
    multiplier = math.prod(each["initial"] for each in method.wrappers() if each["name"] == "dual")
    for role in needs.roles:
        contexts = list(_contexts(case, method, role, leaves, rows))
        _add_role(outcome, contexts, method, multiplier if role == "retain" else 1.0)
    for name, leaf in leaves.items():
        outcome.gradients[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return outcome


def _contexts(
    case: LossCase, method: Method, role: str, leaves: Mapping[str, Tensor], rows: int | None
) -> Iterator[Context]:
    """The micro-batches of one role, with their linked rows."""
    total = len(case.batches[role].labels)
    linked = [name for name, anchor in method.needs().linked.items() if anchor == role]
    step = rows or total
    for start in range(0, total, step):
        part = torch.arange(start, min(start + step, total))
        companions = {name: _context(case, method, name, leaves[name], part, {}) for name in linked}
        yield _context(case, method, role, leaves[role], part, companions)


def _context(
    case: LossCase, method: Method, name: str, leaf: Tensor, part: Tensor, linked: Mapping[str, Context]
) -> Context:
    needs, batch = method.needs(), case.batches[name]
    mask = batch.mask(needs.positions_of(name), skip_first=needs.skip_first.get(name, 0))[part]
    row = torch.arange(len(part))[:, None].expand_as(mask)[mask]
    scored = Scored(
        distribution=leaf[part][mask],
        targets=batch.input_ids.roll(-1, dims=1)[part][mask],
        row=row,
        num_rows=len(part),
        answer=batch.answer[part][mask],
    )
    frozen = batch.ref_logits[part][mask].to(leaf.dtype)
    if name in needs.hidden:
        scored = replace(scored, distribution=scored.logits[:, :0], hidden=scored.logits)
        reference = ReferenceValues(block=frozen)
    else:
        reference = reference_values(replace(scored, distribution=frozen), needs.references.get(name, ()))
    constants = {} if case.control is None else {_CONTROL: case.control.to(leaf.dtype)}
    return Context(name, scored, reference, linked, constants=constants)


def _add_role(outcome: Outcome, contexts: list[Context], method: Method, weight: float) -> None:
    whole = counts(Counts(len(each.scored.row), each.scored.num_rows) for each in contexts)
    for each in contexts:
        loss = torch.zeros((), dtype=each.scored.logits.dtype)
        for name, term in method.losses(each).items():
            value = term_loss(term, scored_row=each.scored.row, num_rows=each.scored.num_rows, counts=whole)
            outcome.terms[name] = outcome.terms.get(name, 0.0) + value.item()
            loss = loss + weight * term.weight * value
        loss.backward()  # type: ignore[no-untyped-call]
        outcome.loss += loss.item()
