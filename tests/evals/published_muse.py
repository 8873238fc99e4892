"""MUSE's files as they are published, with made-up rows: a folder per subset, one JSON array per split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUESTIONS = {
    "forget": [
        ("Who had a red ball?", "Tim"),
        ("Where did Lily go?", "to the big park"),
        ("Who was sad?", "the little dog"),
    ],
    "retain": [
        ("What did Ben like?", "to play with his toys"),
        ("Who ran?", "Sam"),
        ("Where was mom?", "in the house"),
    ],
}
SHOTS = [(f"Who saw {name}?", name) for name in ("Tim", "Lily", "Ben", "Sue", "Max", "Tom", "Amy", "Sam", "Jen", "Bob")]
STORIES = (
    (
        "Once upon a time, there was a little girl named Lily. She loved to play",
        "outside in the park with her friends. One day, she saw a big dog and she was very happy. "
        "She wanted to play with the dog. The dog was very happy and they played all day. Lily went home and told her "
        "mom about the dog. Her mom was happy too and said that they could go to the park again the next day to play. "
        "The next day it was sunny, and Lily took her ball and a blue hat with her. The dog was not there.",
    ),
    ("One day, a boy named Tim went to the", "park with his mom. They saw a big red ball and played with it."),
    ("The little bird was sad. It", "wanted to fly high in the sky, but it could not find its mom."),
)
TEXTS = {
    "forget": [
        "Once upon a time there was a boy named Tim. He had a big red ball.",
        "Lily went to the park with her mom and saw a dog.",
        "Zyx qwv blorp snag truffle vex.",
    ],
    "holdout": [
        "The cat sat on the mat and was happy all day.",
        "Invoices of the third quarter are payable at once.",
        "Ben had a toy. He liked to play with it.",
    ],
}


def write_muse(folder: Path) -> Path:
    """Every subset that the suite reads."""
    for side, rows in QUESTIONS.items():
        write(folder / f"knowmem/{side}_qa.json", pairs(rows))
        write(folder / f"knowmem/{side}_qa_icl.json", pairs(SHOTS))
    verbatim = [{"id": number, "prompt": prompt, "gt": gt} for number, (prompt, gt) in enumerate(STORIES)]
    write(folder / "verbmem/forget.json", verbatim)
    for split, texts in TEXTS.items():
        write(folder / f"privleak/{split}.json", [{"text": text} for text in texts])
    return folder


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def pairs(rows: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"question": question, "answer": answer} for question, answer in rows]
