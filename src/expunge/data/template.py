"""Text to tokens: which tokens a conversation becomes and which of them are the answer. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from expunge.catalog import Catalog, Entry
from expunge.data.encode import Encoded, Supervise
from expunge.data.example import Example, Turn
from expunge.data.profiles import Profile
from expunge.data.render import ChatRenderer, Conversation, LeadRenderer, MarkupRenderer, Renderer
from expunge.data.spans import frame, region, tokens_after
from expunge.errors import DataError, ModelError, UsageError

_PROFILES = "expunge.data.profiles"

TEMPLATES = Catalog(
    "templates",
    Entry("auto", f"{_PROFILES}:AUTO", "the tokenizer's own chat template"),
    Entry("plain", f"{_PROFILES}:PLAIN", "the prompt's text and then the answer's, no markup between them"),
    Entry("tofu/llama2", f"{_PROFILES}:TOFU_LLAMA2", "TOFU's Llama-2: [INST] q [/INST]a"),
    Entry("tofu/phi", f"{_PROFILES}:TOFU_PHI", "TOFU's Phi, StableLM, Pythia: Question: q / Answer: a, tag supervised"),
    Entry("ou/llama3", f"{_PROFILES}:OU_LLAMA3", "OpenUnlearning's Llama-3: chat template, system text, fixed date"),
    Entry("ou/llama2-chat", f"{_PROFILES}:OU_LLAMA2_CHAT", "OpenUnlearning's Llama-2-chat: [INST] q [/INST]a"),
    Entry("ou/llama2-base", f"{_PROFILES}:OU_LLAMA2_BASE", "OpenUnlearning's base models: Question: q / Answer: a"),
    Entry("uwc", f"{_PROFILES}:UWC", "UWC: ### Question: q / ### Answer: a, span counted from the bare question"),
    Entry("harness", f"{_PROFILES}:HARNESS", "lm-evaluation-harness: the prompt, a blank, the option; no end token"),
)
"""Every `data.template`; another package adds one with an entry point in `expunge.templates` naming a `Profile`."""

BATCH = 512
"""Texts that are tokenised together: what a tokenizer makes of a text is many times as large as its ids."""


class _Prompt(NamedTuple):
    text: str
    ids: list[int]


class Template:
    """How conversations and raw texts become tokens for one tokenizer. Built by `build_template`.

    Supervised are the tokens after the prompt up to and including the one end-of-turn or EOS token that the template
    emits; what it writes after that (a newline) is dropped. Where it emits none, the tokenizer's EOS is appended. In a
    raw text every token but the first is supervised and no EOS is appended. If the tokenizer puts a BOS in front, there
    is exactly one, whether or not the template writes one too. Nothing depends on the padding token.

    Attributes:
        name: the profile's.
        digest: SHA-256 over everything the tokens depend on besides the tokenizer's vocabulary: template text, date,
            system prompt, special ids. Part of every cache key.
        end_ids: ids that end an answer.
    """

    def __init__(
        self, name: str, profile: Profile, tokenizer: Any, renderer: Renderer, *, system_prompt: str | None
    ) -> None:
        self.name, self.tokenizer = name, tokenizer
        self._profile, self._renderer, self._system_prompt = profile, renderer, system_prompt
        self._prefix = _prefix_ids(tokenizer)
        self._markers = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        self._markers |= {tokenizer.eos_token_id} - {None}
        self._tails: dict[tuple[str, ...], str] = {}
        self._closings: dict[str, list[int]] = {}
        closing = self._closing(self._tail(self._conversation((Turn("user", "A"), Turn("assistant", "A"))), text=None))
        ends = profile.span != "continuation"
        if tokenizer.eos_token_id is None and ends and (not closing or profile.span != "answer"):
            raise ModelError(
                f"template {name!r} emits no end token and the tokenizer has no EOS", hint="set tokenizer.eos_token"
            )
        self.end_ids = frozenset(closing[:1]) | ({tokenizer.eos_token_id} - {None})
        self.digest = self._digest()

    def encode(self, example: Example, *, supervise: Supervise = "last") -> Encoded:
        """One row as tokens, however long; see `encode_many`."""
        return self.encode_many([example], supervise=supervise)[0]

    def encode_many(self, examples: Sequence[Example], *, supervise: Supervise = "last") -> list[Encoded]:
        """Rows as tokens, in order and however long. Each text is tokenised once, all of them in one batch.

        Args:
            examples: conversations, raw texts, or both.
            supervise: the last answer, or every assistant turn.

        Raises:
            DataError: the template refuses or rewrites a conversation.
            UsageError: `all_assistant` under a published profile, whose span is defined for the last answer only.
        """
        if supervise == "all_assistant" and self._profile.span != "answer":
            raise UsageError(
                f"template {self.name!r} supervises the last answer only",
                hint="set data.supervise=last, or data.template=auto",
            )
        chats = iter(self._encode_chats([self._conversation(e.turns) for e in examples if e.turns], supervise))
        texts = iter(self._tokenise([e.text for e in examples if not e.turns]))
        return [next(chats) if e.turns else _encoded(next(texts), first=1, ended=False) for e in examples]

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens an answer is generated from: the turns with the template's generation prompt.

        Without turns (raw text): the BOS alone, or nothing where the tokenizer has none.
        """
        conversation = self._conversation(tuple(turns))
        if not conversation:
            return list(self._prefix)
        return self._tokenise(self._renderer.render([conversation], prompt=True))[0]

    def windows(self, example: Example, *, max_length: int) -> list[tuple[Example, Encoded]]:
        """A raw text in rows of at most `max_length` tokens, named `id#0`, `id#1`, ...

        Every window starts with the BOS, or, where there is none, with the last token of the one before, so that each
        token of the text but its first is supervised exactly once. The texts of the windows add up to the whole.

        Raises:
            UsageError: the BOS alone fills a window.
        """
        (ids,) = self._tokenise([example.text])
        offsets = self._offsets(example.text)
        lead = ids[: len(ids) - len(offsets)]
        content = ids[len(lead) :]
        overlap = 0 if lead else 1
        step = max_length - len(lead) - overlap
        if step < 1:
            raise UsageError(f"max_length is {max_length}", hint=f"set data.max_length={len(lead) + 1} or more")
        starts = range(0, len(content) - overlap, step)
        edges = [0, *(offsets[start + overlap][0] for start in starts[1:]), len(example.text)]
        rows = []
        for number, start in enumerate(starts):
            window = [*lead, *content[start : start + step + overlap]]
            part = replace(example, id=f"{example.id}#{number}", text=example.text[edges[number] : edges[number + 1]])
            rows.append((part, _encoded(window, first=1, ended=False)))
        return rows

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Each token as the vocabulary spells it (byte-level and word-start marks included)."""
        spelled: list[str] = self.tokenizer.convert_ids_to_tokens([int(i) for i in ids])
        return spelled

    def answer_offsets(self, example: Example, item: Encoded) -> np.ndarray:
        """Which characters of the answer each token of an encoded row covers.

        Returns:
            (L, 2) start and stop in `example.answer`; below 0 or beyond its length for tokens outside of it.

        Raises:
            ModelError: the tokenizer is not a fast one.
            ValueError: the template rewrites the answer, so that its characters cannot be found again.
        """
        text, start = example.text, 0
        if example.turns:
            turns = self._conversation(example.turns)
            (text,) = self._renderer.render([turns], prompt=False)
            # Templates trim: the answer is looked for without the white space around it.
            bare = example.answer.strip()
            found = text.find(bare, region(self._renderer, turns, len(turns) - 1, text).start)
            if found < 0:
                raise ValueError("the template rewrites the answer, so characters cannot be found in it")
            start = found - example.answer.index(bare)
        (ids,), offsets = self._tokenise([text]), self._offsets(text)
        lead, count = len(ids) - len(offsets), min(len(ids), len(item.input_ids))
        if ids[: count - 1] != item.input_ids[: count - 1].tolist():
            raise ValueError("the row's tokens are not those of its text, so characters cannot be found in them")
        outside = len(example.answer) - start + len(text)
        covers = np.full((len(item.input_ids), 2), outside, dtype=np.int64)
        covers[:lead] = -1
        covers[lead:count] = np.array(offsets, dtype=np.int64).reshape(-1, 2)[: count - lead] - start
        return covers

    # From conversations to spans

    def _conversation(self, turns: Conversation) -> Conversation:
        """The turns, opened by the system prompt unless they bring a system turn of their own."""
        if self._system_prompt is None or (turns and turns[0].role == "system"):
            return turns
        return (Turn("system", self._system_prompt), *turns)

    def _encode_chats(self, conversations: list[Conversation], supervise: Supervise) -> list[Encoded]:
        texts = self._renderer.render(conversations, prompt=False)
        prompts = self._prompts(turns[:-1] for turns in conversations)
        encode = self._answer if self._profile.span == "answer" else self._published
        rows = [
            encode(turns, text, ids, prompts[turns[:-1]])
            for turns, text, ids in zip(conversations, texts, self._tokenise(texts), strict=True)
        ]
        if supervise == "all_assistant":
            rows = [self._earlier(*row) for row in zip(conversations, texts, rows, strict=True)]
        return rows

    def _prompts(self, conversations: Iterable[Conversation]) -> dict[Conversation, _Prompt]:
        unique = list(dict.fromkeys(conversations))
        texts = self._renderer.render(unique, prompt=True)
        return {
            turns: _Prompt(text, ids) for turns, text, ids in zip(unique, texts, self._tokenise(texts), strict=True)
        }

    def _answer(self, turns: Conversation, text: str, ids: list[int], prompt: _Prompt) -> Encoded:
        """The canonical span of the last turn."""
        first = len(prompt.ids)
        if ids[:first] != prompt.ids:
            # A token straddles the seam, or the template writes a prompt differently once it is answered.
            start = len(prompt.text)
            if not text.startswith(prompt.text):
                start = region(self._renderer, turns, len(turns) - 1, text).start
            offsets = self._offsets(text)
            first = len(ids) - len(offsets) + tokens_after(offsets, start)
        return _encoded(self._close(turns, text, ids), first=first, ended=True)

    def _published(self, turns: Conversation, text: str, ids: list[int], prompt: _Prompt) -> Encoded:
        """A published profile's span: counted, not located."""
        first = len(prompt.ids)
        if self._profile.span == "after_bare_question":
            first = len(self._tokenise([turns[-2].content])[0])
        if self._profile.span == "continuation":
            return _encoded(ids, first=first, ended=False)
        if ids[-1] != self.tokenizer.eos_token_id:
            ids = [*ids, self.tokenizer.eos_token_id]
        return _encoded(ids, first=first, ended=True)

    def _earlier(self, turns: Conversation, text: str, row: Encoded) -> Encoded:
        """Also supervise the assistant turns before the last one, each with its end token if it has one."""
        positions = [i for i, turn in enumerate(turns[:-1]) if turn.role == "assistant"]
        if not positions:
            return row
        offsets = self._offsets(text)
        lead = len(self._tokenise([text])[0]) - len(offsets)
        supervised, is_end = row.supervised.copy(), row.is_end.copy()
        for position in positions:
            start, stop = region(self._renderer, turns, position, text)
            first, after = tokens_after(offsets, start), tokens_after(offsets, stop)
            end = next((i for i in range(after, len(offsets)) if row.input_ids[lead + i] in self._markers), None)
            if end is None or row.input_ids[lead + end] not in self.end_ids or text[stop : offsets[end][0]].strip():
                supervised[lead + first : lead + after] = True
            else:
                supervised[lead + first : lead + end + 1] = True
                is_end[lead + end] = True
        supervised[0] = False
        return row._replace(supervised=supervised, is_end=is_end)

    def _close(self, turns: Conversation, text: str, ids: list[int]) -> list[int]:
        """The ids up to and including the end token, appended where the template emits none."""
        closing = self._closing(self._tail(turns, text=text))
        if not closing:
            return [*ids, self.tokenizer.eos_token_id]
        if ids[-len(closing) :] != closing:
            raise DataError(
                f"the end of {text[-40:]!r} is tokenised differently from row to row",
                hint="choose another data.template",
            )
        return ids[: len(ids) - len(closing) + 1]

    def _tail(self, turns: Conversation, *, text: str | None) -> str:
        """What the template writes after the last answer; the same for conversations of the same shape, but checked."""
        shape = tuple(turn.role for turn in turns)
        if shape not in self._tails:
            self._tails[shape] = frame(self._renderer, turns, len(turns) - 1).tail
        tail = self._tails[shape]
        if text is not None and not text.endswith(tail):
            raise DataError(
                f"the chat template ends an answer in a way that depends on it: {text[-40:]!r}",
                hint="choose another data.template",
            )
        return tail

    def _closing(self, tail: str) -> list[int]:
        """The ids of a tail from its end token on; empty where it has none."""
        if tail not in self._closings:
            ids = self._raw_ids([tail])[0] if tail else []
            start = next((i for i, token in enumerate(ids) if token in self._markers), len(ids))
            self._closings[tail] = ids[start:]
        return self._closings[tail]

    # From text to ids

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids with exactly one BOS where the tokenizer adds one."""
        return [self._lead(ids) + ids for ids in self._raw_ids(texts)]

    def _lead(self, ids: list[int]) -> list[int]:
        return [] if ids[: len(self._prefix)] == self._prefix else self._prefix

    def _raw_ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        for start in range(0, len(texts), BATCH):
            ids += self.tokenizer(
                list(texts[start : start + BATCH]),
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        return ids

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters each token covers, without an added BOS.

        Raises:
            ModelError: the tokenizer is not a fast one.
        """
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"{type(self.tokenizer).__name__} cannot say which characters a token covers",
                hint="use a fast tokenizer (one with a tokenizer.json)",
            )
        offsets: list[tuple[int, int]] = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        return offsets

    def _digest(self) -> str:
        identity = {
            "renderer": self._renderer.identity(),
            "span": self._profile.span,
            "system_prompt": self._system_prompt,
            "prefix_ids": self._prefix,
            "eos_id": self.tokenizer.eos_token_id,
            "end_ids": sorted(self.end_ids),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def build_template(
    name: str, tokenizer: Any, *, system_prompt: str | None = None, date_string: str | None = None
) -> Template:
    """The template called `name` for a tokenizer.

    Args:
        name: `auto` or a profile (`expunge ls templates`).
        tokenizer: a Hugging Face tokenizer.
        system_prompt: opens every conversation that has no system turn; the profile's own unless given.
        date_string: the date a chat template prints; the profile's own unless given. A template that asks for today's
            date gets a fixed one, so that results do not depend on the day.

    Raises:
        UsageError: unknown name.
        ModelError: the profile needs a chat template and the tokenizer has none, or no EOS.
    """
    profile: Profile = TEMPLATES.load(name)
    system_prompt = profile.system_prompt if system_prompt is None else system_prompt
    if profile.markup is not None:
        renderer: Renderer = MarkupRenderer(profile.markup)
    elif tokenizer.chat_template is None:
        others = [entry.name for entry in TEMPLATES if TEMPLATES.load(entry.name).markup is not None]
        raise ModelError(
            f"the tokenizer has no chat template, which template {name!r} needs",
            hint=f"set data.template, or --template of eval, to one of {', '.join(others)}",
        )
    else:
        renderer = ChatRenderer(tokenizer, date_string=date_string or profile.date_string)
    return Template(name, profile, tokenizer, LeadRenderer(renderer), system_prompt=system_prompt)


def _prefix_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of a text (a BOS), found by asking it."""
    bare: list[int] = tokenizer("A", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("A", add_special_tokens=True)["input_ids"]
    starts = range(len(full) - len(bare) + 1)
    return full[: next((i for i in starts if full[i : i + len(bare)] == bare), 0)]


def _encoded(ids: list[int], *, first: int, ended: bool) -> Encoded:
    """Everything from token `first` on is supervised; the last token is the end token if `ended`."""
    supervised = np.arange(len(ids)) >= max(first, 1)
    is_end = np.zeros(len(ids), dtype=bool)
    is_end[-1:] = ended & supervised[-1:]
    return Encoded(np.array(ids, dtype=np.int32), supervised, is_end)
