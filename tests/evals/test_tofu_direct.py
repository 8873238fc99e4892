"""Every metric of the TOFU suite, from disk to number, equals the plainest computation there is: one text at a time."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from expunge import api
from expunge.config.schema import ModelSection
from expunge.evals.suites.tofu_canonical import UTILITY
from expunge.models.load import load_model, load_tokenizer

ROWS = 2
FILES = {
    "forget": "forget10_perturbed",
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
    "holdout": "holdout10",
}


class Text(NamedTuple):
    """One answer under teacher forcing, its end token last; float64."""

    loss: float
    logp: list[float]
    hit: list[bool]
    z: list[float]
    energy: float
    """Of the last prompt token."""


class Plain:
    """One model, asked one text at a time, with all logits."""

    def __init__(self, name: str, template: str) -> None:
        self.model = load_model(ModelSection(model_name_or_path=name), device=torch.device("cpu")).model
        self.tokenizer = load_tokenizer(name)
        self.chat = template == "auto"

    def prompt(self, question: str) -> list[int]:
        if not self.chat:
            return list(self.tokenizer(question)["input_ids"])
        turns = [{"role": "user", "content": question}]
        found = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        return list(found["input_ids"])

    def whole(self, question: str, answer: str) -> list[int]:
        if not self.chat:
            return [*self.tokenizer(question + answer)["input_ids"], self.tokenizer.eos_token_id]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return list(self.tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])

    @torch.no_grad()
    def text(self, question: str, answer: str) -> Text:
        ids, start = self.whole(question, answer), len(self.prompt(question))
        logits = self.model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
        log_q = torch.log_softmax(logits, -1)
        labels = torch.tensor(ids[start:])
        logp = log_q.gather(-1, labels[:, None])[:, 0]
        mu = (log_q.exp() * log_q).sum(-1)
        var = (log_q.exp() * log_q**2).sum(-1) - mu**2
        z = (logp - mu) / var.clamp(min=1e-6).sqrt()
        hit = (logits.argmax(-1) == labels).tolist()
        return Text(float(-logp.mean()), logp.tolist(), hit, z.tolist(), float(-torch.logsumexp(logits[0], -1)))

    @torch.no_grad()
    def answer(self, question: str) -> str:
        ids = torch.tensor([self.prompt(question)])
        made = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=200, do_sample=False, pad_token_id=0
        )
        return str(self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def least(values: Sequence[float]) -> float:
    return mean(sorted(values)[: max(1, int(0.4 * len(values)))])


def auc(above: Sequence[float], below: Sequence[float]) -> float:
    return mean([(one > two) + (one == two) / 2 for one in above for two in below])


def strength(hit: Sequence[bool]) -> float:
    start = next(k for k in range(len(hit) + 1) if all(hit[k:]))
    return 1 - start / len(hit)


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", text)
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def bits(text: str, n: int) -> float:
    counts = Counter(ngrams(text, n)).values()
    return sum(-count / sum(counts) * math.log2(count / sum(counts)) for count in counts)


def read(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    return list(rows[:ROWS])


def expected(plain: Plain, rows: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    found: dict[str, float] = {}
    answers: dict[str, list[Text]] = {}
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for split, items in rows.items():
        texts = answers[split] = [plain.text(item["question"], item["answer"]) for item in items]
        if split == "holdout":
            continue
        right = [plain.text(item["question"], item.get("paraphrased_answer", item["answer"])).loss for item in items]
        wrong = [[plain.text(item["question"], text).loss for text in item["perturbed_answer"]] for item in items]
        ratio = [math.exp(one - mean(others)) for one, others in zip(right, wrong, strict=True)]
        said = [plain.answer(item["question"]) for item in items]
        scores = [scorer.score(item["answer"], text) for item, text in zip(items, said, strict=True)]
        found[f"{split}.probability"] = mean([math.exp(-text.loss) for text in texts])
        found[f"{split}.rougeL_recall"] = mean([score["rougeL"].recall for score in scores])
        found[f"{split}.rouge1_recall"] = mean([score["rouge1"].recall for score in scores])
        found[f"{split}.truth_ratio"] = mean([min(r, 1 / r) for r in ratio])
        found[f"{split}.truth_ratio_prob_mean"] = mean([1 / (1 + r) for r in ratio])
        found[f"{split}.truth_ratio_utility"] = mean([max(0.0, 1 - r) for r in ratio])
        if split in ("forget", "retain"):
            found[f"{split}.extraction_strength"] = mean([strength(text.hit[:-1]) for text in texts])
            found[f"{split}.exact_memorization"] = mean([mean(text.hit[:-1]) for text in texts])
            found[f"{split}.ngram_entropy"] = mean(
                [(bits(text, 2) * 2 / 3 + bits(text, 3) * 4 / 3) / 2 for text in said]
            )
            runs = [run for text in said if (run := ngrams(text, 4))]
            found[f"{split}.repetition"] = mean([1 - len(set(run)) / len(run) for run in runs])
        else:
            shares = [
                math.exp(-text.loss) / (math.exp(-text.loss) + sum(math.exp(-other) for other in others))
                for text, others in zip(texts, wrong, strict=True)
            ]
            found[f"{split}.probability_normalised"] = mean(shares)
    for name, parts in (("retain_utility", UTILITY["retain"]), ("model_utility", sum(UTILITY.values(), ()))):
        values = [found[part] for part in parts]
        found[name] = 0.0 if 0 in values else len(values) / sum(1 / value for value in values)
    sizes = {
        (split, number): len(zlib.compress(item["answer"].encode()))
        for split in ("forget", "holdout")
        for number, item in enumerate(rows[split])
    }
    attacks: dict[str, Callable[[str, int, Text], float]] = {
        "loss": lambda split, number, text: -text.loss,
        "zlib": lambda split, number, text: -text.loss / sizes[split, number],
        "min_k": lambda split, number, text: least(text.logp[:-1]),
        "min_k_plus_plus": lambda split, number, text: least(text.z[:-1]),
    }
    for name, score in attacks.items():
        members, others = (
            [score(split, number, text) for number, text in enumerate(answers[split])]
            for split in ("forget", "holdout")
        )
        found[f"membership.{name}_auc"] = auc(members, others)
    found["forget.leak_at_128_exact"] = mean([1 - (1 - math.exp(sum(text.logp))) ** 128 for text in answers["forget"]])
    unknown, known = ([text.energy for text in answers[split]] for split in ("forget", "retain"))
    found["energy.auroc"] = auc(unknown, known)
    return found


@pytest.mark.parametrize(
    ("name", "template"), [("tofu_tiny_full", "auto"), pytest.param("stories260K", "plain", marks=pytest.mark.slow)]
)
def test_every_metric_equals_a_direct_unbatched_computation(
    name: str, template: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    model, data = str(shared / "models" / name), shared / "data" / "tofu"
    rows = {split: read(data / f"{file}.json") for split, file in FILES.items()}
    options = {"tofu": str(data), "template": template, "limit": ROWS, "token_budget": 1500}
    found = api.evaluate(model, suite="tofu", out=tmp_path / "run", **options)  # type: ignore[arg-type]
    direct = expected(Plain(model, template), rows)
    measured = {metric: score.value for metric, score in found.scores.items()}
    for metric, value in direct.items():
        assert measured.pop(metric) == pytest.approx(value, rel=2e-3, abs=2e-4), metric
    assert set(measured) == {"energy.fpr95"}
