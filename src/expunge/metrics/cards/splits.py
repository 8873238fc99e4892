"""Which suites report a metric of which splits, where several metrics share it, and the papers behind several."""

from __future__ import annotations

TOFU = ("forget", "retain", "real_authors", "world_facts")
UTILITY = ("real_authors", "world_facts")
SIDES = ("forget", "retain")
_FORMS = ("paraphrased", "cloze", "inverted", "multi_hop", "multiple_choice")
WORLD = (*SIDES, "holdout", "neighbours", *(f"{side}_{form}" for side in SIDES for form in _FORMS))
MUSE = (*SIDES, "forget_verbatim")
BOTH: dict[str, tuple[str, ...]] = {"tofu": (), "world": ()}
IN_A_WORLD: dict[str, tuple[str, ...]] = {"world": ()}
ANSWERED = {"tofu": TOFU, "world": SIDES}
ANY_SPLIT = {"tofu": (*TOFU, "holdout"), "world": WORLD}
TOFU_PAPER = "TOFU, arXiv 2401.06121"
MUSE_PAPER = "MUSE, arXiv 2407.06460"
