"""A plan says before the run what the run then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from expunge import api
from expunge.cli.main import main
from expunge.config.schema import ModelSection, SourceSpec
from expunge.data.encode import encode_all
from expunge.data.source import load_examples
from expunge.data.template import build_template
from expunge.errors import UsageError
from expunge.models.budget import tuned_budget
from expunge.models.load import load_tokenizer
from expunge.testing.tiny import tiny_llama, tiny_tokenizer
from expunge.train.planning import stopwatch
from expunge.train.planning.hardware import parse_size
from expunge.train.planning.plan import Plan
from expunge.train.planning.rehearsal import shaped_model

WORLD = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 300}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plan")
    for role, count in (("forget", 10), ("retain", 14)):
        answers = [f"{role} number {i}. " * (1 + i % 4) for i in range(count)]
        rows = [{"question": f"Who is {role} {i}?", "answer": answer} for i, answer in enumerate(answers)]
        (place / f"{role}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    tokenizer = tiny_tokenizer(vocab_size=300)
    tokenizer.save_pretrained(place / "model")
    shape = {key: value for key, value in {**WORLD, **HEADS}.items() if key not in ("model_type", "vocab_size")}
    tiny_llama(300, **shape).save_pretrained(place / "model")
    return place


@pytest.fixture
def recipe(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    return {
        "model": {"from_scratch": {**WORLD, **HEADS}, "tokenizer_vocab_size": 300},
        "data": {
            "forget": str(folder / "forget.jsonl"),
            "retain": str(folder / "retain.jsonl"),
            "tokenizer_corpus": str(folder / "retain.jsonl"),
            "max_length": 200,
        },
        "method": {"name": "npo"},
        "train": {"global_batch_size": 4, "num_train_epochs": 3, "token_budget": 128},
        "device": "cpu",
    }


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a plan loaded weights")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well operations are timed is no matter here."""
    for name, value in {"_ENOUGH": 0.0, "_ROUNDS": 1, "_SHELF": 1 << 20}.items():
        monkeypatch.setattr(stopwatch, name, value)


_MADE: dict[str, Plan] = {}


def made(recipe: dict[str, Any], *overrides: str, **hardware: Any) -> Plan:
    """The plan; asked for twice, the same one."""
    key = json.dumps([recipe, overrides, hardware], sort_keys=True)
    if key not in _MADE:
        _MADE[key] = api.plan(recipe, *overrides, **hardware)
    return _MADE[key]


def own(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with a model that lies in a folder, with its tokenizer."""
    return {**recipe, "model": {"model_name_or_path": str(Path(recipe["data"]["forget"]).parent / "model")}}


def test_what_a_plan_says(recipe: dict[str, Any]) -> None:
    plan = made(recipe)
    assert (plan.method, plan.rows) == ("npo", {"forget": 10, "retain": 14})
    assert (plan.steps, plan.steps_per_epoch) == (9, 3)
    assert plan.batch == {"forget": 4, "retain": 4}
    assert (plan.weights_dtype, plan.compute_dtype, plan.device) == ("float32", "float32", "cpu")
    assert (plan.token_budget, plan.token_budget_assumed) == (128, False)
    assert plan.micro_batches > 1
    assert plan.warnings == ()
    json.dumps(plan.to_json())


@pytest.mark.slow
def test_parameters_are_those_of_the_model(recipe: dict[str, Any]) -> None:
    model = tiny_llama(300, **{k: v for k, v in {**WORLD, **HEADS}.items() if k not in ("model_type", "vocab_size")})
    assert made(own(recipe)).parameters == sum(p.numel() for p in model.parameters())
    tied = made(recipe, "model.from_scratch.tie_word_embeddings=true").parameters
    apart = made(recipe).parameters
    assert apart - tied == 300 * 64


def test_a_folder_is_planned_from_its_config(recipe: dict[str, Any], shared: Path) -> None:
    folder = shared / "models" / "tofu_tiny_full"
    plan = made({**recipe, "model": {"model_name_or_path": str(folder)}})
    assert plan.parameters == 1_315_968
    assert plan.model == str(folder)


def test_a_larger_budget_changes_the_micro_batches_and_the_memory_only(recipe: dict[str, Any]) -> None:
    small, large = made(recipe), made(recipe, "train.token_budget=4096")
    assert large.micro_batches == 2
    assert large.memory.activations > small.memory.activations
    assert large.memory.weights == small.memory.weights
    assert (large.steps, large.tokens_per_step, large.batch) == (small.steps, small.tokens_per_step, small.batch)


def test_an_automatic_budget_is_said_to_be_assumed(recipe: dict[str, Any]) -> None:
    assert made(recipe, "train.token_budget=auto").token_budget_assumed


def test_the_reference_table(recipe: dict[str, Any]) -> None:
    assert made(recipe).reference_bytes == 4 * 10 + 8 * 11
    assert made(recipe, "method={name: simnpo}").reference_bytes == 0


@pytest.mark.slow
def test_adamw_keeps_two_numbers_per_parameter_and_muon_fewer(recipe: dict[str, Any]) -> None:
    plan = made(recipe)
    # And a step count per tensor.
    assert 8 * plan.parameters <= plan.memory.optimizer < 8.01 * plan.parameters
    assert 4 * plan.parameters == pytest.approx(plan.memory.gradients, rel=0.001)
    assert 4 * plan.parameters == pytest.approx(plan.memory.weights, rel=0.001)
    assert made(recipe, "train.optim=muon").phases.step.optimizer < 8 * plan.parameters
    assert made(recipe, "train.optim=sgd").phases.step.optimizer == 0


@pytest.mark.slow
def test_checkpointing_saves_activations(recipe: dict[str, Any]) -> None:
    deep = ("model.from_scratch.num_hidden_layers=5", "train.token_budget=512")
    less, more = made(recipe, "train.gradient_checkpointing=true", *deep), made(recipe, *deep)
    assert less.memory.activations < more.memory.activations / 2


def test_bfloat16_copies_weights_and_halves_activations(recipe: dict[str, Any]) -> None:
    here, there = made(recipe), made(recipe, device="h100")
    assert there.compute_dtype == "bfloat16"
    assert there.memory.tables == 0
    assert 4 * here.parameters < there.memory.weights <= 6.01 * here.parameters
    assert there.memory.activations < here.memory.activations
    assert there.available == 80 * 10**9


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method={name: grad_ascent}"], "no retain term"),
        (["train.learning_rate=0.01"], "is high"),
        (["data.max_length=400"], "cut to the 256 tokens"),
        (["data.max_length=40", "data.on_truncate=keep"], "rows are cut"),
    ],
)
def test_warnings(recipe: dict[str, Any], overrides: list[str], words: str) -> None:
    assert any(words in warning for warning in made(recipe, *overrides).warnings)


def test_adapters_have_gradients_and_state_alone(recipe: dict[str, Any]) -> None:
    whole, adapted = made(own(recipe)), made(own(recipe), "model.use_peft=true", "model.lora_r=4")
    assert adapted.parameters == whole.parameters == whole.trained
    assert adapted.phases.step.gradients == 4 * adapted.trained < whole.phases.step.gradients / 2
    assert adapted.phases.step.optimizer < whole.phases.step.optimizer / 2
    assert adapted.weights_dtype == "float32 adapters on a frozen float32 base"


def test_packed_weights_are_half_a_byte_each(recipe: dict[str, Any]) -> None:
    def held(**keys: bool) -> int:
        section = ModelSection(**own(recipe)["model"], use_peft=True, **keys)
        model = shaped_model(section, None, seed=0)
        return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))

    matrices = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160)
    assert held() - held(load_in_8bit=True) == pytest.approx(3 * matrices, rel=0.03)
    assert held() - held(load_in_4bit=True) == pytest.approx(3.5 * matrices, rel=0.03)


@pytest.mark.slow
def test_packed_weights_are_not_kept_for_the_backward_pass(recipe: dict[str, Any]) -> None:
    adapted = made(own(recipe), "model.use_peft=true", "model.lora_r=4", device="l4")
    packed = made(own(recipe), "model.use_peft=true", "model.lora_r=4", "model.load_in_4bit=true", device="l4")
    assert packed.memory.weights < adapted.memory.weights / 2
    assert packed.weights_dtype == "float32 adapters on a frozen nf4 base"
    assert packed.parameters == adapted.parameters


def test_eight_bit_state(recipe: dict[str, Any]) -> None:
    here = made(recipe, device="h100").phases.step.optimizer
    packed = made(recipe, "train.optim=adamw_8bit", device="h100").phases.step.optimizer
    assert 0.2 * here < packed < 0.32 * here


@pytest.mark.slow
def test_several_processes(recipe: dict[str, Any]) -> None:
    alone = made(recipe, device="h100").phases.step
    copied = made(recipe, device="h100", num_processes=4)
    divided = made(recipe, "train.fsdp=true", device="h100", num_processes=4)
    assert copied.processes == 4
    assert copied.phases.step.gradients == 2 * alone.gradients
    assert copied.micro_batches < made(recipe, device="h100").micro_batches
    assert divided.phases.step.optimizer <= alone.optimizer / 4 + 1
    assert divided.phases.step.gradients <= alone.gradients / 4 + 1


@pytest.mark.slow
def test_what_does_not_fit_comes_with_what_needs_less(recipe: dict[str, Any]) -> None:
    big = made(own(recipe), "train.token_budget=2048", device="l4", memory="1.003GB")
    assert big.fits is False
    assert big.needed > 1.003e9 == big.available
    assert [knob.setting.split("=")[0] for knob in big.knobs][:3] == [
        "train.token_budget",
        "train.gradient_checkpointing",
        "train.optim",
    ]
    assert {knob.setting.split()[0] for knob in big.knobs} >= {"model.use_peft=true", "train.fsdp=true"}
    assert all(knob.memory < big.memory.total for knob in big.knobs)
    first = made(own(recipe), big.knobs[0].setting, device="l4")
    assert first.memory.total == big.knobs[0].memory
    assert (first.fits, first.knobs) == (True, ())


def test_time_from_a_given_rate(recipe: dict[str, Any]) -> None:
    time = made(recipe, "method={name: simnpo}", tokens_per_s=100).time
    assert (time.tokens_per_s, time.tables, time.source) == (100, 0, "as given")
    assert time.seconds is not None
    # Three epochs of every forget row and as many retain rows.
    assert 5 < time.seconds < 60
    asking = made(recipe, tokens_per_s=100).time
    assert asking.seconds == pytest.approx(time.seconds + (asking.tables or 0))


@pytest.mark.slow
def test_time_from_operations_timed_here(recipe: dict[str, Any]) -> None:
    time = made(recipe).time
    assert time.source == "each operation of a step timed here"
    assert time.seconds is not None
    assert 0 < (time.tables or 0) < time.seconds
    twice = made(recipe, "train.num_train_epochs=6").time
    assert twice.seconds == pytest.approx(2 * time.seconds - (time.tables or 0))
    # On a CPU, processes share the cores.
    assert made(recipe, num_processes=2).time.seconds == pytest.approx(time.seconds, rel=0.6)


def test_time_from_data_sheets(recipe: dict[str, Any]) -> None:
    fast, slow = made(recipe, device="h100").time, made(recipe, device="a100").time
    assert fast.seconds is not None
    assert slow.seconds == pytest.approx(fast.seconds * 989 / 312)
    assert "40% of the 989 TFLOP/s of H100" in fast.source


def test_time_is_unknown_where_nothing_says_how_fast(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = made(recipe, device="cuda")
    assert plan.time.seconds is None
    assert "--device h100" in plan.time.source
    assert (plan.available, plan.fits) == (None, None)


@pytest.mark.slow
def test_what_was_measured_here_is_used(recipe: dict[str, Any]) -> None:
    given = {**own(recipe), "train": {**recipe["train"], "token_budget": "auto"}}
    folder = given["model"]["model_name_or_path"]
    model, tokenizer = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)), load_tokenizer(folder)
    examples = load_examples(SourceSpec(path=given["data"]["forget"]), tofu="", role="forget").examples
    dataset = encode_all(examples, build_template("auto", tokenizer), role="forget", max_length=200)
    assert api.plan(given).token_budget_assumed
    budget = tuned_budget(model, dataset, pad_id=0, backward=True)
    plan = api.plan(given)
    assert (plan.token_budget, plan.token_budget_assumed) == (budget, False)


def test_numbers_of_a_method_s_own_are_not_guessed(recipe: dict[str, Any]) -> None:
    plan = made(recipe, "method={name: forgetting_sft}")
    assert any("memory is that of a likelihood loss" in warning for warning in plan.warnings)


@pytest.mark.slow
def test_the_command_prints_it(recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert main(["plan", str(path), "--device", "a100", "--memory", "40GB", "--num_processes", "2"]) == 0
    out = capsys.readouterr().out
    for words in ("bfloat16 computation on A100 x 2", "on each device at its peak (step)", "of 40.0 GB", "tokens/s"):
        assert words in out
    assert main(["plan", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["total"] == found["phases"]["step"]["total"]
    assert {"seconds", "source"} <= set(found["time"])


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("1.5g", 15 * 10**8), ("800", 800)]
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "much", "0GB", "12 parsec", "iB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        parse_size(text)


@pytest.mark.slow
def test_a_rate_that_bfloat16_cannot_see(recipe: dict[str, Any]) -> None:
    plan = made(recipe, "train.learning_rate=1e-6", device="a100")
    assert any("bfloat16" in warning for warning in plan.warnings)
    assert not any(
        "bfloat16" in warning for warning in made(recipe, "train.learning_rate=1e-4", device="a100").warnings
    )


def test_what_would_stop_the_run_stops_the_plan(recipe: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"method\.bta"):
        made(recipe, "method.bta=1")
    with pytest.raises(UsageError, match="retain"):
        made(recipe, "data.retain=[]")
    with pytest.raises(UsageError, match="needs a GPU with CUDA"):
        made(own(recipe), "model.use_peft=true", "model.load_in_4bit=true")
    with pytest.raises(UsageError, match="unknown device 'h1000'"):
        made(recipe, device="h1000")
