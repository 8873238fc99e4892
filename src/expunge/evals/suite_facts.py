"""What suites need and report, for `expunge ls suites`: read without loading their rows, arrays or torch."""

from __future__ import annotations

import importlib
from typing import Literal, NamedTuple

from expunge.catalog import SUITES, Entry
from expunge.metrics.cards.splits import PROBES

TestedOn = Literal["real data", "its own data", "fixtures"]
"""What the suite's own tests measure: the benchmark's published rows; rows that expunge makes itself; or made-up rows
in the published format, where the benchmark's rows were not at hand."""


class SuiteFacts(NamedTuple):
    """One suite. A package of its own keeps them in `FACTS`, beside the suite's declaration."""

    needs: str
    """What must be there before anything can be measured."""
    gains: tuple[str, ...]
    """What more a user may give, and what it adds."""
    splits: tuple[str, ...]
    """Every split it may have, in the order of its declaration."""
    profiles: tuple[str, ...]
    tested_on: TestedOn
    source: str


_RETRAINED = (
    "--reference RUN, an evaluated retrained model: forget_quality, membership.reference_auc, and every metric's ideal"
)
_SAMPLES = "--samples N, eval.sampling: forget.leak_at_K"
_GRADIENTS = "--gradnorm: membership.gradnorm_auc"
_JUDGES = "--gibberish MODEL, --perplexity-model MODEL, which judge answers: forget.gibberish, forget.perplexity"

_OURS: dict[str, SuiteFacts] = {
    "tofu": SuiteFacts(
        needs="TOFU's files (data.tofu: a folder or a Hub id), or forget and retain rows of your own",
        gains=(
            _RETRAINED,
            "paraphrased_answer and perturbed_answer beside each row: truth ratios",
            "eval.holdout, rows that no model was trained on: membership attacks",
            "eval.real_authors and eval.world_facts: model_utility",
            "1000 distinct retain prompts or more: guard.*",
            _SAMPLES,
            _GRADIENTS,
            _JUDGES,
        ),
        splits=("forget", "retain", "real_authors", "world_facts", "holdout"),
        profiles=("canonical", "openunlearning", "tofu"),
        tested_on="real data",
        source="Maini et al., TOFU, arXiv 2401.06121",
    ),
    "muse": SuiteFacts(
        needs="MUSE's files (--source, eval.source: a folder or a Hub id), at least its knowmem subset",
        gains=(
            "--reference RUN, an evaluated retrained model: privleak, membership.reference_auc, every ideal",
            "the subset verbmem: forget_verbatim.*",
            "the subset privleak: membership.*, privleak",
            "several runs (`expunge metrics RUN RUN...`): scalability and sustainability",
            _SAMPLES,
            _GRADIENTS,
        ),
        splits=("forget", "retain", "forget_verbatim", "forget_texts", "holdout"),
        profiles=("canonical", "openunlearning"),
        tested_on="fixtures",
        source="Shi et al., MUSE, arXiv 2407.06460",
    ),
    "wmdp": SuiteFacts(
        needs="WMDP's questions (--source, eval.source: a folder or a Hub id), or your own in its format",
        gains=("--reference RUN, an evaluated retrained model: every metric's ideal",),
        splits=("bio", "chem", "cyber"),
        profiles=("canonical",),
        tested_on="fixtures",
        source="Li et al., WMDP, arXiv 2403.03218; prompts and scores of lm-evaluation-harness",
    ),
    "mmlu": SuiteFacts(
        needs="MMLU's questions (--source, eval.source: a folder or a Hub id), or your own in its format",
        gains=(
            "--reference RUN, an evaluated retrained model: every metric's ideal",
            "--num-fewshot N and the subjects' dev files: answered questions before each one",
            "all subjects of a category: the category's accuracy",
        ),
        splits=("<subject>",),
        profiles=("canonical",),
        tested_on="real data",
        source="Hendrycks et al., MMLU, arXiv 2009.03300; prompts and scores of lm-evaluation-harness",
    ),
    "lume": SuiteFacts(
        needs="LUME's files (--source, eval.source: a folder or a Hub id), forget or retain rows",
        gains=(
            "--reference RUN, an evaluated retrained model: every metric's ideal",
            "rows of all three tasks on both sides: task_aggregate",
            "the texts member and nonmember: membership.*, membership_score",
            "a copy of MMLU's questions in the folder's mmlu: mmlu.accuracy, and with the others lume_score",
        ),
        splits=(
            *(
                f"{side}_task{task}_{kind}"
                for side in ("forget", "retain")
                for task in (1, 2, 3)
                for kind in ("sc", "qa")
            ),
            *("forget_texts", "holdout", "mmlu_<subject>"),
        ),
        profiles=("canonical",),
        tested_on="fixtures",
        source="Ramakrishna et al., LUME, arXiv 2502.15097; SemEval-2025 task 4, arXiv 2504.02883",
    ),
    "pistol": SuiteFacts(
        needs="PISTOL's contracts (--source, eval.source: a file or its folder)",
        gains=(
            "--reference RUN, an evaluated retrained model: every metric's ideal",
            "--forget-split A_B,A_C: which edges were to be forgotten, where no run says it",
            "factual_data.json beside the contracts: factual.*",
        ),
        splits=(
            *("forget", "retain_linked", "retain_further", "retain_independent_sales"),
            *("retain_independent_employment", "factual"),
        ),
        profiles=("canonical",),
        tested_on="real data",
        source="Qiu et al., PISTOL, arXiv 2406.16810",
    ),
    "custom": SuiteFacts(
        needs="rows of your own (--source, eval.source: a file, or a folder of a file per split)",
        gains=(
            _RETRAINED,
            "perturbed_answer, and paraphrased_answer, beside each row: truth ratios",
            "a question with options: accuracy by log-likelihood",
            "splits named forget and retain: energy.*; forget and holdout: membership.*",
            _SAMPLES,
            _GRADIENTS,
            _JUDGES,
        ),
        splits=("<split>",),
        profiles=("canonical",),
        tested_on="its own data",
        source="ours; its metrics are TOFU's (arXiv 2401.06121)",
    ),
    "utility": SuiteFacts(
        needs="files of ARC, HellaSwag, OpenBookQA or TruthfulQA (--source, eval.source: a folder), or the Hub",
        gains=("--reference RUN, an evaluated retrained model: every metric's ideal",),
        splits=("arc_easy", "arc_challenge", "hellaswag", "openbookqa", "truthfulqa_mc1", "truthfulqa_mc2"),
        profiles=("canonical",),
        tested_on="real data",
        source="arXiv 1803.05457, 1905.07830, 1809.02789, 2109.07958; prompts and scores of lm-evaluation-harness",
    ),
    "harness": SuiteFacts(
        needs="the extra harness (pip install 'expunge[harness]'), and tasks (--tasks, eval.tasks)",
        gains=(
            "--tasks-path DIR: tasks of your own, in the harness's YAML form",
            "--num-fewshot N: answered questions before each one, in place of a task's own number",
            "--reference RUN, an evaluated retrained model: every metric's ideal",
        ),
        splits=("<task>",),
        profiles=("canonical",),
        tested_on="fixtures",
        source="EleutherAI, lm-evaluation-harness",
    ),
    "rwku": SuiteFacts(
        needs="RWKU's files (--source, eval.source: a folder or a Hub id; `#Stephen King` behind it: one target)",
        gains=(
            "--reference RUN, an evaluated model that never knew the targets: every metric's ideal",
            "neighbor_level1 and neighbor_level2: neighbours*.*",
            "forget_mia and retain_mia: forget_texts.*, retain_texts.*",
            "retain_mmlu, truthful, retain_bbh, triviaqa, fluency: utility",
        ),
        splits=(
            *PROBES,
            *("forget_texts", "retain_texts"),
            *("mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "bbh", "triviaqa", "fluency"),
        ),
        profiles=("canonical",),
        tested_on="real data",
        source="Jin et al., RWKU, arXiv 2406.10890",
    ),
    "unlearn-pii": SuiteFacts(
        needs="UnlearnPII's files (--source, eval.source: a folder; `#forget1` behind it where it has several)",
        gains=(_RETRAINED, "1000 distinct retain prompts or more, as retain50 has: guard.*"),
        splits=("forget", "retain", "forget_paraphrased", "forget_inverted"),
        profiles=("canonical",),
        tested_on="real data",
        source="Parii et al., Machine Unlearning of Personally Identifiable Information, NLLP 2025",
    ),
    "knowundo": SuiteFacts(
        needs="KnowUnDo's files (--source, eval.source: a folder or a Hub id; `#privacy` or `#copyright` behind it)",
        gains=("--reference RUN, an evaluated retrained model: every metric's ideal",),
        splits=("forget", "retain"),
        profiles=("canonical",),
        tested_on="fixtures",
        source="Tian et al., KnowUnDo, arXiv 2407.01920",
    ),
    "world": SuiteFacts(
        needs="a world (`expunge world build --out DIR`; --world DIR, or eval.world in the recipe)",
        gains=(
            _RETRAINED,
            "--start RUN, the evaluated starting model, found from the run where it can be: multi_hop.leakage,"
            " neighbours.retention, forms.dependence_index",
            "a world of so many people that it has 1000 distinct retain prompts: guard.*",
            _SAMPLES,
            _GRADIENTS,
            _JUDGES,
        ),
        splits=(
            *("forget", "retain", "holdout", "neighbours"),
            *("forget_paraphrased", "forget_cloze", "forget_inverted", "forget_multiple_choice", "forget_multi_hop"),
            *("retain_paraphrased", "retain_cloze", "retain_inverted", "retain_multiple_choice", "retain_multi_hop"),
        ),
        profiles=("canonical",),
        tested_on="its own data",
        source="ours; its metrics are TOFU's (arXiv 2401.06121), its forms of a question follow ORT (arXiv 2506.07795)",
    ),
}


def facts_of(entry: Entry) -> SuiteFacts | None:
    """The facts of a catalogued suite; None of another package's that states none."""
    if entry.name in _OURS and entry.target.startswith("expunge."):
        return _OURS[entry.name]
    found = getattr(importlib.import_module(entry.target.partition(":")[0]), "FACTS", None)
    return found if isinstance(found, SuiteFacts) else None


def every_suite() -> list[tuple[Entry, SuiteFacts | None]]:
    """The catalogued suites with their facts, in the catalogue's order."""
    return [(entry, facts_of(entry)) for entry in SUITES]
