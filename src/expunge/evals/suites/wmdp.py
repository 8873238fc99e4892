"""The WMDP suite: what a model still knows near hazardous biology, chemistry and cybersecurity (arXiv 2403.03218).

Prompts and scores are those of lm-evaluation-harness. Measuring reads tables only.
"""

from __future__ import annotations

from expunge.data.benchmarks.wmdp import DOMAINS, HUB, load_wmdp
from expunge.errors import UsageError
from expunge.evals.suite import Measured, Profile, Suite, SuiteData, Tables
from expunge.evals.suites.multiple_choice import BELOW, Layout, Topic, declare, measured
from expunge.evals.suites.tofu_sheet import Rule

RULES = {
    "accuracy": Rule("lower"),
    "answer_probability": Rule("lower"),
    "confidence": Rule("match"),
    BELOW: Rule("lower", 0.0),
}
LAYOUT = Layout("wmdp", RULES, by_split=tuple(RULES))


def wmdp(data: SuiteData) -> Suite:
    """Declare the suite: the splits bio, chem and cyber, or those of them that the source holds.

    Args:
        data: `source` is a folder or a Hub id in the published format, `cais/wmdp` unless said; `limit` holds for each
            split.

    Raises:
        UsageError: shots are asked for, of which WMDP has none, or rows of another origin are named.
        DataError: a source that is not there or holds no domain, or rows that cannot be used.
    """
    if data.num_fewshot:
        raise UsageError(
            f"WMDP has no rows to take shots from, but num_fewshot is {data.num_fewshot}", hint="it is asked without"
        )
    source = data.source or HUB
    found = load_wmdp(source)
    topics = {name: Topic(DOMAINS[name], questions) for name, questions in found.questions.items()}
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
