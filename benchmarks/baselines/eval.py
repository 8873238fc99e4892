"""A TOFU evaluator as published ones are written: every metric is a function of its own that runs the model.

It does what OpenUnlearning's evaluation does, with its settings, because that is what people would use instead: every
metric and every membership attack goes over its rows anew, which tokenises and forwards them again; rows in dataset
order, 32 at a time, padded on the right to the longest of the batch; logits of every position; every answer option with
its prompt run again; greedy answers by `generate`, prompts padded on the left, 200 new tokens, a batch at a time;
gradient norms row by row. What published evaluators share is shared here: the passes over paraphrased and perturbed
answers serve every form of the truth ratio, and one generation every ROUGE.

Where OpenUnlearning does more for nothing, this does not: Min-K++ forwards once and not twice, Min-K is not measured
again for PrivLeak, prompts are rendered twice a row and not three times. Metrics it does not have (energies, extraction
strength of retain rows) are not measured here. Definitions are the papers', so values must be those of `expunge eval`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from benchmarks.baselines.train import IGNORE, Row, pad_right

MIN_K = 0.4
LIKELIHOOD = "forget and holdout answers"
REFERENCE = "the same, reference model"
RIGHT = "other right answers"
PERTURBED = "perturbed answers"
GENERATION = "generation"
PARTS = (LIKELIHOOD, REFERENCE, RIGHT, PERTURBED, GENERATION)
"""What forward passes are for."""
UTILITY = [
    *(f"retain.{name}" for name in ("probability", "rougeL_recall", "truth_ratio_utility")),
    *(
        f"{split}.{name}"
        for split in ("real_authors", "world_facts")
        for name in ("probability_normalised", "rougeL_recall", "truth_ratio_utility")
    ),
]


class Item(NamedTuple):
    """One question of the benchmark."""

    question: str
    answer: str
    paraphrase: str | None
    perturbed: list[str]


@dataclass
class Evaluator:
    """Measures one model, metric by metric."""

    model: Any
    tokenizer: Any
    reference: Any
    """The reference attack's model."""
    batch_size: int = 32
    max_new_tokens: int = 200
    part: Callable[[str], AbstractContextManager[object]] = nullcontext
    """Entered around forward passes, with what they are for."""
    scores: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def run(self, splits: dict[str, list[Item]]) -> dict[str, float]:
        """Every metric but the gradient norms, by expunge's names."""
        for split in ("forget", "retain"):
            items = splits[split]
            with self.part(LIKELIHOOD if split == "forget" else RIGHT):
                self.probability(split, items)
            self.rouge(split, items)
            with self.part(RIGHT):
                paraphrased = self.losses(_texts(items, "paraphrase"))
            self.truth_ratio(split, paraphrased, self.wrong(items))
        with self.part(LIKELIHOOD):
            self.extraction_strength("forget", splits["forget"])
            self.exact_memorization("forget", splits["forget"])
        for split in ("real_authors", "world_facts"):
            items = splits[split]
            with self.part(RIGHT):
                right = self.probability(split, items)
            wrong = self.wrong(items)
            options = np.exp(-right) / (np.exp(-right) + np.exp(-wrong).sum(-1))
            self.scores[f"{split}.probability_normalised"] = float(options.mean())
            self.truth_ratio(split, right, wrong)
            self.rouge(split, items)
        attacks = (self.loss_attack, self.zlib_attack, self.reference_attack, self.min_k, self.min_k_plus_plus)
        for attack in attacks:
            with self.part(LIKELIHOOD):
                member, outsider = attack(splits["forget"]), attack(splits["holdout"])
            self.scores[f"membership.{attack.__name__.removesuffix('_attack')}_auc"] = auroc(member, outsider)
        for name, parts in (("retain_utility", UTILITY[:3]), ("model_utility", UTILITY)):
            values = [self.scores[part] for part in parts]
            self.scores[name] = len(values) / sum(1 / value for value in values) if all(values) else 0.0
        return self.scores

    # Metrics: each runs the model over its rows

    def probability(self, split: str, items: list[Item]) -> np.ndarray:
        losses = self.losses(_texts(items, "answer"))
        self.scores[f"{split}.probability"] = float(np.exp(-losses).mean())
        return losses

    def truth_ratio(self, split: str, right: np.ndarray, wrong: np.ndarray) -> None:
        ratio = np.exp(right - wrong.mean(-1))
        self.scores[f"{split}.truth_ratio"] = float(np.minimum(ratio, 1 / ratio).mean())
        self.scores[f"{split}.truth_ratio_prob_mean"] = float((1 / (1 + ratio)).mean())
        self.scores[f"{split}.truth_ratio_utility"] = float(np.maximum(0, 1 - ratio).mean())

    def wrong(self, items: list[Item]) -> np.ndarray:
        """(items, options) losses of the perturbed answers, one option at a time."""
        options = [[(item.question, item.perturbed[i]) for item in items] for i in range(len(items[0].perturbed))]
        with self.part(PERTURBED):
            return np.stack([self.losses(texts) for texts in options], -1)

    def extraction_strength(self, split: str, items: list[Item]) -> None:
        found = []
        for logits, labels in self.forward(_texts(items, "answer")):
            predicted = logits.argmax(-1)
            for row, wanted in zip(predicted, labels, strict=True):
                hits = (row == wanted)[wanted != IGNORE][:-1].tolist()
                misses = [place for place, hit in enumerate(hits) if not hit]
                found.append(1 - (misses[-1] + 1 if misses else 0) / len(hits))
        self.scores[f"{split}.extraction_strength"] = float(np.mean(found))

    def exact_memorization(self, split: str, items: list[Item]) -> None:
        found = []
        for logits, labels in self.forward(_texts(items, "answer")):
            predicted = logits.argmax(-1)
            for row, wanted in zip(predicted, labels, strict=True):
                found.append(float((row == wanted)[wanted != IGNORE][:-1].float().mean()))
        self.scores[f"{split}.exact_memorization"] = float(np.mean(found))

    def loss_attack(self, items: list[Item]) -> np.ndarray:
        return -self.losses(_texts(items, "answer"))

    def zlib_attack(self, items: list[Item]) -> np.ndarray:
        sizes = np.array([len(zlib.compress(item.answer.encode())) for item in items])
        return -self.losses(_texts(items, "answer")) / sizes

    def reference_attack(self, items: list[Item]) -> np.ndarray:
        ours = self.losses(_texts(items, "answer"))
        with self.part(REFERENCE):
            return self.losses(_texts(items, "answer"), model=self.reference) - ours

    def min_k(self, items: list[Item]) -> np.ndarray:
        found = []
        for logits, labels in self.forward(_texts(items, "answer")):
            logps = logits.log_softmax(-1)
            for row, wanted in zip(logps, labels, strict=True):
                target = wanted[wanted != IGNORE]
                chosen = row[wanted != IGNORE].gather(-1, target[:, None]).squeeze(-1)[:-1]
                found.append(_lowest(chosen))
        return np.array(found)

    def min_k_plus_plus(self, items: list[Item]) -> np.ndarray:
        found = []
        for logits, labels in self.forward(_texts(items, "answer")):
            logps = logits.log_softmax(-1)
            probs = logits.softmax(-1)
            mean = (probs * logps).sum(-1)
            deviation = ((probs * logps.square()).sum(-1) - mean.square()).clamp(min=1e-6).sqrt()
            for place, wanted in enumerate(labels):
                mask = wanted != IGNORE
                chosen = logps[place][mask].gather(-1, wanted[mask][:, None]).squeeze(-1)
                found.append(_lowest(((chosen - mean[place][mask]) / deviation[place][mask])[:-1]))
        return np.array(found)

    def gradnorm(self, items: list[Item]) -> np.ndarray:
        """Norm of the gradient of each answer's average loss, its last token left out; one row at a time."""
        found = []
        for item in items:
            self.model.zero_grad()
            (logits, labels), *_ = self.forward([(item.question, item.answer)])
            kept = labels.clone()
            kept[:, -1] = IGNORE
            torch.nn.functional.cross_entropy(logits.transpose(1, 2), kept, ignore_index=IGNORE).backward()
            grads = [parameter.grad.norm() for parameter in self.model.parameters() if parameter.grad is not None]
            found.append(-float(torch.stack(grads).norm()))
        self.model.zero_grad()
        return np.array(found)

    def rouge(self, split: str, items: list[Item]) -> None:
        long, short = [], []
        for batch in _batches(items, self.batch_size):
            scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
            with self.part(GENERATION):
                outputs = self.generate(batch)
            for item, output in zip(batch, outputs, strict=True):
                found = scorer.score(item.answer, output)
                long.append(found["rougeL"].recall)
                short.append(found["rouge1"].recall)
        self.scores[f"{split}.rougeL_recall"] = float(np.mean(long))
        self.scores[f"{split}.rouge1_recall"] = float(np.mean(short))

    # Running the model

    def losses(self, texts: list[tuple[str, str]], *, model: Any = None) -> np.ndarray:
        """(texts,) average loss of each answer."""
        found = []
        for logits, labels in self.forward(texts, model=model):
            each = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
            )
            found.append(each.sum(-1) / (labels != IGNORE).sum(-1))
        return torch.cat(found).double().numpy()

    def forward(self, texts: list[tuple[str, str]], *, model: Any = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, T - 1, V) logits and the tokens they predict, a batch at a time."""
        model = model or self.model
        for batch in _batches([self._row(*text) for text in texts], self.batch_size):
            inputs = pad_right(batch, pad_id=self.tokenizer.pad_token_id, device=model.device)
            logits = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
            yield logits[:, :-1].float(), inputs.labels[:, 1:]

    def generate(self, items: Sequence[Item]) -> list[str]:
        prompts = [self._prompt(item.question) for item in items]
        width = max(len(prompt) for prompt in prompts)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=pad
        )
        return list(self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))

    def _prompt(self, question: str) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _row(self, question: str, answer: str) -> Row:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        start = len(self._prompt(question))
        return Row(ids, [IGNORE] * start + ids[start:])


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(a positive scores above a negative), ties counting half."""
    pairs = positive[:, None] - negative[None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def _texts(items: list[Item], kind: str) -> list[tuple[str, str]]:
    return [(item.question, getattr(item, kind)) for item in items]


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _lowest(values: Tensor) -> float:
    """Mean of the lowest 40 %."""
    count = max(1, int(len(values) * MIN_K))
    return float(values.sort().values[:count].mean())
