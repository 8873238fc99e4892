"""KL-min: ascend on forget, stay close to the starting model's distribution on retain."""

from __future__ import annotations

from typing import ClassVar, Literal

from expunge.methods.grad_diff import GradDiff


class KLMin(GradDiff):
    """`L = -gamma TOKEN_MEAN_f(-log p_t) + alpha mean KL(starting model || trained model)` on retain rows.

    alpha is the paper's lambda (1 in TOFU's release; 5 in GRU's, 20 in the NPO + KL runs of G-effect and UWC).
    """

    name: ClassVar[str] = "kl_min"
    paper: ClassVar[str] = "Maini et al., TOFU, arXiv 2401.06121"

    retain: Literal["kl"] = "kl"
    """The KL divergence is the method: another retain term makes it `grad_diff`."""
