"""The TOFU suite: its declaration, its metrics from tables, and whole published logs rebuilt as tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from expunge.data.example import Example, Turn
from expunge.errors import MetricError, UsageError
from expunge.evals.suite import Profile, SuiteData, Tables
from expunge.evals.suites.tofu import items, measure, tofu
from expunge.evals.suites.tofu_canonical import rule
from expunge.evals.suites.tofu_sheet import NO_REFERENCE
from expunge.evals.suites.world_forms import RULES
from expunge.metrics.leak_names import listed_name
from expunge.metrics.membership import privleak
from expunge.metrics.registry import METRICS
from expunge.testing.tables import Row, answer_row, make_tables, random_tables, text_row

PROFILES: tuple[Profile, ...] = ("canonical", "openunlearning", "tofu")


def example(name: str, row: int, **extra: Any) -> Example:
    return Example(f"{name}:{row}", row, (Turn("user", "q"), Turn("assistant", "a")), group="g", extra=extra)


def authors(count: int = 3) -> list[Example]:
    extra = {"paraphrased_answer": "b", "perturbed_answer": ["c", "d"]}
    return [example("forget10", row, **extra) for row in range(count)]


def only(tables: Tables, *splits: str) -> Tables:
    return Tables(*(table.filter(pc.is_in(table["split"], pa.array(splits))) for table in tables))


def replaced(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    index = table.schema.get_field_index(column)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


# Declaration


def test_splits_of_the_benchmark(shared: Path) -> None:
    suite = tofu(SuiteData(tofu=str(shared / "data" / "tofu"), forget_split="forget05"))
    sizes = {split.name: len(split.examples) for split in suite.splits}
    assert sizes == {"forget": 200, "retain": 400, "real_authors": 100, "world_facts": 117, "holdout": 200}
    by_name = {split.name: split for split in suite.splits}
    assert by_name["forget"].variants == by_name["retain"].variants == ("answer", "paraphrase", "perturbed")
    assert by_name["real_authors"].variants == by_name["world_facts"].variants == ("answer", "perturbed")
    assert by_name["holdout"].variants == ("answer",)
    assert [split.name for split in suite.splits if split.stats] == ["forget", "retain", "holdout"]
    assert [split.name for split in suite.splits if split.generate] == [
        "forget",
        "retain",
        "real_authors",
        "world_facts",
    ]
    assert suite.max_new_tokens == 200
    limited = tofu(SuiteData(tofu=str(shared / "data" / "tofu"), forget_split="forget01", limit=7))
    assert {len(split.examples) for split in limited.splits} == {7}


def test_own_rows_replace_the_benchmark() -> None:
    plain = [example("retain", row) for row in range(4)]
    suite = tofu(SuiteData(splits={"forget": authors(), "retain": plain, "holdout": plain}, limit=2))
    assert [(split.name, len(split.examples)) for split in suite.splits] == [
        ("forget", 2),
        ("retain", 2),
        ("holdout", 2),
    ]
    assert suite.splits[0].variants == ("answer", "paraphrase", "perturbed")
    assert suite.splits[1].variants == ("answer",)


def test_raw_texts_are_not_generated_from() -> None:
    text = Example("t:0", 0, text="The cellar door opens inwards.")
    suite = tofu(SuiteData(splits={"forget": [text], "retain": authors()}))
    assert [split.generate for split in suite.splits] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forget_split": "forget20"}, "forget20"),
        ({"splits": {"forget": authors()}}, "none for retain"),
        ({"splits": {"forgotten": authors()}}, "forgotten"),
    ],
)
def test_declarations_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tofu(SuiteData(**arguments))


# Metrics


def test_canonical_names_are_the_registry_s() -> None:
    measured = measure(random_tables(), reference=random_tables(seed=1))
    registered = {info.name.removeprefix("<split>.") for info in METRICS}
    for name, score in measured.scores.items():
        split, _, metric = listed_name(name).partition(".")
        known = metric if split in ("forget", "retain", "real_authors", "world_facts") else name
        assert known in registered, name
        assert math.isfinite(score.value)
        assert score.direction == rule(name).direction
        assert score.n == score.n_total > 0
    opted = {"membership.gradnorm_auc", "forget.leak_at_K", "forget.gibberish", "forget.perplexity"}
    assert all(name.startswith("guard.") or name in opted for name in measured.skipped)
    for info in (info for info in METRICS if info.name not in {*RULES, "privleak"}):
        split = "forget." if info.name.startswith("<split>") else ""
        if info.direction in ("lower", "higher", "match"):
            assert rule(split + info.name.removeprefix("<split>.")).direction in (info.direction, "lower"), info.name


def test_definitions_on_one_row_each() -> None:
    half = math.log(2)
    texts = [
        text_row("forget", 0, "answer", [-half, -half, -half], hit=[False, True, False], lse=[3.0, 0, 0]),
        text_row("forget", 0, "paraphrase", [-half]),
        text_row("forget", 0, "perturbed_0", [-2 * half]),
        text_row("forget", 0, "perturbed_1", [-4 * half]),
        text_row("retain", 0, "answer", [-half], hit=[True], lse=[5.0]),
    ]
    texts[4] = text_row("retain", 0, "answer", [-half, 0.0], hit=[True, False], lse=[5.0, 0.0])
    measured = measure(make_tables(texts))
    found = {name: score.value for name, score in measured.scores.items()}
    assert found["forget.probability"] == pytest.approx(0.5)
    assert found["forget.truth_ratio"] == pytest.approx(0.25)
    assert found["forget.truth_ratio_prob_mean"] == pytest.approx(0.8)
    assert found["forget.truth_ratio_utility"] == pytest.approx(0.75)
    assert found["forget.extraction_strength"] == pytest.approx(0.5), "the end token's miss does not count"
    assert found["forget.exact_memorization"] == pytest.approx(0.5)
    assert found["retain.probability"] == pytest.approx(math.sqrt(0.5))
    assert found["retain.extraction_strength"] == 1
    assert found["energy.auroc"] == 1
    assert found["energy.fpr95"] == 0
    assert measured.skipped["retain.truth_ratio"] == "no perturbed answers in retain"
    assert measured.skipped["forget.rougeL_recall"] == "no generated answers in forget"
    assert measured.skipped["membership.loss_auc"] == "no holdout rows in this evaluation"
    assert measured.skipped["model_utility"].startswith("needs retain.rougeL_recall, retain.truth_ratio_utility")
    assert measured.skipped["forget_quality"] == NO_REFERENCE


def test_own_splits_leave_model_utility_out() -> None:
    measured = measure(only(random_tables(), "forget", "retain", "holdout"))
    assert "retain_utility" in measured.scores
    assert "real_authors.probability_normalised" in measured.skipped["model_utility"]
    assert not any(name.startswith(("real_authors", "world_facts")) for name in measured.scores)


def test_membership_separates_what_is_known() -> None:
    scores = measure(random_tables(knows=3)).scores
    for name in ("loss", "min_k", "min_k_plus_plus", "zlib"):
        assert scores[f"membership.{name}_auc"].value > 0.8
        assert scores[f"membership.{name}_auc"].ideal == 0.5


def test_min_k_plus_plus_needs_moments() -> None:
    tables = random_tables()
    trace = tables.trace
    for column in ("mu", "var"):
        trace = replaced(trace, column, [None] * trace.num_rows)
    measured = measure(Tables(trace, tables.generations))
    assert measured.skipped["membership.min_k_plus_plus_auc"] == "mu and var were not stored for forget"
    assert "membership.min_k_auc" in measured.scores


@pytest.mark.parametrize("profile", PROFILES)
def test_order_of_rows_does_not_matter(profile: Profile) -> None:
    tables, reference = random_tables(), random_tables(seed=1)
    expected = measure(tables, reference=reference, profile=profile)
    assert measure(shuffled(tables), reference=shuffled(reference), profile=profile) == expected


def shuffled(tables: Tables) -> Tables:
    def reverse(table: pa.Table) -> pa.Table:
        return table.take(pa.array(range(table.num_rows - 1, -1, -1)))

    return Tables(reverse(tables.trace), reverse(tables.generations))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_model_against_itself_is_ideal(profile: Profile) -> None:
    tables = random_tables()
    scores = measure(tables, reference=tables, profile=profile).scores
    quality, distance = {
        "canonical": ("forget_quality", "forget_quality_statistic"),
        "openunlearning": ("forget_quality", "forget_quality_statistic"),
        "tofu": ("Forget Quality", "KS Test Forget"),
    }[profile]
    assert (scores[quality].value, scores[quality].ideal, scores[distance].value) == (1, 1, 0)
    for name, score in scores.items():
        if score.direction == "match":
            assert score.value == pytest.approx(score.ideal, abs=1e-6), name
    if profile == "openunlearning":
        assert scores["mia_reference"].value == 0.5
        assert scores["privleak"].value == 0


def test_ideals_are_the_retrained_model_s() -> None:
    retrained = random_tables(seed=1)
    scores = measure(random_tables(), reference=retrained).scores
    theirs = measure(retrained).scores
    for name in ("forget.truth_ratio", "forget.probability", "membership.min_k_auc"):
        assert scores[name].ideal == theirs[name].value
    assert measure(random_tables()).scores["forget.truth_ratio"].ideal is None


# What is refused


def test_a_reference_of_other_rows_is_refused() -> None:
    tables = random_tables()
    with pytest.raises(MetricError, match=r"forget: the reference run was measured on other rows.*40 rows against 20"):
        measure(tables, reference=random_tables(rows=20))
    tokens = [[token + 1 for token in row] for row in tables.trace["token"].to_pylist()]
    other = Tables(replaced(tables.trace, "token", tokens), tables.generations)
    with pytest.raises(MetricError, match="or with another template"):
        measure(tables, reference=other)
    with pytest.raises(MetricError, match="no 'forget' rows"):
        measure(tables, reference=only(tables, "retain"))


def test_a_purged_run_still_compares() -> None:
    tables, reference = random_tables(), random_tables(seed=1)
    trace = tables.trace
    for column in ("prompt", "target", "token"):
        trace = replaced(trace, column, [None] * trace.num_rows)
    purged = Tables(trace, tables.generations)
    after, before = measure(purged, reference=reference), measure(tables, reference=reference)
    assert after.scores == before.scores
    assert after.skipped.keys() == before.skipped.keys()
    with pytest.raises(MetricError, match="other rows"):
        measure(purged, reference=random_tables(rows=20))


def test_doubled_rows_are_refused() -> None:
    tables = random_tables()
    with pytest.raises(MetricError, match="in the trace twice"):
        measure(Tables(pa.concat_tables([tables.trace, tables.trace.slice(0, 1)]), tables.generations))
    ids = [
        "same" if split == "forget" else name for split, name in zip(*columns(tables.trace, "split", "id"), strict=True)
    ]
    with pytest.raises(MetricError, match="forget: 1 ids belong to several rows"):
        measure(Tables(replaced(tables.trace, "id", ids), tables.generations))
    with pytest.raises(MetricError, match="a row was generated twice"):
        measure(Tables(tables.trace, pa.concat_tables([tables.generations, tables.generations.slice(0, 1)])))
    with pytest.raises(MetricError, match="in only one of the two tables"):
        measure(Tables(tables.trace, tables.generations.slice(1)))


def columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


@pytest.mark.parametrize("profile", PROFILES)
def test_numbers_that_are_not_finite_name_their_rows(profile: Profile) -> None:
    tables = random_tables()
    logp = tables.trace["logp"].to_pylist()
    where = columns(tables.trace, "split", "row", "variant")
    index = list(zip(*where, strict=True)).index(("retain", 17, "answer"))
    logp[index][1] = math.nan
    with pytest.raises(MetricError, match=r"retain: 'logp' is not finite in 1 of 40 rows \(rows 17\)"):
        measure(Tables(replaced(tables.trace, "logp", logp), tables.generations), profile=profile)


def test_rows_with_an_empty_span_are_counted() -> None:
    tables = random_tables(rows=120)
    rows = tables.trace.to_pylist()
    short = next(row for row in rows if (row["split"], row["row"], row["variant"]) == ("forget", 3, "answer"))
    for name in ("token", "is_end", "logp", "hit", "lse", "rank", "mu", "var"):
        short[name] = short[name][-1:]
    short["is_end"] = [True]
    measured = measure(make_tables(rows, tables.generations.to_pylist()))
    assert (measured.scores["forget.extraction_strength"].n, measured.scores["forget.probability"].n) == (119, 120)
    assert measured.scores["membership.min_k_auc"].n_total - measured.scores["membership.min_k_auc"].n == 1


def test_unknown_profile() -> None:
    with pytest.raises(UsageError, match="it has: canonical"):
        measure(random_tables(), profile="muse")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no per-item log"):
        items(random_tables(), profile="canonical")


def test_the_original_takes_the_first_300_rows() -> None:
    scores = measure(random_tables(rows=320, small=5), profile="tofu").scores
    assert scores["Prob. Forget"].n_total == 300
    assert measure(random_tables(rows=320, small=5)).scores["forget.probability"].n_total == 320


# Whole published logs, rebuilt as tables


def hits_like(strength: float, exact: float, n: int) -> list[bool] | None:
    """N greedy hits with the logged extraction strength (floor 1/N) and exact memorisation; None if N cannot be."""
    suffix, total = strength * n, exact * n
    if abs(suffix - round(suffix)) > 1e-3 or abs(total - round(total)) > 1e-3:
        return None
    suffix, total = round(suffix), round(total)
    if total == 0:
        return [False] * n if suffix == 1 else None
    before = total - suffix
    free = max(n - suffix - 1, 0)
    if before < 0 or before > free or (suffix == n and total != n):
        return None
    return [i < before or i >= n - suffix for i in range(n)]


def length(logs: list[dict[str, Any]], row: str) -> int:
    """The shortest answer length that all logs could have had."""
    pairs = [
        tuple(log[name]["value_by_index"][row]["score"] for name in ("extraction_strength", "exact_memorization"))
        for log in logs
    ]
    return next(n for n in range(1, 400) if all(hits_like(*pair, n) is not None for pair in pairs))


def attacked(split: str, log: dict[str, Any], row: str, n: int, hit: list[bool], group: str | None) -> Row:
    """An answer of n tokens and an end token with the logged loss and membership scores."""
    loss, min_k, plus, zlib = (
        log[name][split]["value_by_index"][row]["score"]
        for name in ("mia_loss", "mia_min_k", "mia_min_k_plus_plus", "mia_zlib")
    )
    logp = [-min_k] * n + [n * min_k - (n + 1) * loss]
    return text_row(
        split,
        int(row),
        "answer",
        logp,
        hit=[*hit, False],
        target_zlib=round(loss / zlib),
        mu=[plus - min_k] * (n + 1),
        var=[1.0] * (n + 1),
        group=group,
    )


def rebuild(log: dict[str, Any], lengths: dict[str, int]) -> Tables:
    texts: list[Row] = []
    answers: list[Row] = []
    for split, prefix in (("forget", "forget"), ("retain", "retain"), ("real_authors", "ra"), ("world_facts", "wf")):
        paired = prefix in ("forget", "retain")
        for row, entry in log[f"{prefix}_Q_A_Prob"]["value_by_index"].items():
            if split == "forget":
                score = (
                    log[name]["value_by_index"][row]["score"] for name in ("extraction_strength", "exact_memorization")
                )
                hit = hits_like(*score, lengths[row])
                assert hit is not None
                texts.append(attacked("forget", log, row, lengths[row], hit, None))
            else:
                texts.append(text_row(split, int(row), "answer", [-entry["avg_loss"]]))
            if paired:
                loss = log[f"{prefix}_Q_A_PARA_Prob"]["value_by_index"][row]["avg_loss"]
                texts.append(text_row(split, int(row), "paraphrase", [-loss]))
            wrong = log[f"{prefix}_Q_A_PERT_Prob"]["value_by_index"][row]["avg_loss"]
            texts += [text_row(split, int(row), f"perturbed_{i}", [-loss]) for i, loss in enumerate(wrong)]
            rouge = {
                k: v for k, v in log[f"{prefix}_Q_A_ROUGE"]["value_by_index"][row].items() if k.startswith("rouge")
            }
            answers.append(answer_row(split, int(row), **rouge))
    for row in log["mia_loss"]["holdout"]["value_by_index"]:
        texts.append(attacked("holdout", log, row, 1, [False], None))
    return make_tables(texts, answers, exact=True)


def check_items(tables: Tables, log: dict[str, Any]) -> None:
    found = items(tables)
    for name, entry in log.items():
        sides = [(f"{name}.{side}", entry[side]) for side in ("forget", "holdout") if side in entry]
        for key, recorded in sides or [(name, entry)]:
            if key.startswith(("mia_gradnorm", "mia_reference")):
                continue
            for row, values in (recorded.get("value_by_index") or {}).items():
                for field, value in values.items():
                    if not isinstance(value, str):
                        assert found[key][int(row)][field] == pytest.approx(value, rel=1e-5, abs=1e-6), (key, row)


def check_headlines(scores: dict[str, Any], log: dict[str, Any], absent: set[str]) -> None:
    for name, entry in log.items():
        if name not in absent:
            assert scores[name].value == pytest.approx(entry["agg_value"], rel=1e-5, abs=1e-7), name


def test_a_whole_log_of_a_tiny_model(shared: Path) -> None:
    log = json.loads((shared / "conformance" / "end_to_end" / "TOFU_EVAL_full.json").read_text())
    lengths = {row: length([log], row) for row in log["forget_Q_A_Prob"]["value_by_index"]}
    tables = rebuild(log, lengths)
    measured = measure(tables, profile="openunlearning")
    absent = {"forget_quality", "mia_gradnorm", "mia_reference", "privleak"}
    assert absent <= measured.skipped.keys()
    check_headlines(measured.scores, log, absent)
    check_items(tables, log)


def test_two_whole_logs_and_their_comparison(shared: Path) -> None:
    folder = shared / "data" / "logs_tofu_openunlearning"
    full = json.loads((folder / "tofu_Llama-3.2-1B-Instruct_full/evals_forget01/TOFU_EVAL.json").read_text())
    retrained = json.loads((folder / "tofu_Llama-3.2-1B-Instruct_retain99/TOFU_EVAL.json").read_text())
    lengths = {row: length([full, retrained], row) for row in full["forget_Q_A_Prob"]["value_by_index"]}
    ours, theirs = rebuild(full, lengths), rebuild(retrained, lengths)
    scores = measure(ours, reference=theirs, profile="openunlearning").scores
    check_headlines(scores, full, {"mia_gradnorm", "mia_reference"})
    # The log's reference losses come from another bfloat16 pass over the retrained model: one pair of rows may swap.
    assert scores["mia_reference"].value == pytest.approx(full["mia_reference"]["auc"], abs=1 / (40 * 40))
    assert scores["forget_quality"].value == pytest.approx(0.0067607323, rel=1e-6)
    assert scores["forget_quality_statistic"].value == pytest.approx(15 / 40)
    assert scores["forget_truth_ratio"].ideal == pytest.approx(0.651601, abs=1e-6)
    check_headlines(
        measure(theirs, profile="openunlearning").scores, retrained, {"mia_gradnorm", "forget_quality", "privleak"}
    )
    alone = measure(theirs, profile="openunlearning").scores["mia_min_k"].value
    assert privleak(alone, 0.5, eps=1e-10) == pytest.approx(retrained["privleak"]["agg_value"])
