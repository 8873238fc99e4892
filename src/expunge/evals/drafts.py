"""How greedy answers begin, as far as the trace says it already: where the model prefers the gold answer's own tokens.

The first tokens of an answer that the trace saw on top, each after the ones before it, are what greedy decoding gives,
so decoding starts behind them, and not at all where they reach the end of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expunge.data.example import Example, Turn
from expunge.data.template import Template

SURE = math.log(0.6)
"""Log-probability from which a token counts as chosen: it is then at least log(0.6 / 0.4) = 0.41 nats above any other,
which rounding in another batch, in bfloat16 too, does not turn round."""
COLUMNS = ("split", "row", "variant", "num_prompt", "token", "hit", "logp")
"""What is read of a trace."""


class Place(NamedTuple):
    """A row of a split."""

    split: str
    row: int


class Draft(NamedTuple):
    """The first tokens of a greedy answer."""

    num_prompt: int
    """Prompt tokens they were traced after."""
    token: list[int]


class Beginning(NamedTuple):
    """Where the decoding of one prompt starts."""

    token: list[int]
    """Ids known already, without the end token."""
    ended: bool
    """Whether the end token comes next, so that nothing is left to decode."""


Drafts = Mapping[Place, Draft]


def drafts_of(trace: pa.Table) -> dict[Place, Draft]:
    """What a trace says of greedy answers, by row; rows of which it says nothing are left out.

    Args:
        trace: the columns `COLUMNS`; only texts of the variant `answer` count.
    """
    answers = trace.filter(pc.equal(trace["variant"], "answer"))
    columns = [answers[name].to_pylist() for name in COLUMNS if name != "variant"]
    found = {}
    for split, row, num_prompt, token, hit, logp in zip(*columns, strict=True):
        length = _chosen(hit, logp)
        if length:
            found[Place(split, row)] = Draft(num_prompt, token[:length])
    return found


def _chosen(hit: Sequence[bool], logp: Sequence[float]) -> int:
    """Leading tokens that greedy decoding is sure to choose."""
    sure = np.asarray(hit, bool) & (np.asarray(logp) > SURE)
    return len(sure) if sure.all() else int(sure.argmin())


def beginnings(
    examples: Sequence[Example],
    drafts: Sequence[Draft | None],
    prompts: Sequence[Sequence[int]],
    template: Template,
    *,
    limits: Sequence[int],
    end_ids: Collection[int],
) -> list[Beginning]:
    """Where decoding starts, prompt by prompt.

    A draft counts only behind the very tokens it was traced behind: a suite may trace an answer after another prompt
    than it is generated from, and a tokenizer may join the end of a prompt with the answer.

    Args:
        examples: the rows whose answers were traced.
        drafts: what is known of each, or None.
        prompts: the tokens each answer is generated from.
        template: renders conversations.
        limits: new tokens of each answer, at most.
        end_ids: ids that end an answer.
    """
    # A raw text has no prompt that an answer could be generated behind.
    asked = [place for place, draft in enumerate(drafts) if draft is not None and examples[place].turns]
    encoded = template.encode_many([_answered(examples[place]) for place in asked])
    found = [Beginning([], False) for _ in prompts]
    for place, text in zip(asked, encoded, strict=True):
        draft = drafts[place]
        if draft is not None and text.input_ids[: draft.num_prompt].tolist() == list(prompts[place]):
            found[place] = _cut(draft.token, limits[place], end_ids)
    return found


def _answered(example: Example) -> Example:
    """The conversation as it was traced."""
    return replace(example, turns=(*example.prompt, Turn("assistant", example.answer)))


def _cut(token: list[int], limit: int, end_ids: Collection[int]) -> Beginning:
    """What decoding under that limit would have kept."""
    end = next((place for place, each in enumerate(token) if each in end_ids), None)
    if end is not None and end < limit:
        return Beginning(token[:end], True)
    return Beginning(token[:limit], False)
