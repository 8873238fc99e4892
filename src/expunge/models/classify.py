"""Text classifiers that judge what a model wrote: named by the user, from a folder or the Hub, never by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from expunge.errors import ModelError
from expunge.metrics.ragged import Array
from expunge.models.fingerprint import model_digest
from expunge.models.load import load_classifier

BATCH = 32
"""Texts of one forward pass."""
JUDGED_TOKENS = 32
"""Tokens by which an answer is called clean or gibberish."""
LEAST_RECALL = 0.1
"""ROUGE-L recall below which an answer counts as not entailing the true one without being looked at."""


@dataclass(frozen=True)
class TextClassifier:
    """A sequence classifier with its tokenizer, in evaluation mode."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def labels(self) -> list[str]:
        """Its labels, by their number."""
        return [str(self.model.config.id2label[number]) for number in range(self.model.config.num_labels)]

    @property
    def identity(self) -> dict[str, str]:
        """What tells it from another one."""
        return {"name": self.name, "digest": model_digest(self.model)}

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[tuple[str, ...]], *, max_length: int) -> Array:
        """Softmax over the labels, of each text, or pair of texts, apart.

        Args:
            texts: tuples of one text, or of two that are put to the classifier together.
            max_length: tokens; what is longer is cut, of a pair the longer text first.

        Returns:
            (R, labels) float64, each row adding up to 1.
        """
        found = np.zeros((len(texts), len(self.labels)))
        order = sorted(range(len(texts)), key=lambda place: sum(map(len, texts[place])))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            parts = [list(part) for part in zip(*(texts[place] for place in places), strict=True)]
            inputs = self.tokenizer(*parts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
            logits = self.model(**inputs.to(self.model.device)).logits
            found[places] = logits.double().softmax(-1).cpu().numpy()
        return found


def text_classifier(name: str, *, device: torch.device) -> TextClassifier:
    """A classifier from a folder or the Hub.

    Raises:
        ModelError: nothing there, unreadable, or not a sequence classifier with trained labels.
    """
    model, tokenizer = load_classifier(name, device=device)
    return TextClassifier(name, model, tokenizer)


def _label(classifier: TextClassifier, wanted: str, *, hint: str) -> int:
    """The number of a label, whatever its case.

    Raises:
        ModelError: there is none; those there are are named.
    """
    labels = [label.casefold() for label in classifier.labels]
    if wanted not in labels:
        raise ModelError(
            f"{classifier.name!r} has no label {wanted!r} (it has: {', '.join(classifier.labels)})", hint=hint
        )
    return labels.index(wanted)


@dataclass(frozen=True)
class Clean:
    """Judges how likely a text is to be clean, and no gibberish."""

    classifier: TextClassifier
    label: int
    """Of "clean"."""

    @staticmethod
    def of(classifier: TextClassifier) -> Clean:
        """With a classifier of texts.

        Raises:
            ModelError: none of its labels is called `clean`.
        """
        return Clean(classifier, _label(classifier, "clean", hint="name one that was trained to find gibberish"))

    def lengths(self, texts: Sequence[str]) -> dict[str, int]:
        """Tokens of each distinct text that the classifier gets, of `JUDGED_TOKENS` at most."""
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        ids = self.classifier.tokenizer(distinct, truncation=True, max_length=JUDGED_TOKENS)["input_ids"]
        return dict(zip(distinct, map(len, ids), strict=True))

    def judge(self, texts: Sequence[str]) -> list[float]:
        """Probability of the class "clean" of each text, by its first `JUDGED_TOKENS` tokens.

        Args:
            texts: R texts, none of which becomes no token.

        Returns:
            R values in [0, 1].

        Source:
            OpenUnlearning (arXiv 2506.12618), in its code.
        """
        found = self.classifier.probabilities([(text,) for text in texts], max_length=JUDGED_TOKENS)
        return [float(value) for value in found[:, self.label]]


@dataclass(frozen=True)
class Entailment:
    """Judges whether an answer entails the true one."""

    classifier: TextClassifier
    label: int
    """Of "entailment"."""

    @staticmethod
    def of(classifier: TextClassifier) -> Entailment:
        """With a classifier of pairs.

        Raises:
            ModelError: none of its labels is called `entailment`.
        """
        hint = "name one that was trained on natural language inference"
        return Entailment(classifier, _label(classifier, "entailment", hint=hint))

    def judge(self, answers: Sequence[str], truths: Sequence[str], recalls: Sequence[float]) -> list[bool]:
        """Whether entailment is the likeliest label with the answer as premise and the truth as hypothesis.

        Args:
            answers: R texts that a model wrote.
            truths: R texts that should have been written.
            recalls: R values of ROUGE-L recall; below 0.1 an answer is not looked at and entails nothing.

        Returns:
            R values; each distinct pair is judged once.

        Source:
            Leak@k (arXiv 2511.04934), in its code.
        """
        pairs = [
            (answer, truth) if recall >= LEAST_RECALL else None
            for answer, truth, recall in zip(answers, truths, recalls, strict=True)
        ]
        distinct = list(dict.fromkeys(pair for pair in pairs if pair is not None))
        chosen = self.classifier.probabilities(distinct, max_length=512).argmax(-1) == self.label
        judged = dict(zip(distinct, chosen.tolist(), strict=True))
        return [pair is not None and judged[pair] for pair in pairs]
