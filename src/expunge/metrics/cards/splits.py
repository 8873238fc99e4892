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
ANSWERED = {"tofu": TOFU, "world": SIDES, "custom": CUSTOM, "unlearn-pii": SIDES}
ANY_SPLIT = {"tofu": (*TOFU, "holdout"), "world": WORLD}
PII = (*SIDES, "forget_paraphrased", "forget_inverted")
KINDS_OF_PROBES = (
    *("prefix_injection", "affirmative_suffix", "role_play", "multiple_choice", "reverse_query"),
    *("synonym_manipulation", "context_hint", "incontext_learning", "cross_lingual"),
)
"""What RWKU calls types of adversarial probes."""
PROBES = (
    *("forget_level1", "forget_level2", *(f"forget_level3_{kind}" for kind in KINDS_OF_PROBES)),
    *("neighbours_level1", "neighbours_level2"),
)
RWKU_CHOICES = ("mmlu", "truthfulqa_mc1")
WITH_PEOPLE: dict[str, tuple[str, ...]] = {**ALSO_OWN, "unlearn-pii": ()}
TOFU_PAPER = "TOFU, arXiv 2401.06121"
PISTOL_PAPER = "PISTOL, arXiv 2406.16810"
MUSE_PAPER = "MUSE, arXiv 2407.06460"
