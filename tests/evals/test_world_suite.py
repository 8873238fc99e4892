"""The world suite: its declaration from a folder, its metrics by hand, and how the starting run is found."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from expunge import api
from expunge.config.schema import Recipe
from expunge.data.worlds import build_world, read_world, write_world
from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.recompute import recompute
from expunge.evals.run import EvalOptions, build_suite
from expunge.evals.suite import NO_START, Split, SuiteData, Tables
from expunge.evals.suites.world import measure, rule, world
from expunge.evals.suites.world_forms import FORMS
from expunge.metrics.leak_names import listed_name
from expunge.metrics.registry import METRICS
from expunge.runs.run import Run
from expunge.runs.starting import starting_run
from expunge.testing.tables import answer_row, make_tables, text_row
from expunge.testing.tiny import tiny_llama, tiny_tokenizer

RELATIVE = ("multi_hop.leakage", "neighbours.retention", "forms.dependence_index")
SIDES = ("forget", "retain")
SPLITS = ("forget", "retain", "holdout", "neighbours", *(f"{side}_{form}" for side in SIDES for form in FORMS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(build_world(people=12, seed=3), tmp_path_factory.mktemp("worlds") / "world")


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    copy = tmp_path / "world"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


# Declaration


def by_name(folder: Path, limit: int | None = None) -> dict[str, Split]:
    return {split.name: split for split in world(SuiteData(world=folder, limit=limit)).splits}


def test_splits_of_a_world(folder: Path) -> None:
    splits = by_name(folder)
    assert set(splits) == set(SPLITS)
    assert [name for name, split in splits.items() if split.generate] == ["forget", "retain", "holdout"]
    assert [name for name, split in splits.items() if split.stats] == ["forget", "holdout"]
    for name, split in splits.items():
        full = name in ("forget", "retain", "holdout")
        assert split.variants == (("answer", "paraphrase", "perturbed") if full else ("answer",))
        form = name.partition("_")[2] if name not in ("forget", "retain", "holdout", "neighbours") else "direct"
        assert {example.extra["form"] for example in split.examples} == {form.replace("paraphrased", "direct")}
    lines = (folder / "forget.jsonl").read_text().splitlines()
    assert sum(len(splits[f"forget{end}"].examples) for end in ("", "_cloze", "_inverted", "_multiple_choice")) == len(
        lines
    )
    assert {len(split.examples) for split in by_name(folder, limit=3).values()} == {3}


def test_paraphrased_questions_ask_for_the_direct_answer(folder: Path) -> None:
    splits = by_name(folder)
    for side in SIDES:
        for direct, other in zip(splits[side].examples, splits[f"{side}_paraphrased"].examples, strict=True):
            assert other.prompt[-1].content == direct.extra["paraphrased_question"] != direct.prompt[-1].content
            assert (other.answer, other.group, other.id) == (direct.answer, direct.group, direct.id)


def test_neighbours_are_retain_rows_about_people_tied_to_a_forgotten_one(folder: Path) -> None:
    splits, described = by_name(folder), read_world(folder)
    assert {example.group for example in splits["neighbours"].examples} == set(described["neighbours"])
    kept = {example.id for example in splits["retain"].examples}
    assert {example.id for example in splits["neighbours"].examples} < kept
    forgotten = {name for name, role in described["roles"].items() if role == "forget"}
    assert {example.group for example in splits["forget_multi_hop"].examples} <= forgotten


def test_what_cannot_be_declared(own: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a world") as missing:
        world(SuiteData())
    assert "expunge world build" in str(missing.value.hint)
    with pytest.raises(UsageError, match=r"eval\.forget is set"):
        world(SuiteData(world=own, splits={"forget": ()}))
    with pytest.raises(DataError, match="not a world") as other:
        world(SuiteData(world=tmp_path / "elsewhere"))
    assert "expunge world build" in str(other.value.hint)
    (own / "holdout.jsonl").rename(own / "gone")
    with pytest.raises(DataError, match=r"has no holdout\.jsonl"):
        world(SuiteData(world=own))


@pytest.mark.parametrize(
    ("column", "message"), [("form", "row 0 has no form"), ("perturbed_answer", "row 0 has no perturbed_answer")]
)
def test_rows_that_the_suite_cannot_use(own: Path, column: str, message: str) -> None:
    rows = [json.loads(line) for line in (own / "retain.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop(column, None)
    (own / "retain.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=message):
        world(SuiteData(world=own))


def test_a_form_without_rows_is_an_error(own: Path) -> None:
    rows = [json.loads(line) for line in (own / "forget.jsonl").read_text().splitlines()]
    (own / "forget.jsonl").write_text("\n".join(json.dumps(row) for row in rows if row["form"] != "cloze"))
    with pytest.raises(DataError, match="no rows for the split 'forget_cloze'"):
        world(SuiteData(world=own))


def test_a_world_of_another_make_is_an_error(own: Path) -> None:
    described = json.loads((own / "world.json").read_text())
    (own / "world.json").write_text(json.dumps({**described, "neighbours": None}))
    with pytest.raises(DataError, match="lists no neighbours"):
        world(SuiteData(world=own))


def test_the_recipe_names_the_world_and_the_option_wins(folder: Path, tmp_path: Path) -> None:
    data = {"forget": str(folder / "forget.jsonl"), "retain": str(folder / "retain.jsonl")}
    recipe = Recipe.model_validate({"data": data, "eval": {"suite": "world", "world": str(folder), "limit": 1}})
    assert build_suite("world", recipe, EvalOptions()).name == "world"
    with pytest.raises(DataError, match="not a world"):
        build_suite("world", recipe, EvalOptions(world=tmp_path / "none"))
    assert [split.name for split in build_suite("tofu", recipe, EvalOptions()).splits] == ["forget", "retain"]
    with pytest.raises(UsageError, match="no profile 'openunlearning'"):
        build_suite("world", recipe, EvalOptions(profile="openunlearning"))


# Metrics


def tables(levels: dict[str, float], *, strengths: dict[str, float] | None = None, rows: int = 4) -> Tables:
    """Every split: answers of four tokens and the end token with this probability, of which a share is finished."""
    texts, answers = [], []
    for split in SPLITS:
        logp = math.log(levels.get(split, levels[""]))
        finished = round(4 * (strengths or {}).get(split, 1.0))
        hit = [False] * (4 - finished) + [True] * finished + [False]
        for row in range(rows):
            group = f"{split.partition('_')[0]} {row // 2}"
            texts.append(text_row(split, row, "answer", [logp] * 5, hit=hit, group=group, prompt=f"{split} {row}"))
            if split in ("forget", "retain", "holdout"):
                texts.append(text_row(split, row, "paraphrase", [-1.0], group=group))
                texts += [text_row(split, row, f"perturbed_{i}", [-2.0], group=group) for i in range(2)]
                answers.append(answer_row(split, row, group=group))
    return make_tables(texts, answers)


def values(measured: Any) -> dict[str, float]:
    return {name: score.value for name, score in measured.scores.items()}


def test_every_split_has_its_strength_and_probability() -> None:
    measured = measure(tables({"": 0.5, "forget_cloze": 0.25}, strengths={"forget_cloze": 0.25, "neighbours": 0.75}))
    found = values(measured)
    for split in SPLITS:
        assert found[f"{split}.extraction_strength"] == {"forget_cloze": 0.25, "neighbours": 0.75}.get(split, 1)
        assert found[f"{split}.probability"] == pytest.approx(0.25 if split == "forget_cloze" else 0.5)
    directions = {name: measured.scores[f"{name}.probability"].direction for name in SPLITS}
    assert directions.pop("holdout") == "match"
    assert {name for name, way in directions.items() if way == "lower"} == {
        name for name in SPLITS if name.startswith("forget")
    }
    assert {
        "energy.auroc",
        "energy.auroc_paraphrase",
        "retain_utility",
        "membership.loss_auc",
    } <= measured.scores.keys()
    assert {measured.skipped[name] for name in RELATIVE} == {NO_START}
    assert "real authors" in measured.skipped["model_utility"]


def test_relative_metrics_by_hand() -> None:
    start = tables({"": 0.8})
    after = tables(
        {"": 0.8, "forget": 0.2, "forget_paraphrased": 0.2, "forget_cloze": 0.2, "forget_inverted": 0.5}
        | {"forget_multi_hop": 0.8, "forget_multiple_choice": 0.1},
        strengths={"forget_multi_hop": 0.25, "neighbours": 0.75},
    )
    measured = measure(after, start=start)
    found = values(measured)
    assert found["multi_hop.leakage"] == pytest.approx(0.25)
    assert found["neighbours.retention"] == pytest.approx(0.75)
    # Drops: direct 3/4; of it the forms reach 1, 1, 1/2, 0 and (more than) 1.
    assert found["forms.dependence_index"] == pytest.approx(1 - (1 + 1 + 0.5 + 0 + 1) / 5, abs=1e-6)
    index = measured.scores["forms.dependence_index"]
    assert (index.n, index.n_total, index.ideal, index.direction) == (24, 24, None, "lower")
    assert index.low == pytest.approx(index.value)
    assert measured.scores["neighbours.retention"].ideal == 1
    assert not set(RELATIVE) & measured.skipped.keys()


def test_the_retrained_model_is_the_ideal() -> None:
    start, retrained = tables({"": 0.8}), tables({"": 0.8, "forget": 0.4}, strengths={"forget_multi_hop": 0.5})
    measured = measure(start, reference=retrained, start=start)
    assert measured.scores["multi_hop.leakage"].ideal == pytest.approx(0.5)
    assert measured.scores["forget_cloze.probability"].ideal == pytest.approx(0.8)
    assert measured.scores["neighbours.retention"].ideal == 1
    assert measured.skipped["forms.dependence_index"].startswith(
        "nothing was forgotten: forget.probability fell by 0.0"
    )


def test_a_start_that_knew_nothing_leaves_nothing_to_divide_by() -> None:
    start = tables({"": 0.8}, strengths={"forget_multi_hop": 0.0, "neighbours": 0.0})
    measured = measure(tables({"": 0.8, "forget": 0.1}), start=start)
    for name, split in (("multi_hop.leakage", "forget_multi_hop"), ("neighbours.retention", "neighbours")):
        assert measured.skipped[name] == f"the starting model's {split}.extraction_strength is 0.000, below 0.05"
    assert measured.scores["forms.dependence_index"].value == pytest.approx(1)


def test_a_start_of_other_rows_is_an_error() -> None:
    with pytest.raises(MetricError, match="the starting run was measured on other rows"):
        measure(tables({"": 0.5}), start=tables({"": 0.5}, rows=5))
    with pytest.raises(UsageError, match="no profile 'tofu'"):
        measure(tables({"": 0.5}), profile="tofu")


def test_names_are_the_registry_s() -> None:
    registered = {info.name.removeprefix("<split>."): info for info in METRICS}
    measured = measure(tables({"": 0.5, "forget": 0.1}), start=tables({"": 0.8}), reference=tables({"": 0.6}))
    assert set(RELATIVE) <= measured.scores.keys()
    for name, score in measured.scores.items():
        split, _, metric = listed_name(name).partition(".")
        assert name in registered or (split in SPLITS and metric in registered), name
        assert score.direction == rule(name).direction
    for name in RELATIVE:
        assert registered[name].direction == rule(name).direction


# The starting run


def evaluation(run: Path, stored: Tables, *, template: str = "0123456789abcdef", **spec: Any) -> Path:
    found = run / "evals" / f"world-canonical-{template[:8]}"
    found.mkdir(parents=True)
    pq.write_table(stored.trace, found / "trace.parquet")
    pq.write_table(stored.generations, found / "generations.parquet")
    content = {
        "schema": 1,
        "suite": "world",
        "profile": "canonical",
        "template": {"name": "plain", "digest": template},
        "splits": {"forget": {"digest": "rows", "variants": ["answer"]}},
        "total_length": None,
        "model_digest": "start",
    }
    (found / "spec.json").write_text(json.dumps(content | spec))
    return found


def run_of(path: Path, kind: Any, resolved: dict[str, Any], **changes: Any) -> Path:
    Run.create(path, kind=kind, given={}, resolved=resolved).update(status="finished", **changes)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A starting run and a model unlearned from it, both evaluated."""
    run_of(tmp_path / "start", "train", {})
    evaluation(tmp_path / "start", tables({"": 0.8}))
    resolved = {"model": {"model_name_or_path": str(tmp_path / "start" / "model")}}
    run_of(tmp_path / "mine", "unlearn", resolved, model={"name": "start", "digest": "start"})
    evaluation(tmp_path / "mine", tables({"": 0.8, "forget": 0.2}), model_digest="mine")
    return tmp_path


def test_the_start_is_found_by_the_manifest(runs: Path) -> None:
    done = recompute(runs / "mine")
    assert set(RELATIVE) <= done.scores.keys()
    assert done.start == {"evaluation": "world-canonical-01234567", "model_digest": "start"}
    assert json.loads(done.metrics_path.read_text())["start"] == done.start
    assert recompute(runs / "mine", start=runs / "start").scores == done.scores
    assert recompute(done.path).start == done.start, "an evaluation folder lies in its run"


def test_a_relative_start_is_found_from_where_the_run_was_made(runs: Path) -> None:
    resolved = {"model": {"model_name_or_path": "start/model"}, "output_dir": "other"}
    found = starting_run(run_of(runs / "other", "unlearn", resolved))
    assert found.run is not None
    assert found.run.resolve() == (runs / "start").resolve()


def reasons(run: Path) -> set[str]:
    done = recompute(run)
    assert done.start is None
    return {done.skipped[name] for name in RELATIVE}


def test_why_no_start_was_found(runs: Path) -> None:
    assert reasons(runs / "start") == {f"{NO_START}: this model was not unlearned (kind of run: train)"}
    evaluation(run_of(runs / "hub", "unlearn", {"model": {"model_name_or_path": "some/model"}}), tables({"": 0.5}))
    assert reasons(runs / "hub") == {f"{NO_START}: the starting model some/model does not lie in a run"}
    spec = runs / "start/evals/world-canonical-01234567/spec.json"
    written = json.loads(spec.read_text())
    for change, message in (
        ({"model_digest": "another"}, "holds another model than this one was unlearned from"),
        ({"splits": {"forget": {"digest": "others", "variants": ["answer"]}}}, "evaluated on other rows; run `expunge"),
        ({"template": {"name": "chat", "digest": "f" * 16}}, "measured with another template"),
        ({"suite": "tofu"}, "has no evaluation of suite 'world'; run `expunge eval"),
    ):
        spec.write_text(json.dumps(written | change))
        (found,) = reasons(runs / "mine")
        assert message in found


def test_a_named_start_must_fit(runs: Path) -> None:
    evaluation(runs / "fewer", tables({"": 0.5}, rows=3))
    evaluation(runs / "chat", tables({"": 0.5}), template="f" * 16)
    with pytest.raises(MetricError, match="the starting run was measured on other rows"):
        recompute(runs / "mine", start=runs / "fewer")
    with pytest.raises(MetricError, match=r"the starting run .*chat was measured with another template"):
        recompute(runs / "mine", start=runs / "chat")
    with pytest.raises(UsageError, match=r"no finished evaluation in .*nowhere"):
        recompute(runs / "mine", start=runs / "nowhere")


def test_from_the_command_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from expunge.cli.main import main

    assert main(["metrics", str(runs / "mine"), "--start", str(runs / "start"), "--json"]) == 0
    assert set(RELATIVE) <= json.loads(capsys.readouterr().out)["metrics"].keys()
    (runs / "mine/evals/world-canonical-01234567/spec.json").unlink()
    assert main(["eval", str(runs / "start"), "--suite", "world", "--world", "nowhere"]) != 0


def test_from_a_model_to_scores(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    for seed, name in enumerate(("a", "b")):
        tiny_llama(len(tokenizer), seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    options: dict[str, Any] = {"suite": "world", "world": folder, "limit": 1, "token_budget": 4096}
    first = api.evaluate(tmp_path / "a", out=tmp_path / "ra", **options)
    assert first.scores["forget_inverted.probability"].n == 1
    assert all(reason.startswith(NO_START) for name, reason in first.skipped.items() if name in RELATIVE)
    second = api.evaluate(tmp_path / "b", out=tmp_path / "rb", start=tmp_path / "ra", **options)
    assert second.start is not None
    assert not any(second.skipped.get(name, "").startswith(NO_START) for name in RELATIVE)
