"""Oracle matching: what unlearning by datamodels could reach at best, with models that were really retrained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from expunge.config.schema import ModelSection
from expunge.data.encode import Dataset
from expunge.errors import ModelError, UsageError
from expunge.losses.oracle import centred, oracle_kl_loss, oracle_mse_loss
from expunge.methods.base import Context, Method, Needs, Term
from expunge.methods.workshop import Provision, Workshop
from expunge.models.fingerprint import tokenizer_digest
from expunge.models.load import load_model, load_tokenizer
from expunge.models.reference import rows_of
from expunge.runs.target import find_target

TABLE = "oracle_logits"
_FLOAT32 = 4


class OracleMatching(Method):
    """`L = gamma TOKEN_MEAN_f l + alpha TOKEN_MEAN_r l`, l the distance to the oracles' mean centred logits.

    An oracle is a model retrained without the forget set. Nothing is ascended: both sets are matched. It presupposes
    what unlearning is to avoid, so it is a skyline and a check of the matching, not a way to forget; datamodels
    predict the oracles' logits instead of training them, and that prediction is not offered.
    """

    name: ClassVar[str] = "oracle_matching"
    paper: ClassVar[str] = "Georgiev et al., Attribute-to-Delete, arXiv 2410.23232"
    experimental: ClassVar[bool] = True

    oracles: tuple[str, ...] = ()
    """Retrained runs, model folders or Hub ids of the same tokenizer; unless given, `num_oracles` are trained here, on
    the retain rows from new weights (which says little of a model that was pre-trained on anything else)."""
    num_oracles: int = Field(default=3, ge=1)
    """How many are trained, each with its own weights and row order (authors: 10)."""
    oracle_learning_rate: float = Field(default=3e-3, gt=0)
    """AdamW's, for training oracles: take what the starting model was trained with."""
    oracle_epochs: float = Field(default=10, gt=0)
    """Passes over the retain rows, for training oracles."""
    distance: Literal["mse", "kl"] = "mse"
    """Mean square of centred logits over the vocabulary (authors), or KL divergence from the oracles' distribution."""
    gamma: float = Field(default=1.0, ge=0)
    """Weight of the forget rows."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the retain rows; authors draw three retain rows per forget row (`train.retain_batch_size`)."""
    max_table_gb: float = Field(default=2.0, gt=0)
    """The oracles' logits are kept whole, 4 bytes per answer token and vocabulary entry: above this size it is
    refused."""

    def needs(self) -> Needs:
        """Forget and retain rows."""
        return Needs()

    def prepare(self, workshop: Workshop) -> Provision:
        """The oracles' mean centred logits at every answer position.

        Raises:
            UsageError: the table would be larger than `max_table_gb`.
            ModelError: an oracle of another tokenizer or vocabulary.
        """
        roles = self.needs().roles
        width = workshop.model.get_output_embeddings().weight.shape[0]
        self._require_small(workshop, roles, width)
        tables: dict[str, np.ndarray] = {}
        count = 0
        for count, oracle in enumerate(self._models(workshop), 1):
            for role in roles:
                own = _logits(workshop, workshop.datasets[role], oracle, width)
                tables[role] = own if count == 1 else tables[role] + own
        return Provision(tables={role: {TABLE: (table / count).astype(np.float32)} for role, table in tables.items()})

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`forget` and `retain`: the same distance, to what the oracles say of these rows."""
        distance = oracle_mse_loss if self.distance == "mse" else oracle_kl_loss
        oracles = rows_of(ctx.ref.own, TABLE)
        values = ctx.scored.per_position(lambda logits, _, mean: distance(logits, mean), oracles)
        weight = self.gamma if ctx.role == "forget" else self.alpha
        return {ctx.role: Term(values, unit="token", reduction="token_mean", weight=weight)}

    def _models(self, workshop: Workshop) -> Iterator[Any]:
        """One oracle after the other, so that one is in memory at a time."""
        if self.oracles:
            for name in self.oracles:
                yield _loaded(name, workshop)
            return
        for number in range(self.num_oracles):
            workshop.note(f"oracle {number + 1} of {self.num_oracles}: trained on the retain rows from new weights")
            yield workshop.fine_tuned(
                workshop.datasets["retain"],
                learning_rate=self.oracle_learning_rate,
                epochs=self.oracle_epochs,
                from_scratch=True,
                seed=workshop.seed + 1 + number,
            )

    def _require_small(self, workshop: Workshop, roles: tuple[str, ...], width: int) -> None:
        tokens = sum(int(workshop.datasets[role].supervised().sum()) for role in roles)
        size = tokens * width * _FLOAT32 / 1e9
        if size > self.max_table_gb:
            raise UsageError(
                f"oracle_matching keeps {tokens} answer tokens times {width} vocabulary entries of logits, "
                f"{size:.3g} GB, and method.max_table_gb is {self.max_table_gb:g}",
                hint="it is meant for small models: use fewer rows or a smaller vocabulary, or raise the limit",
            )


def _loaded(name: str, workshop: Workshop) -> Any:
    """An oracle on the run's device.

    Raises:
        ModelError: other tokens than the starting model's.
    """
    place = find_target(Path(name)).model if Path(name).exists() else name
    if tokenizer_digest(load_tokenizer(place)) != tokenizer_digest(workshop.tokenizer):
        raise ModelError(
            f"the oracle {name} has another tokenizer than the starting model, so their logits are of other tokens",
            hint="train both with one tokenizer (data.tokenizer_corpus, or model.tokenizer_name_or_path)",
        )
    attention = workshop.model.config._attn_implementation
    model = load_model(ModelSection(model_name_or_path=place, attn_implementation=attention), device=workshop.device)
    return model.model


def _logits(workshop: Workshop, dataset: Dataset, oracle: Any, width: int) -> np.ndarray:
    """(answer tokens, V) centred logits in row order."""
    if oracle.get_output_embeddings().weight.shape[0] != width:
        raise ModelError(
            f"an oracle has {oracle.get_output_embeddings().weight.shape[0]} logits, the starting model {width}",
            hint="oracles need the starting model's vocabulary size",
        )
    parts = [
        (batch, centred(scored.logits.to(torch.float32))) for batch, scored in workshop.passes(dataset, model=oracle)
    ]
    return workshop.per_position(dataset, parts)
