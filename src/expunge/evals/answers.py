"""Whether stored answers can be scored for a profile, and compared: limits on their length, how they were made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.compute as pc

from expunge.errors import MetricError
from expunge.evals.suite import TOTAL_LENGTH, Tables

if TYPE_CHECKING:
    from expunge.evals.recompute import Stored

_SAMPLED_BY = ("prompt", "max_new_tokens", "entailment")
"""Settings of sampling that change what its metrics mean and do not stand in their names."""
JUDGES = {"gibberish": "--gibberish", "perplexity": "--perplexity-model"}
"""Key of `spec.json` of a pass in which another model judges answers -> the option that asks for it."""


def check_lengths(stored: Stored, tables: Tables, profile: str) -> None:
    """Refuse greedy answers that the profile's own length limit would have cut, or would not have cut.

    Raises:
        MetricError: some would, or nobody can tell any more because their tokens were purged.
    """
    had, wanted = stored.spec.get("total_length"), TOTAL_LENGTH.get(profile)
    if had == wanted or tables.generations.num_rows == 0:
        return
    rows = tables.generations.num_rows
    long = rows - _short(tables, wanted) if wanted is not None else rows - pc.sum(tables.generations["ended"]).as_py()
    if long:
        limit = f"{wanted} tokens of prompt and answer" if wanted is not None else f"a total of {had} tokens"
        raise MetricError(
            f"{long} of {rows} greedy answers run past {limit}, and the profiles {stored.profile!r} and {profile!r}"
            " differ in that limit",
            hint=f"generate for this profile: `expunge eval --profile {profile}`",
        )


def require_scored_for(stored: Stored, profile: str) -> None:
    """Refuse greedy answers that were scored by the rules of another profile, where a suite has several.

    Raises:
        MetricError: they were; the numbers would stand under names that mean something else.
    """
    for_profile = scored_for(stored)
    if for_profile not in (None, profile):
        raise MetricError(
            f"the greedy answers in {stored.folder} were scored for the profile {for_profile!r}; {profile!r} scores"
            " them otherwise",
            hint=f"evaluate for this profile: `expunge eval --suite {stored.suite} --profile {profile}`",
        )


def scored_for(stored: Stored) -> str | None:
    """The profile its answers were scored for; None where every profile scores them alike."""
    found: str | None = (stored.spec.get("options") or {}).get("scored_for")
    return found


def require_sampled_alike(ours: Stored, theirs: Stored) -> None:
    """Refuse a retrained model whose sampled answers are to other questions, of another length or judged otherwise.

    Raises:
        MetricError: they are; its values would be taken for the ideals of ours.
    """
    mine, other = ours.spec.get("sampling"), theirs.spec.get("sampling")
    if not mine or not other:
        return
    different = [key for key in _SAMPLED_BY if mine.get(key) != other.get(key)]
    if different:
        raise MetricError(
            f"{theirs.folder} was sampled with another eval.sampling.{different[0]} ({other.get(different[0])!r};"
            f" ours is {mine.get(different[0])!r})",
            hint="sample both alike: repeat `expunge eval` on one of them with the settings of the other",
        )


def require_judged_alike(ours: Stored, theirs: Stored) -> None:
    """Refuse a retrained model whose answers were judged by another classifier or language model.

    Raises:
        MetricError: they were; its values would be taken for the ideals of ours.
    """
    for setting, option in JUDGES.items():
        mine, other = (one.spec.get(setting, {}).get("model") for one in (ours, theirs))
        if mine and other and mine["digest"] != other["digest"]:
            raise MetricError(
                f"the answers in {theirs.folder} were judged by another model ({other['name']}; ours by"
                f" {mine['name']})",
                hint=f"repeat `expunge eval` on one of them with the {option} of the other",
            )


def _short(tables: Tables, limit: int) -> int:
    """How many greedy answers ended within a limit on prompt and answer together."""
    if tables.generations["token"].null_count:
        raise MetricError(
            "the generated tokens were purged, so their lengths are unknown",
            hint="measure with the profile that was evaluated",
        )
    answers = tables.trace.filter(pc.equal(tables.trace["variant"], "answer")).select(["split", "row", "num_prompt"])
    made = tables.generations.select(["split", "row", "ended"])
    made = made.append_column("length", pc.list_value_length(tables.generations["token"]))
    joined = made.join(answers, ["split", "row"])
    # The end token counts as well.
    total = pc.add(pc.add(joined["num_prompt"], joined["length"]), 1)
    return int(pc.sum(pc.and_(joined["ended"], pc.less_equal(total, limit))).as_py() or 0)
