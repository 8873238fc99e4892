"""Conversations to text: by the tokenizer's chat template, with the date held still, or by literal markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from expunge.data.example import LEAD, Turn
from expunge.data.profiles import Markup
from expunge.errors import DataError, ModelError

Conversation = tuple[Turn, ...]

DEFAULT_DATE = "26 Jul 2024"
"""What a template that asks for today's date is told, unless a date is given: the date Llama 3.1 falls back to."""

_CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>[^'"]*)(?P=quote)\s*\)""")
_DATE_FORMATS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y")


class Renderer(Protocol):
    """Turns conversations into the text that is tokenised."""

    def render(self, conversations: Sequence[Conversation], *, prompt: bool) -> list[str]:
        """The text of each conversation; with `prompt`, up to where the next answer begins."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything the text depends on besides the conversation; JSON."""
        ...


class ChatRenderer:
    """The tokenizer's own chat template.

    A template that prints today's date would make results depend on the day, so every `strftime_now("...")` in it
    is replaced by the given date in that format.

    Args:
        tokenizer: with a chat template.
        date_string: passed to the template as `date_string`; None: not passed.

    Raises:
        ModelError: the template computes the date in a way that cannot be held still.
    """

    def __init__(self, tokenizer: Any, *, date_string: str | None) -> None:
        self._tokenizer = tokenizer
        self._template = _hold_clock(tokenizer.get_chat_template(), date_string or DEFAULT_DATE)
        self._variables = {} if date_string is None else {"date_string": date_string}

    def render(self, conversations: Sequence[Conversation], *, prompt: bool) -> list[str]:
        """See `Renderer.render`.

        Raises:
            DataError: the template refuses the conversation, for example its system turn or the order of its roles.
        """
        from jinja2 import TemplateError

        if not conversations:
            return []
        messages = [[turn._asdict() for turn in turns] for turns in conversations]
        try:
            texts: list[str] = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except TemplateError as error:
            raise DataError(
                f"the chat template refuses a conversation ({', '.join(turn.role for turn in conversations[0])}): "
                f"{error}",
                hint="unset data.system_prompt if the model knows no system turn, or choose another data.template",
            ) from error
        return texts

    def identity(self) -> dict[str, Any]:
        """The template with its date, and the special tokens it may print."""
        tokens = {name: text for name, text in self._tokenizer.special_tokens_map.items() if name in self._template}
        return {"chat_template": self._template, "variables": self._variables, "tokens": tokens}


class MarkupRenderer:
    """Literal text around the turns; a system turn stands as it is."""

    def __init__(self, markup: Markup) -> None:
        self._markup = markup

    def render(self, conversations: Sequence[Conversation], *, prompt: bool) -> list[str]:
        """See `Renderer.render`."""
        return [self._text(turns, prompt=prompt) for turns in conversations]

    def identity(self) -> dict[str, Any]:
        """The literal pieces."""
        markup = self._markup
        return {"markup": [*markup.user, markup.prompt_end, markup.answer_start, markup.answer_end]}

    def _text(self, turns: Conversation, *, prompt: bool) -> str:
        markup, pieces = self._markup, []
        for position, turn in enumerate(turns):
            if turn.role == "user":
                pieces += [markup.user[0], turn.content, markup.user[1]]
            elif turn.role == "assistant":
                last = position == len(turns) - 1
                pieces += [markup.prompt_end, markup.answer_start, turn.content, "" if last else markup.answer_end]
            else:
                pieces.append(turn.content)
        return "".join([*pieces, markup.prompt_end] if prompt else pieces)


class LeadRenderer:
    """Any renderer, with answers that a prompt begins (`LEAD`) put together with what follows them."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def render(self, conversations: Sequence[Conversation], *, prompt: bool) -> list[str]:
        """See `Renderer.render`; a prompt's lead stands behind its generation prompt."""
        leads = [turns[-1].content if prompt and turns and turns[-1].role == LEAD else "" for turns in conversations]
        texts = self._renderer.render([_joined(turns) for turns in conversations], prompt=prompt)
        return [text + lead for text, lead in zip(texts, leads, strict=True)]

    def identity(self) -> dict[str, Any]:
        """The renderer's own: a lead is part of the conversation."""
        return self._renderer.identity()


def _joined(turns: Conversation) -> Conversation:
    """Each lead in front of the answer it begins; without one, none."""
    joined: list[Turn] = []
    begun = ""
    for turn in turns:
        if turn.role == LEAD:
            begun = turn.content
        else:
            joined.append(turn._replace(content=begun + turn.content) if begun else turn)
            begun = ""
    return tuple(joined)


def _hold_clock(template: str, date_string: str) -> str:
    held = _CLOCK.sub(lambda call: repr(_format_date(date_string, call["format"])), template)
    if "strftime_now(" in held:
        raise ModelError(
            "the chat template prints today's date in a computed format, so results would depend on the day",
            hint="save the tokenizer with a chat template whose date is written out",
        )
    return held


def _format_date(date_string: str, pattern: str) -> str:
    """The date in the template's own format; as given where it cannot be read as a date."""
    for candidate in _DATE_FORMATS:
        try:
            return datetime.strptime(date_string, candidate).strftime(pattern)
        except ValueError:
            continue
    return date_string
