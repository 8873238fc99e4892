"""The MMLU suite: general knowledge in 57 subjects, which unlearning should leave alone (arXiv 2009.03300).

Prompts, shots and scores are those of lm-evaluation-harness. Measuring reads tables only.
"""

from __future__ import annotations

from expunge.data.benchmarks.mmlu import CATEGORIES, HUB, load_mmlu
from expunge.evals.suite import Measured, Profile, Suite, SuiteData, Tables
from expunge.evals.suites.multiple_choice import Layout, Topic, declare, measured
from expunge.evals.suites.tofu_sheet import Rule

RULES = {"accuracy": Rule("higher"), "answer_probability": Rule("higher"), "confidence": Rule("match")}
LAYOUT = Layout("mmlu", RULES, by_split=("accuracy",), categories=CATEGORIES)


def mmlu(data: SuiteData) -> Suite:
    """Declare the suite: one split per subject that the source holds.

    Args:
        data: `source` is a folder or a Hub id in the published format, `cais/mmlu` unless said; `num_fewshot` rows of
            a subject's dev file, its first ones, stand before each of its questions; `limit` holds for each split.

    Raises:
        UsageError: rows of another origin are named.
        DataError: a source that is not there, rows that cannot be used, or fewer dev rows than shots.
    """
    source = data.source or HUB
    found = load_mmlu(source, with_shots=data.num_fewshot > 0)
    topics = {
        name: Topic(name.replace("_", " "), questions, found.pool(name)) for name, questions in found.questions.items()
    }
    rows = f"{source}@{found.revision}" if found.revision else "local"
    return declare(LAYOUT, topics, data, measure, rows=rows)


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric of the suite; see `expunge.evals.suites.multiple_choice.measured`.

    `allow_missing` changes nothing: a question whose options cannot all be scored is an error.
    """
    return measured(tables, LAYOUT, reference=reference, profile=profile)
