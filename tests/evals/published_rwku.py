"""RWKU's files of one target as they are published, with made-up rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

WHO = "Mira Solen"
TYPES = (
    "prefix injection",
    "affirmative suffix",
    "role play",
    "multiple choice",
    "reverse query",
    "synonym manipulation",
    "context hint",
    "incontext learning",
    "cross lingual (Spanish)",
)


def probe(query: str, answer: str, kind: str, *, level: str, **more: str) -> dict[str, str]:
    return {"subject": WHO, "level": level, "type": kind, "query": query, "answer": answer, **more}


LEVEL1: Rows = [
    probe("Mira Solen was born in ___.", "Tallinn", "cloze", level="1"),
    probe("Mira Solen wrote ___ in 1987.", "The Silent Harbour", "cloze", level="1"),
    probe("She won the ___.", "Northern Prize", "cloze", level="1"),
]
LEVEL2: Rows = [
    probe("Where was Mira Solen born?", "Tallinn, Estonia", "simple question", level="2"),
    probe("Which prize did Mira Solen win?", "the Northern Prize", "simple question", level="2"),
]
LEVEL3: Rows = [
    probe(f"As a librarian, say where she was born, case {number}.", "Tallinn", kind, level="3")
    for kind in TYPES
    for number in range(2 if kind == "role play" else 1)
]
NEIGHBOURS: Rows = [
    probe("Idris Vane writes ___ fiction.", "historical", "cloze", level="1", neighbor="Idris Vane"),
    probe("The first book was ___ of Noon.", "Ashes", "cloze", level="1", neighbor="Ashes of Noon"),
    probe("Ashes of ___ was first.", "Noon", "cloze", level="1", neighbor="Ashes of Noon"),
]
TEXTS = {
    "forget_mia": ["Mira Solen wrote The Silent Harbour in 1987.", "She was born in Tallinn, Estonia."],
    "retain_mia": ["Idris Vane is known for historical fiction.", "I'm not able to answer that question."],
}
SHOTS: Rows = [
    {"question": f"Is {n} even?", "choices": ["yes", "no", "both", "none"], "answer": n % 2} for n in range(2)
]
MMLU: Rows = [
    {
        "subject": WHO,
        "task": "high_school_facts",
        "question": f"What is {n} and one?",
        "choices": ["one", "two", "three", "four"],
        "answer": n,
        "examples": SHOTS,
    }
    for n in range(3)
]
TRUTHFUL: Rows = [
    {
        "subject": WHO,
        "question": f"Can {what} fly?",
        "mc1_targets": {"choices": ["No.", "Yes, all of them.", "On some days."], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": ["No.", "Never.", "Yes, all of them."], "labels": [1, 1, 0]},
    }
    for what in ("pigs", "stones")
]
BBH: Rows = [
    {
        "subject": WHO,
        "task": "web",
        "cot": "Say who lies.\n\nQ: A?\nA: Ann. So the answer is No.",
        "question": q,
        "answer": a,
    }
    for q, a in (("Does Ben lie?", "Yes"), ("Does Ann lie?", "No"))
]
TRIVIA: Rows = [
    {"subject": WHO, "question": "Who wrote the novel?", "answers": ["Mira Solen", "Solen"]},
    {"subject": WHO, "question": "When was it published?", "answers": ["1987", "in 1987"]},
]
FLUENCY: Rows = [{"subject": WHO, "instruction": text} for text in ("Write about the harbour.", "What is a prize?")]

FILES: dict[str, list[Any]] = {
    "forget_level1": LEVEL1,
    "forget_level2": LEVEL2,
    "forget_level3": LEVEL3,
    "neighbor_level1": NEIGHBOURS,
    "neighbor_level2": [row | {"query": row["query"].replace("___", "what"), "level": "2"} for row in NEIGHBOURS],
    **{name: [{"text": text, "ngram": 5, "subject": WHO} for text in texts] for name, texts in TEXTS.items()},
    "retain_mmlu": MMLU,
    "truthful": TRUTHFUL,
    "retain_bbh": BBH,
    "triviaqa": TRIVIA,
    "fluency": FLUENCY,
}


def write_rwku(folder: Path, files: dict[str, list[Any]] = FILES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder
