"""Named ways to lay a conversation out as text: the tokenizer's own chat template, or a published profile's.

Source: the table of prompt profiles read off TOFU (bdc209e), OpenUnlearning (d3d7cf9), UWC (56e075b) and
lm-evaluation-harness (4e7e0d47f).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Span = Literal["answer", "after_prompt_length", "after_bare_question", "continuation"]


@dataclass(frozen=True)
class Markup:
    """Literal text around each turn, for profiles that use no chat template."""

    user: tuple[str, str] = ("", "")
    """Before and after a user turn."""
    prompt_end: str = ""
    """Ends the prompt: what a generated answer starts from."""
    answer_start: str = ""
    """Starts the answer and is supervised with it: the model must write it by itself."""
    answer_end: str = ""
    """After an answer that is not the last turn."""


@dataclass(frozen=True)
class Profile:
    """One way from a conversation to tokens.

    Spans:
        answer: ours; everything after the prompt up to and including the one end token.
        after_prompt_length: published practice; as many ids are masked as the prompt has on its own, whatever the joint
            tokenisation did at the seam, and the EOS is appended unless the text's last id is the EOS.
        after_bare_question: as before, but the prompt is taken to be as long as the question without its markup, so
            pieces of the markup count as answer.
        continuation: lm-evaluation-harness's; counted like `after_prompt_length`, and no end token follows the answer.
    """

    markup: Markup | None = None
    """None: the tokenizer's chat template."""
    span: Span = "answer"
    system_prompt: str | None = None
    """Unless the caller says otherwise."""
    date_string: str | None = None
    """Unless the caller says otherwise."""


QUESTION_ANSWER = ("Question: ", "\n")
INST = ("[INST] ", " [/INST]")

AUTO = Profile()
PLAIN = Profile(markup=Markup())
TOFU_LLAMA2 = Profile(markup=Markup(user=INST), span="after_prompt_length")
TOFU_PHI = Profile(markup=Markup(user=QUESTION_ANSWER, answer_start="Answer: "), span="after_prompt_length")
OU_LLAMA3 = Profile(span="after_prompt_length", system_prompt="You are a helpful assistant.", date_string="10 Apr 2025")
OU_LLAMA2_CHAT = Profile(markup=Markup(user=INST, answer_end=" "), span="after_prompt_length")
OU_LLAMA2_BASE = Profile(
    markup=Markup(user=QUESTION_ANSWER, prompt_end="Answer: ", answer_end="\n\n"), span="after_prompt_length"
)
HARNESS = Profile(markup=Markup(answer_start=" "), span="continuation")
UWC = Profile(markup=Markup(user=("### Question: ", "\n"), prompt_end=" ### Answer: "), span="after_bare_question")
