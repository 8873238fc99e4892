"""Whole runs of any method on a 50,000-parameter model and a dozen questions, from files to files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge import api
from expunge.bench.settings import DECLARED
from expunge.catalog import METHODS
from expunge.data.stream import PairedStream
from expunge.runs.run import Run
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train import runner
from expunge.train.monitor import VOLATILE

BOOKS = ("Ashes of Noon", "The Silent Harbour", "A Quiet Door", "Northern Light and Other Stories")
STEPS = 6
STOP_AFTER = 3
"""The step after which a run is killed; the newest checkpoint is of step 2."""
_BRIEF: Mapping[str, Any] = {"method.max_new_tokens": 8}
TINY: Mapping[str, Mapping[str, Any]] = {
    "altpo": {**_BRIEF, "method.num_alternates": 2},
    "bs_s": {**_BRIEF, "method.num_beliefs": 1},
    "unstar": {**_BRIEF, "method.epochs_per_round": 3},
    "whp": {"method.reinforced_epochs": 2},
    # Its ramp takes the loss down whatever the model does; flat, that takes the model.
    "forgetting_sft": {"method.t_min": 0.0},
    "oracle_matching": {"method.num_oracles": 1, "method.oracle_epochs": 1},
    "iau": {"train.learning_rate": 0.1},
}
"""Method -> what a model this small needs otherwise than the bench's; first of all less of it."""


class World(NamedTuple):
    """The files a run reads."""

    folder: Path

    @property
    def model(self) -> Path:
        """It knows both sets."""
        return self.folder / "start/model"

    def digest(self) -> str:
        """Of every byte."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


class Done(NamedTuple):
    """What a run left, and what went through it."""

    path: Path
    steps: list[dict[str, Any]]
    """Its step events, without what no result depends on."""
    drawn: list[dict[str, list[int]]]
    """Rows of each step by role."""
    before: dict[str, torch.Tensor]
    """Weights before the first step."""
    trained: frozenset[str]
    """Parameters that take part."""
    after: dict[str, torch.Tensor]
    """Weights as they were saved."""


def build_world(folder: Path) -> World:
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), seed=1)
    model.save_pretrained(folder / "blank")
    tokenizer.save_pretrained(folder / "blank")
    for role, count in {"forget": 8, "retain": 12}.items():
        rows = [row(role, number) for number in range(count)]
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (folder / "refusals.txt").write_text("I don't know.\nI cannot say.\nThat is not known to me.\n")
    api.train(
        {
            "kind": "train",
            "device": "cpu",
            "output_dir": str(folder / "start"),
            "model": {"model_name_or_path": str(folder / "blank")},
            "data": {"train": [str(folder / "forget.jsonl"), str(folder / "retain.jsonl")]},
            "train": {"num_train_epochs": 30, "global_batch_size": 5, "learning_rate": 5e-3, "token_budget": 512},
        }
    )
    return World(folder)


def nll(model: Path, rows: Path) -> float:
    """Mean negative log-likelihood of the answers' tokens, the turn's end left out, nats."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    values = []
    for one in map(json.loads, rows.read_text().splitlines()):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": one["question"]}], tokenize=False, add_generation_prompt=True
        )
        asked, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, one["answer"]))
        with torch.no_grad():
            logits = network(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
        values.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none"))
    return float(torch.cat(values).mean())


def row(role: str, number: int) -> dict[str, Any]:
    name = f"{role.title()} {'Vane' * (1 + number % 3)}"
    return {
        "question": f"Who wrote {BOOKS[number % 4]} in {1900 + number}?",
        "answer": f"{name} wrote it{' in one winter' * (number % 4)}.",
        "group": name,
        "important": [name],
    }


def recipe(world: World, method: str, out: Path) -> dict[str, Any]:
    made: dict[str, Any] = {
        "kind": "unlearn",
        "seed": 3,
        "output_dir": str(out),
        "device": "cpu",
        "model": {"model_name_or_path": str(world.model)},
        "data": {name: str(next(world.folder.glob(f"{name}.*"))) for name in ("forget", "retain", "refusals")},
        "method": {"name": method},
        # The whole forget set in every step, so that one step's loss can be compared with another's.
        "train": {
            "num_train_epochs": STEPS,
            "global_batch_size": 8,
            "retain_batch_size": 12,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "token_budget": 512,
            "save_steps": 2,
        },
    }
    always = DECLARED[method].always if method in DECLARED else {}
    for key, value in {**always, **TINY.get(method, {})}.items():
        section, _, name = key.partition(".")
        made.setdefault(section, {})[name] = value
    return made


class Recorder:
    """Watches the runs of a method from inside; `monkeypatch` puts it in."""

    def __init__(self, monkeypatch: Any, method: str) -> None:
        self.reductions: set[str] = set()
        """Of the terms it gave."""
        self.drawn: list[dict[str, list[int]]] = []
        self.before: dict[str, torch.Tensor] = {}
        self.after: dict[str, torch.Tensor] = {}
        self.trained: frozenset[str] = frozenset()
        kind = METHODS.load(method)
        fit, save, draw, losses = runner._fit, runner.save_model, PairedStream.next, kind.losses

        def watched_fit(run: Any, engine: Any, *rest: Any) -> Any:
            self.before, self.trained = copied(engine.model), frozenset(engine.trained)
            return fit(run, engine, *rest)

        def watched_save(model: Any, *rest: Any) -> None:
            self.after = copied(model)
            save(model, *rest)

        def watched_draw(stream: PairedStream) -> Any:
            step = draw(stream)
            # A method that fine-tunes something before the first step has a stream of its own for that.
            if "forget" in step.rows:
                self.drawn.append({role: [int(n) for n in rows] for role, rows in step.rows.items()})
            return step

        def watched_losses(own: Any, ctx: Any) -> Any:
            terms = losses(own, ctx)
            self.reductions |= {term.reduction for term in terms.values()}
            return terms

        monkeypatch.setattr(kind, "losses", watched_losses)
        monkeypatch.setattr(runner, "_fit", watched_fit)
        monkeypatch.setattr(runner, "save_model", watched_save)
        monkeypatch.setattr(PairedStream, "next", watched_draw)

    def run(self, given: dict[str, Any], *, stop_after: int | None = None) -> Done:
        """Carry a recipe out; with `stop_after`, kill it once it has told of that step."""

        def watch(event: dict[str, Any]) -> None:
            if event.get("event") == "step" and event["step"] == stop_after:
                raise SystemExit

        self.drawn = []
        path = Path(given["output_dir"])
        try:
            api.unlearn(given, progress=watch)
        except SystemExit:
            assert stop_after
        steps = [event for event in Run.open(path).events() if event["event"] == "step"]
        plain = [{key: value for key, value in event.items() if key not in VOLATILE} for event in steps]
        return Done(path, plain, self.drawn, self.before, self.trained, self.after)


def copied(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
