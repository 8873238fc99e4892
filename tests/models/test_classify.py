"""Text classifiers: alone as in company, pairs that need no look, and what is no classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.errors import ModelError
from expunge.models.classify import Entailment, text_classifier
from expunge.testing.tiny import tiny_classifier, tiny_llama, tiny_tokenizer

CPU = torch.device("cpu")
LABELS = ["contradiction", "Entailment", "neutral"]


def test_company_changes_no_text_and_a_pair_is_read_together(tmp_path: Path) -> None:
    classifier = text_classifier(tiny_classifier(tmp_path, LABELS), device=CPU)
    texts = [(f"Mira wrote {'a book ' * i}", f"by {i}") for i in range(40)]
    together = classifier.probabilities(texts, max_length=64)
    assert together.shape == (40, 3)
    assert together.sum(-1) == pytest.approx(np.ones(40))
    for place in (0, 17, 39):
        assert classifier.probabilities([texts[place]], max_length=64)[0] == pytest.approx(together[place], abs=1e-4)
        inputs = classifier.tokenizer(*texts[place], return_tensors="pt", truncation=True, max_length=64)
        with torch.no_grad():
            plain = classifier.model(**inputs).logits.softmax(-1)[0].numpy()
        assert together[place] == pytest.approx(plain, abs=1e-4)
    assert classifier.probabilities([("one text",)], max_length=8).shape == (1, 3)
    assert classifier.probabilities([], max_length=8).shape == (0, 3)


def test_entailment_is_the_likeliest_label_of_answers_that_hold_some_words(tmp_path: Path) -> None:
    classifier = text_classifier(tiny_classifier(tmp_path, LABELS), device=CPU)
    judge = Entailment.of(classifier)
    assert judge.label == 1
    answers = [f"Mira wrote book {i}." for i in range(30)]
    words = ("Mira", "novel", "Tallinn", "prize", "no", "historical fiction")
    truths = [words[i % 6] + " of" * (i // 6) for i in range(30)]
    expected = classifier.probabilities(list(zip(answers, truths, strict=True)), max_length=512).argmax(-1) == 1
    assert 0 < expected.sum() < 30
    assert judge.judge(answers, truths, [0.1] * 30) == expected.tolist()
    assert judge.judge(answers, truths, [0.09] * 30) == [False] * 30
    assert judge.judge(answers * 2, truths * 2, [1.0] * 60) == expected.tolist() * 2


def test_what_is_no_classifier_of_that_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no label 'entailment' \(it has: clean, noise\)"):
        Entailment.of(text_classifier(tiny_classifier(tmp_path / "other", ["clean", "noise"]), device=CPU))
    with pytest.raises(ModelError, match="there is no such folder"):
        text_classifier(str(tmp_path / "none"), device=CPU)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "language")
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "language")
    with pytest.raises(ModelError, match=r"no trained classifier: its weights lack score\.weight"):
        text_classifier(str(tmp_path / "language"), device=CPU)


def test_what_tells_classifiers_apart(tmp_path: Path) -> None:
    one, other = (
        text_classifier(tiny_classifier(tmp_path / name, LABELS, seed), device=CPU)
        for name, seed in (("a", 0), ("b", 1))
    )
    assert one.identity["name"].endswith("/a")
    assert one.identity["digest"] != other.identity["digest"]
