"""Names to code, lazily: one explicit line per method, metric, suite and template, plus entry points of other packages.

Nothing here imports torch: listing is instant, and the target module is imported when the name is first used.
A third party adds a name with an entry point in the group `expunge.<kind>` (see `pyproject.toml`).
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Iterator
from importlib.metadata import EntryPoints, entry_points
from typing import Any, NamedTuple

from expunge.errors import UsageError


class Entry(NamedTuple):
    """One catalogued name."""

    name: str
    target: str
    """`package.module:attribute`."""
    summary: str


class Catalog:
    """The names of one kind.

    Args:
        kind: plural noun, also the entry-point group `expunge.<kind>`.
        entries: the built-in names in the order they are listed.
    """

    def __init__(self, kind: str, *entries: Entry) -> None:
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[Entry]:
        yield from self._all().values()

    def names(self) -> list[str]:
        """Every name, built-in first."""
        return list(self._all())

    def load(self, name: str) -> Any:
        """The object behind `name`.

        Raises:
            UsageError: unknown name; the message offers the nearest one.
        """
        entries = self._all()
        if name not in entries:
            raise unknown(self.kind.removesuffix("s"), name, list(entries))
        module, _, attribute = entries[name].target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def _all(self) -> dict[str, Entry]:
        found = dict(self._entries)
        for point in _installed(f"expunge.{self.kind}"):
            origin = point.dist.name if point.dist else "another package"
            found.setdefault(point.name, Entry(point.name, point.value, f"from {origin}"))
        return found


@functools.cache
def _installed(group: str) -> EntryPoints:
    """Of every package; looking through all of them takes longer than a small model's training step."""
    return entry_points(group=group)


def unknown(what: str, name: str, known: list[str]) -> UsageError:
    """The error for a name that is not known, with the nearest known one as its hint."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return UsageError(f"unknown {what} {name!r}", hint=hint)


METHODS = Catalog(
    "methods",
    Entry("grad_ascent", "expunge.methods.grad_ascent:GradAscent", "ascend the forget loss; no retain data"),
    Entry("grad_diff", "expunge.methods.grad_diff:GradDiff", "ascend on forget, descend on retain (NLL or KL)"),
    Entry("kl_min", "expunge.methods.kl_min:KLMin", "ascend on forget, keep the starting distribution on retain"),
    Entry("npo", "expunge.methods.npo:NPO", "negative preference optimisation against the starting model"),
    Entry("simnpo", "expunge.methods.simnpo:SimNPO", "length-normalised, reference-free NPO"),
    Entry("idk_nll", "expunge.methods.idk_nll:IdkNLL", "learn to answer with a refusal"),
    Entry("idk_dpo", "expunge.methods.idk_dpo:IdkDPO", "prefer a refusal to the forgotten answer (DPO)"),
    Entry("altpo", "expunge.methods.altpo:AltPO", "prefer answers the model made up itself to the forgotten one"),
    Entry("wga", "expunge.methods.wga:WGA", "ascent weighted by token probability"),
    Entry("tnpo", "expunge.methods.tnpo:TNPO", "token-wise NPO: ascent weighted against the starting model"),
    Entry("wtnpo", "expunge.methods.wtnpo:WTNPO", "token-wise NPO, weighted by token probability as well"),
    Entry("satimp", "expunge.methods.satimp:SatImp", "ascent weighted by saturation and importance"),
    Entry("undial", "expunge.methods.undial:UNDIAL", "distil the starting model with the token's logit lowered"),
    Entry("ceu", "expunge.methods.ceu:CEU", "cross-entropy to what the model says without the token"),
    Entry("pdu", "expunge.methods.pdu:PDU", "flatten forget logits under a bound on the retain loss"),
    Entry("rmu", "expunge.methods.rmu:RMU", "drive forget hidden states to one random direction"),
    Entry("flat", "expunge.methods.flat:FLAT", "widen an f-divergence between refusal and answer; forget data only"),
    Entry("simsat", "expunge.methods.simsat:SimSat", "ascent weighted by saturation, at any granularity"),
    Entry("simimp", "expunge.methods.simimp:SimImp", "ascent weighted by importance, at any granularity or annotated"),
    Entry("bs_t", "expunge.methods.bs_t:BST", "ascent on a label that holds the model's own beliefs"),
    Entry("bs_s", "expunge.methods.bs_s:BSS", "any loss on the answer and on what the model itself would say"),
    Entry("eua", "expunge.methods.eua:EUA", "push forget energy over a boundary (distinguishable deletion)"),
    Entry("whp", "expunge.methods.whp:WHP", "learn what a model that never read the text would say"),
    Entry("unstar", "expunge.methods.unstar:UnStar", "learn misleading answers until the right one is gone"),
    Entry("forgetting_sft", "expunge.methods.forgetting_sft:ForgettingSFT", "learn tokens worth it, unlearn others"),
    Entry("alkn", "expunge.methods.alkn:ALKN", "memorise under a mask, then negate; for one request after the other"),
    Entry("oracle_matching", "expunge.methods.oracle_matching:OracleMatching", "match retrained models' logits"),
    Entry("iau", "expunge.methods.iau:IAU", "one gradient step over everything: up on forget, down on retain"),
)

WRAPPERS = Catalog(
    "wrappers",
    Entry("sum", "expunge.train.wrappers.sum:Sum", "add the gradients up (the default)"),
    Entry("gru", "expunge.train.wrappers.gru:GRU", "take out what conflicts with the retain gradient"),
    Entry("gru_tau", "expunge.train.wrappers.gru:GRUTau", "GRU along what memorising changes; no retain data"),
    Entry("gru_prox", "expunge.train.wrappers.gru:GRUProx", "GRU against leaving the start; no retain data"),
    Entry(
        "gradient_surgery",
        "expunge.train.wrappers.surgery:GradientSurgery",
        "retain descent at right angles to the forget gradient",
    ),
    Entry("uno", "expunge.train.wrappers.uno:UNO", "retain descent, with a penalty on the gradients' angle"),
    Entry("dual", "expunge.train.wrappers.dual:Dual", "retain weight by dual ascent on a bound of the retain loss"),
    Entry(
        "adaptive_retain",
        "expunge.train.wrappers.adaptive_retain:AdaptiveRetain",
        "retain weight that grows as the retain loss rises",
    ),
    Entry("wagle", "expunge.train.wrappers.wagle:WAGLE", "only the weights that matter most for forgetting may move"),
    Entry("layers", "expunge.train.wrappers.layers:Layers", "train only some layers or modules, named or located"),
    Entry("energy", "expunge.train.wrappers.energy:EnergyTerm", "EUA's energy terms beside any other method's"),
    Entry("alkn", "expunge.train.wrappers.alkn:ALKNMask", "moves only entries that agree with the retain gradient"),
)

SUITES = Catalog(
    "suites",
    Entry("tofu", "expunge.evals.suites.tofu:tofu", "TOFU: forgetting, utility, privacy, energy"),
    Entry(
        "muse",
        "expunge.evals.suites.muse:muse",
        "MUSE: memorisation, utility, privacy (verbmem and privleak tested on fixtures)",
    ),
    Entry("world", "expunge.evals.suites.world:world", "a pocket world: TOFU's metrics, and every form of a question"),
    Entry("wmdp", "expunge.evals.suites.wmdp:wmdp", "WMDP: hazardous knowledge, by multiple choice"),
    Entry("mmlu", "expunge.evals.suites.mmlu:mmlu", "MMLU: general knowledge in 57 subjects, by multiple choice"),
    Entry(
        "lume",
        "expunge.evals.suites.lume:lume",
        "LUME: SemEval-2025 task 4 (forget tasks 1 and 3 and membership tested on fixtures)",
    ),
    Entry(
        "pistol", "expunge.evals.suites.pistol:pistol", "PISTOL: edges of a graph of contracts, and those around them"
    ),
    Entry("custom", "expunge.evals.suites.custom:custom", "rows of your own, in splits of any name"),
    Entry(
        "utility", "expunge.evals.suites.utility:utility", "ARC, HellaSwag, OpenBookQA, TruthfulQA by multiple choice"
    ),
    Entry("harness", "expunge.evals.suites.harness:harness", "lm-evaluation-harness: any of its tasks (extra harness)"),
    Entry(
        "rwku",
        "expunge.evals.suites.rwku:rwku",
        "RWKU: famous people, their neighbours, utility (adversarial probes tested on fixtures)",
    ),
    Entry("unlearn-pii", "expunge.evals.suites.unlearn_pii:unlearn_pii", "UnlearnPII: personal data that answers hold"),
    Entry("knowundo", "expunge.evals.suites.knowundo:knowundo", "KnowUnDo: what should go, and what lies near it"),
)
