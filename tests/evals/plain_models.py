"""The plainest computations on a model, one text at a time, to compare evaluations with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.config.schema import ModelSection
from expunge.models.load import load_model, load_tokenizer


class Plain(NamedTuple):
    """A model, its tokenizer and the folder both lie in."""

    folder: Path
    model: Any
    tokenizer: Any
    ends: frozenset[int]
    """Ids that end an answer."""
    said: dict[tuple[str, int], str]
    """What was continued before."""

    def ids(self, text: str) -> list[int]:
        """The ids of a text, the BOS in front."""
        return list(self.tokenizer(text)["input_ids"])

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """(T, V) double."""
        found: Tensor = self.model(torch.tensor([ids])).logits[0].double()
        return found

    def continued(self, prompt: str, limit: int) -> str:
        """The greedy continuation without what ends it."""
        if (prompt, limit) not in self.said:
            self.said[prompt, limit] = self._continued(prompt, limit)
        return self.said[prompt, limit]

    @torch.no_grad()
    def _continued(self, prompt: str, limit: int) -> str:
        ids = torch.tensor([self.ids(prompt)])
        made = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(self.ends),
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()
        return str(self.tokenizer.decode([token for token in made if token not in self.ends], skip_special_tokens=True))

    def traced(self, prompt: str, answer: str) -> tuple[Tensor, Tensor]:
        """(N, V) logits at an answer's tokens, and (N,) those tokens."""
        first, ids = len(self.ids(prompt)), self.ids(prompt + answer)
        assert ids[:first] == self.ids(prompt), "the answer begins with a token of its own"
        return self.logits(ids)[first - 1 : -1], torch.tensor(ids[first:])

    def loss(self, text: str) -> float:
        """Mean loss of every token but the first."""
        ids = self.ids(text)
        return float(torch.nn.functional.cross_entropy(self.logits(ids)[:-1], torch.tensor(ids[1:])))


def soon_ended(shared: Path, folder: Path, *, noise: float = 0.0) -> Plain:
    """stories260K whose answers end with a sentence, or with a comma; with `noise` in its weights."""
    source = str(shared / "models/stories260K")
    model = load_model(ModelSection(model_name_or_path=source), device=torch.device("cpu")).model
    tokenizer = load_tokenizer(source)
    stops = {index for word, index in tokenizer.get_vocab().items() if "." in word or "," in word}
    ends = frozenset({tokenizer.eos_token_id, *stops})
    model.generation_config.eos_token_id = sorted(ends)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters() if noise else ():
            weight += noise * weight.abs().mean() * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Plain(folder, model, tokenizer, ends, {})
