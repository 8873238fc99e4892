"""Which suites report a metric of which splits, where several metrics share it, and the papers behind several."""

from __future__ import annotations

TOFU = ("forget", "retain", "real_authors", "world_facts")
UTILITY = ("real_authors", "world_facts")
SIDES = ("forget", "retain")
_FORMS = ("paraphrased", "cloze", "inverted", "multi_hop", "multiple_choice")
WORLD = (*SIDES, "holdout", "neighbours", *(f"{side}_{form}" for side in SIDES for form in _FORMS))
MUSE = (*SIDES, "forget_verbatim")
LUME_CONTINUED, LUME_ASKED = (
    tuple(f"{side}_task{task}_{kind}" for side in SIDES for task in (1, 2, 3)) for kind in ("sc", "qa")
)
LUME = (*LUME_CONTINUED, *LUME_ASKED)
PISTOL = (
    *("forget", "retain_linked", "retain_further", "retain_independent_sales", "retain_independent_employment"),
    "factual",
)
CUSTOM = (*SIDES, "holdout")
"""Of its splits of any name, those that mean something."""
BOTH: dict[str, tuple[str, ...]] = {"tofu": (), "world": ()}
ALSO_OWN: dict[str, tuple[str, ...]] = {**BOTH, "custom": ()}
IN_A_WORLD: dict[str, tuple[str, ...]] = {"world": ()}
ANSWERED = {"tofu": TOFU, "world": SIDES, "custom": CUSTOM}
ANY_SPLIT = {"tofu": (*TOFU, "holdout"), "world": WORLD}
TOFU_PAPER = "TOFU, arXiv 2401.06121"
PISTOL_PAPER = "PISTOL, arXiv 2406.16810"
MUSE_PAPER = "MUSE, arXiv 2407.06460"
