"""Annotated importance: words, phrases, characters and published word lists, on tokens; what is wrong with a row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from expunge.data.encode import Dataset, encode_all
from expunge.data.example import Example, Turn
from expunge.data.importance import important_tokens, read_annotations
from expunge.data.template import Template, build_template
from expunge.errors import DataError
from expunge.testing.tiny import WORDS, tiny_tokenizer

TOKENIZER = tiny_tokenizer([*WORDS, "Zoë Müller"])
TEMPLATE = build_template("auto", TOKENIZER)
ANSWER = "Mira Solen wrote The Silent Harbour in 1987, a novel."


def rows(*annotations: Any, answer: str = ANSWER) -> Dataset:
    examples = [
        Example(
            f"forget:{number}",
            number,
            turns=(Turn("user", "Who wrote The Silent Harbour?"), Turn("assistant", answer)),
            extra=MappingProxyType({} if value is None else {"important": value}),
        )
        for number, value in enumerate(annotations)
    ]
    return encode_all(examples, TEMPLATE, role="forget", max_length=256)


def text_of(dataset: Dataset, mask: np.ndarray) -> list[str]:
    """What the important tokens of each row say."""
    texts, start = [], 0
    for item in dataset.encoded:
        ids = item.input_ids[item.supervised]
        own = mask[start : start + len(ids)] > 0
        start += len(ids)
        texts.append(TOKENIZER.decode(ids[own]))
    assert start == len(mask)
    return texts


def marked(*annotations: Any, **keys: Any) -> list[str]:
    dataset = rows(*annotations, **keys)
    return text_of(dataset, important_tokens(dataset, TEMPLATE).mask)


def test_words_and_phrases_wherever_they_stand() -> None:
    (found,) = marked(["The Silent Harbour", "1987"])
    assert found.split() == ["The", "Silent", "Harbour", "1987"]
    assert marked(["Solen"], answer="Solen and Solen.")[0].split() == ["Solen", "Solen"]


def test_the_whole_answer_is_every_token_but_the_end() -> None:
    dataset = rows([[0, len(ANSWER)]])
    mask = important_tokens(dataset, TEMPLATE).mask
    assert mask.dtype == np.float32
    assert mask.tolist() == [1] * (len(mask) - 1) + [0]


def test_characters_are_those_of_the_answer_not_of_the_prompt() -> None:
    start = ANSWER.index("Silent")
    assert marked([[start, start + 6]])[0].strip() == "Silent"


def test_characters_of_more_than_one_byte() -> None:
    answer = "Zoë Müller was born in Tallinn."
    assert marked(["Müller"], answer=answer)[0].strip() == "Müller"
    assert marked([[answer.index("Tallinn"), answer.index("Tallinn") + 7]], answer=answer)[0].strip() == "Tallinn"


def test_white_space_around_an_answer_moves_nothing() -> None:
    assert marked(["Tallinn"], answer="  in Tallinn ")[0].strip() == "Tallinn"
    assert marked([[5, 12]], answer="  in Tallinn ")[0].strip() == "Tallinn"


def test_words_run_together_as_published() -> None:
    dataset = rows("MiraSolen1987")
    (found,) = text_of(dataset, important_tokens(dataset, TEMPLATE).mask)
    assert {"Mira", "Solen", "1987"} <= set(found.replace(",", " ").split())
    one = rows("aSolen")
    tokens = TOKENIZER.convert_ids_to_tokens(one.encoded[0].input_ids[one.encoded[0].supervised])
    kept = important_tokens(one, TEMPLATE).mask
    # A single letter is not important, a single digit would be.
    assert not any(kept[place] for place, token in enumerate(tokens) if token in ("Ġa", "a"))


def test_a_row_without_an_important_token_is_reported() -> None:
    found = important_tokens(rows(["Solen"], []), TEMPLATE)
    assert found.without == (1,)


def test_a_file_wins_over_the_column(tmp_path: Path) -> None:
    path = tmp_path / "important.json"
    dataset = rows(["Mira"], ["Mira"])
    path.write_text(json.dumps({"0": ["1987"], "forget:1": ["Silent"]}))
    mask = important_tokens(dataset, TEMPLATE, read_annotations(path)).mask
    assert [text.strip() for text in text_of(dataset, mask)] == ["1987", "Silent"]
    path.write_text(json.dumps([["Silent"], ["1987"]]))
    mask = important_tokens(dataset, TEMPLATE, read_annotations(path)).mask
    assert [text.strip() for text in text_of(dataset, mask)] == ["Silent", "1987"]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ((None, ["Mira"], None), r"2 of 3 forget rows do not say what is important \(rows 0, 2\)"),
        ((["Mira"], ["Vane"]), r"'Vane' does not occur in the answer \(row 1\)"),
        ((["mira"],), "'mira' does not occur"),
        ((["Harb"],), "'Harb' does not occur"),
        (([[3, 900]],), r"characters 3 to 900 are not in an answer of 53 \(row 0\)"),
        (([[3, "4"]],), "holds"),
        ((["Mira", [0, 4]],), "holds 'Mira'"),
        ((True,), "neither text nor a list"),
        (([], []), "no token of the 2 forget rows is important, so every weight would be zero"),
        (("zzz",), "every weight would be zero"),
    ],
)
def test_bad_annotations_name_their_rows(annotations: Sequence[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        important_tokens(rows(*annotations), TEMPLATE)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not JSON"), ("3", "neither an object nor a list"), (None, "cannot be read")]
)
def test_bad_files(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "important.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_annotations(path)


def test_a_text_cut_into_windows_has_no_characters_of_its_own() -> None:
    text = " ".join(WORDS)
    example = Example("forget:0", 0, text=text, extra=MappingProxyType({"important": ["Solen"]}))
    cut = encode_all([example], TEMPLATE, role="forget", max_length=40)
    with pytest.raises(DataError, match="windows can only be annotated by words run together"):
        important_tokens(cut, TEMPLATE)
    whole = encode_all([example], TEMPLATE, role="forget", max_length=512)
    assert important_tokens(whole, TEMPLATE).mask.sum() >= 2
    by_words = important_tokens(cut, TEMPLATE, {"0": "Solen"})
    assert by_words.mask.sum() >= 2


def template_of(tokenizer: Any) -> Template:
    return build_template("auto", tokenizer)


@pytest.mark.parametrize("split", ["forget01", "forget05", "forget10"])
def test_published_word_lists_mark_tokens_of_every_row(split: str, shared: Path) -> None:
    """The published annotations of TOFU, row by row, on a tokenizer of our own."""
    lines = (shared / f"data/tofu/{split}.json").read_text().splitlines()
    examples = [
        Example(f"{split}:{row}", row, turns=(Turn("user", item["question"]), Turn("assistant", item["answer"])))
        for row, item in enumerate(map(json.loads, lines))
    ]
    tokenizer = tiny_tokenizer([example.answer for example in examples], vocab_size=2000)
    template = template_of(tokenizer)
    dataset = encode_all(examples, template, role="forget", max_length=512)
    found = important_tokens(dataset, template, read_annotations(shared / f"data/tofu_extras/importance_{split}.json"))
    assert not found.without
    assert 0.15 < found.mask.mean() < 0.75
    for example, item in zip(examples, dataset.encoded, strict=True):
        covers = template.answer_offsets(example, item)
        inside = item.supervised & ~item.is_end
        assert covers[inside][0, 0] == 0
        assert covers[inside][-1, 1] == len(example.answer.rstrip())
