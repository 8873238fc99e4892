"""The two passes against the plainest computation there is: one text at a time, full logits, HF generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.config.schema import ModelSection
from expunge.data.collate import collate
from expunge.data.example import Example, Turn
from expunge.data.template import build_template
from expunge.errors import DataError
from expunge.evals.jobs import plan_jobs
from expunge.evals.suite import Measured, Split, Suite
from expunge.evals.trace import trace
from expunge.models.decode import end_ids, greedy, lowest_argmax
from expunge.models.load import load_model, load_tokenizer


def nothing(*args: Any, **kwargs: Any) -> Measured:
    return Measured({}, {})


@pytest.fixture(scope="module")
def tofu_model(shared: Path) -> tuple[Any, Any]:
    name = str(shared / "models/tofu_tiny_full")
    return load_model(ModelSection(model_name_or_path=name), device=torch.device("cpu")).model, load_tokenizer(name)


def tofu_examples(shared: Path, name: str, rows: range) -> tuple[Example, ...]:
    lines = (shared / "data/tofu" / f"{name}.json").read_text(encoding="utf-8").splitlines()
    found = []
    for row in rows:
        item = json.loads(lines[row])
        turns = (Turn("user", item["question"]), Turn("assistant", item["answer"]))
        extra = {k: v for k, v in item.items() if k not in ("question", "answer")}
        found.append(Example(f"{name}:{row}", row, turns=turns, group=str(row // 20), extra=extra))
    return tuple(found)


def test_every_traced_value_equals_a_direct_unbatched_computation(shared: Path, tofu_model: tuple[Any, Any]) -> None:
    model, tokenizer = tofu_model
    examples = tofu_examples(shared, "forget10_perturbed", range(0, 40, 8))
    split = Split("forget", examples, ("answer", "paraphrase", "perturbed"), stats=True)
    template = build_template("auto", tokenizer)
    plan = plan_jobs(Suite("tofu", (split,), nothing), template, max_length=512)
    table = trace(model, plan, pad_id=0, token_budget=700).table.to_pylist()
    assert [row["variant"] for row in table[:7]] == ["answer", "paraphrase", *(f"perturbed_{i}" for i in range(5))]
    for row in table:
        chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["target"]}]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, row["num_prompt"] - 1 : -1].double()
        labels = ids[0, row["num_prompt"] :]
        assert row["token"] == labels.tolist()
        assert row["is_end"] == [False] * (len(labels) - 1) + [True]
        log_q = torch.log_softmax(logits, -1)
        chosen = log_q.gather(-1, labels[:, None]).squeeze(-1)
        assert row["logp"] == pytest.approx(chosen.tolist(), abs=2e-4, rel=1e-4)
        assert row["lse"] == pytest.approx(torch.logsumexp(logits, -1).tolist(), abs=2e-4, rel=1e-4)
        assert row["hit"] == (logits.argmax(-1) == labels).tolist()
        if row["variant"] == "answer":
            mu = (log_q.exp() * log_q).sum(-1)
            assert row["mu"] == pytest.approx(mu.tolist(), abs=2e-4, rel=1e-3)
            var = (log_q.exp() * log_q**2).sum(-1) - mu**2
            assert row["var"] == pytest.approx(var.tolist(), abs=1e-3, rel=1e-2)
            assert row["rank"] == (1 + (logits > logits.gather(-1, labels[:, None])).sum(-1)).tolist()
        else:
            assert row["mu"] is None


def test_budget_and_split_order_change_no_trace(shared: Path, tofu_model: tuple[Any, Any]) -> None:
    model, tokenizer = tofu_model
    split = Split("forget", tofu_examples(shared, "forget10_perturbed", range(12)), ("answer", "perturbed"))
    plan = plan_jobs(Suite("tofu", (split,), nothing), build_template("auto", tokenizer), max_length=512)
    small, large = (trace(model, plan, pad_id=pad, token_budget=b).table for pad, b in ((0, 256), (7, 4096)))
    for one, two in zip(small["logp"].to_pylist(), large["logp"].to_pylist(), strict=True):
        assert one == pytest.approx(two, abs=1e-4, rel=1e-5)


def test_a_text_two_splits_share_is_run_once(shared: Path, tofu_model: tuple[Any, Any]) -> None:
    model, tokenizer = tofu_model
    examples = tofu_examples(shared, "forget10_perturbed", range(4))
    splits = (Split("forget", examples), Split("again", examples))
    plan = plan_jobs(Suite("tofu", splits, nothing), build_template("auto", tokenizer), max_length=512)
    assert (len(plan.jobs), len(plan.dataset.encoded)) == (8, 4)
    table = trace(model, plan, pad_id=0, token_budget=512).table
    assert table["logp"].to_pylist()[:4] == table["logp"].to_pylist()[4:]


def test_left_padded_generation_equals_one_by_one_and_hf_generate(shared: Path, tofu_model: tuple[Any, Any]) -> None:
    model, tokenizer = tofu_model
    template = build_template("auto", tokenizer)
    examples = tofu_examples(shared, "forget10_perturbed", range(0, 400, 40))
    prompts = [template.prompt_ids(example.prompt) for example in examples]
    ends = end_ids(model, template)
    together = greedy(model, prompts, max_new_tokens=60, end_ids=ends, pad_id=0, token_budget=4096).outputs
    apart = [greedy(model, [p], max_new_tokens=60, end_ids=ends, pad_id=0).outputs[0] for p in prompts]
    assert together == apart
    for prompt, output in zip(prompts, apart, strict=True):
        plain = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=60,
            do_sample=False,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        expected = plain[:-1] if plain[-1] in ends else plain
        assert output.token == expected
        assert output.ended == (plain[-1] in ends)


def test_limits_hold_per_prompt(tofu_model: tuple[Any, Any]) -> None:
    model, tokenizer = tofu_model
    prompts = [build_template("auto", tokenizer).prompt_ids((Turn("user", q),)) for q in ("Who?", "What is it?", "Why")]
    made = greedy(model, prompts, max_new_tokens=[3, 0, 5], end_ids=set(), pad_id=0).outputs
    assert [len(output.token) for output in made] == [3, 0, 5]
    assert not any(output.ended for output in made)


def test_left_and_right_padding_agree(tofu_model: tuple[Any, Any], shared: Path) -> None:
    model, tokenizer = tofu_model
    template = build_template("auto", tokenizer)
    plan = plan_jobs(
        Suite("x", (Split("forget", tofu_examples(shared, "forget10_perturbed", range(3))),), nothing),
        template,
        max_length=512,
    )
    batch = collate(plan.dataset, [0, 1, 2], pad_id=0)
    width = batch.input_ids.shape[1]
    with torch.no_grad():
        right = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
            ids = torch.cat(
                [torch.zeros(1, width - length, dtype=torch.long), batch.input_ids[row : row + 1, :length]], 1
            )
            mask = (torch.arange(width) >= width - length).long()[None]
            position = (mask.cumsum(-1) - 1).clamp(min=0)
            left = model(input_ids=ids, attention_mask=mask, position_ids=position).logits
            assert torch.allclose(left[0, width - length :], right[row, :length], atol=1e-4)


def test_the_lowest_id_wins_a_tie() -> None:
    assert lowest_argmax(torch.tensor([[0.0, 5.0, 5.0], [1.0, 1.0, 1.0]])).tolist() == [1, 0]


def test_a_text_is_not_measured_in_pieces(tofu_model: tuple[Any, Any]) -> None:
    texts = tuple(Example(f"t:{row}", row, text="The river is long. " * (1 + 9 * (row == 4))) for row in range(3, 6))
    template = build_template("auto", tofu_model[1])
    with pytest.raises(DataError, match=r"^1 of 3 custom rows do not fit into the 30 tokens .* \(forget row 4\)"):
        plan_jobs(Suite("custom", (Split("forget", texts, ("answer",)),), nothing), template, max_length=30)
