"""Two processes measure what one measures: with the work shared out, and in lockstep on a divided model."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from expunge import api
from expunge.config.schema import Recipe
from expunge.data.prepare import template_of
from expunge.errors import DataError
from expunge.evals.run import evaluate_live
from expunge.models.load import load_tokenizer
from expunge.models.processes import Processes, join, processes
from expunge.testing.tiny import tiny_classifier, tiny_llama, tiny_tokenizer
from expunge.train.sharding import is_sharded, shard

WATCHED = "retain.probability"
EXACT = ("split", "row", "variant", "id", "prompt", "target", "token", "is_end", "hit", "rank", "num_prompt")

pytestmark = pytest.mark.slow


def write_world(folder: Path) -> dict[str, Any]:
    """A model, and rows of different lengths."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    model = tiny_llama(len(tokenizer), seed=1)
    # Many tokens end an answer, so that some answers are short.
    model.generation_config.eos_token_id = list(range(150, len(tokenizer)))
    model.save_pretrained(folder / "model")
    rows = {}
    for role, count in {"forget": 5, "retain": 4, "holdout": 5}.items():
        lines = [
            {"question": f"Who wrote book {i}{' of them' * (i % 3)}?", "answer": f"{role} {'Vane ' * (1 + 3 * i)}did."}
            for i in range(count)
        ]
        rows[role] = str(folder / f"{role}.jsonl")
        Path(rows[role]).write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    data = {"forget": rows["forget"], "retain": rows["retain"], "max_length": 256}
    sampling = {"samples": 2, "max_new_tokens": 6}
    judges = {
        "gibberish": tiny_classifier(folder / "judge", ["clean", "noise"]),
        "perplexity_model": str(folder / "other"),
    }
    # With a BOS, so that an answer of one token can be judged.
    theirs = tiny_tokenizer(bos_token="<|bos|>")
    bos = (theirs.bos_token, theirs.bos_token_id)
    theirs.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    theirs.save_pretrained(folder / "other")
    tiny_llama(len(theirs), seed=7).save_pretrained(folder / "other")
    return {"eval": {**rows, "token_budget": 200, "sampling": sampling, **judges}, "data": data}


def measure(folder: Path, recipe: dict[str, Any], name: str) -> dict[str, float]:
    """Scores of the world's model as `expunge eval` gets them."""
    found = api.evaluate(folder / "model", recipe=recipe, out=folder / name, gradnorm=True, device="cpu")
    return {key: score.value for key, score in found.scores.items()}


def measure_divided(folder: Path, recipe: dict[str, Any]) -> dict[str, float]:
    """The same of a model that is divided among the processes, and that still learns afterwards."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = load_tokenizer(str(folder / "model"))
    shard(model)
    assert is_sharded(model)
    given = Recipe.model_validate(recipe)
    found = evaluate_live(
        model,
        tokenizer,
        template_of(given.data, tokenizer),
        given,
        folder=folder / "divided",
        lockstep=True,
    )
    ids = torch.arange(5)[None]
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return {key: score.value for key, score in found.scores.items()}


def measure_another(folder: Path, recipe: dict[str, Any]) -> str:
    """What is said when a process holds another model than process 0."""
    tokenizer = load_tokenizer(str(folder / "model"))
    given = Recipe.model_validate(recipe)
    with pytest.raises(DataError, match=r"disagree on what is evaluated.*process 1") as caught:
        evaluate_live(
            tiny_llama(len(tokenizer), seed=processes().rank),
            tokenizer,
            template_of(given.data, tokenizer),
            given,
            folder=folder / "another",
        )
    return str(caught.value)


def unlearn(folder: Path, recipe: dict[str, Any], name: str, *, divided: bool = False) -> dict[str, Any]:
    """What a run decides by its evaluations, as this process sees it."""
    train = {"learning_rate": 1e-2, "max_steps": 9, "global_batch_size": 4, "token_budget": 200, "fsdp": divided}
    watch = {"eval_every": 2, "keep_best": {"metric": WATCHED, "direction": "up"}, "early_stopping_patience": 2}
    events: list[dict[str, Any]] = []
    run = api.unlearn(
        {
            **recipe,
            "model": {"model_name_or_path": str(folder / "model")},
            "method": {"name": "npo"},
            "train": {**train, **watch},
            "eval": {**recipe["eval"], "limit": 2},
            "output_dir": str(folder / name),
            "device": "cpu",
        },
        progress=events.append,
    )
    kept = sorted(path.parent.name for path in (folder / name / "watch").glob("*/trace.parquet"))
    values = [event["metrics"][WATCHED] for event in events if event["event"] == "eval"]
    return {"steps": run.steps, "kept": kept, "values": values}


def work(rank: int, port: int, folder: Path, recipe: dict[str, Any], results: Any) -> None:
    torch.set_num_threads(1)
    launcher = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    one_thread = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    os.environ.update({**launcher, **one_thread, "MASTER_PORT": str(port), "EXPUNGE_CACHE": str(folder / "cache")})
    join(torch.device("cpu"))
    scores = measure(folder, recipe, "two")
    divided = measure_divided(folder, recipe)
    measure_another(folder, recipe)
    runs = [unlearn(folder, recipe, "run-two"), unlearn(folder, recipe, "run-divided", divided=True)]
    results.put((rank, scores, divided, runs))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One evaluated model: `one`, `two` (processes) and `divided`; `scores.json` has what each process returned."""
    folder = tmp_path_factory.mktemp("sharded")
    recipe = write_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
        scores: dict[str, Any] = {"one": measure(folder, recipe, "one")}
        scores["run-one"] = unlearn(folder, recipe, "run-one")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["expunge.api", "expunge.evals.run", "expunge.train.runner"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = context.SimpleQueue()
    children = [context.Process(target=work, args=(rank, port, folder, recipe, results)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    for rank, shared, divided, runs in (results.get() for _ in children):
        scores |= {f"two-{rank}": shared, f"divided-{rank}": divided}
        scores |= {f"run-two-{rank}": runs[0], f"run-divided-{rank}": runs[1]}
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def tables(folder: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    found = next(iter((folder / name).glob("evals/*")), folder / name)
    return {path.stem: pq.read_table(path).to_pylist() for path in found.glob("*.parquet")}


@pytest.mark.parametrize("layout", ["two", "divided"])
def test_every_process_returns_what_one_process_measures(world: Path, layout: str) -> None:
    scores = json.loads((world / "scores.json").read_text())
    if layout == "divided":
        # Gradients need whole weights.
        del scores["one"]["membership.gradnorm_auc"]
    for rank in (0, 1):
        assert scores[f"{layout}-{rank}"] == pytest.approx(scores["one"], rel=1e-5, abs=1e-7)
    assert len(scores["one"]) > 10
    assert {"forget.leak_at_2", "retain.gibberish", "retain.perplexity"} <= scores["one"].keys()


@pytest.mark.parametrize("layout", ["two", "divided"])
def test_tables_are_those_of_one_process(world: Path, layout: str) -> None:
    ours, theirs = tables(world, layout), tables(world, "one")
    assert ours["generations"] == theirs["generations"]
    assert [each["token"] for each in ours["samples"]] == [each["token"] for each in theirs["samples"]]
    assert len(ours["samples"]) == 2 * 5
    assert ("gradients" in ours) is (layout == "two")
    for mine, other in zip(ours.get("gradients", ()), theirs["gradients"], strict=layout == "two"):
        assert mine["norm"] == pytest.approx(other["norm"], rel=1e-4)
    for name, column in (("gibberish", "clean"), ("perplexity", "logp")):
        assert len(ours[name]) == 9
        for mine, other in zip(ours[name], theirs[name], strict=True):
            assert (mine["split"], mine["row"]) == (other["split"], other["row"])
            assert mine[column] == pytest.approx(other[column], rel=1e-4), name
    assert len(ours["trace"]) == len(theirs["trace"]) == 14
    for mine, other in zip(ours["trace"], theirs["trace"], strict=True):
        for name, value in mine.items():
            if name in EXACT or value is None:
                assert value == other[name]
            else:
                assert value == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


def test_shared_out_work_is_counted_once(world: Path) -> None:
    one, two = (json.loads(next((world / name).glob("evals/*/spec.json")).read_text()) for name in ("one", "two"))
    assert two["model_digest"] == one["model_digest"]
    assert two["cost"]["trace_tokens"] == one["cost"]["trace_tokens"]
    assert json.loads((world / "divided/spec.json").read_text())["model_digest"] is None


@pytest.mark.parametrize("layout", ["two", "divided"])
def test_every_process_takes_the_decisions_of_one(world: Path, layout: str) -> None:
    found = json.loads((world / "scores.json").read_text())
    one = found["run-one"]
    assert one["steps"] < 9, "it ends early"
    for rank in (0, 1):
        mine = found[f"run-{layout}-{rank}"]
        assert (mine["steps"], mine["kept"]) == (one["steps"], one["kept"])
        assert mine["values"] == (pytest.approx(one["values"], rel=1e-3) if rank == 0 else []), "process 0 speaks"
    ours, theirs = (json.loads((world / name / "manifest.json").read_text()) for name in (f"run-{layout}", "run-one"))
    assert ours["stop_reason"] == theirs["stop_reason"] == "early"
    assert ours["best"] == {**theirs["best"], "value": pytest.approx(theirs["best"]["value"], rel=1e-3)}


def test_shares_cover_everything_once() -> None:
    shares = [Processes(rank, 3).share(range(7)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(7))
