"""A tiny model to stand in front of, and a finished run around one."""

from __future__ import annotations

from pathlib import Path

import pytest
from asked import questions

from expunge.data.template import build_template
from expunge.guards.base import Subject
from expunge.testing.runs import tiny_run
from expunge.testing.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def subject() -> Subject:
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    # An answer ends after some tokens, for some prompts within the draft.
    model.generation_config.eos_token_id = list(range(7, len(tokenizer), 8))
    return Subject(model, tokenizer, build_template("auto", tokenizer))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_run(
        tmp_path / "run",
        forget=[{"question": text, "answer": "In Oslo."} for text in questions(12, "Vane")],
        retain=[{"question": text, "answer": "In Turin.", "group": text[10:16]} for text in questions(50)],
    )
