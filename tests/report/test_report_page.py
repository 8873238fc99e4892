"""The written page: what it says, what it must not hold, and what it does where something is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_runs import DIRECT, HOSTILE, RETRAINED, SPLITS, START, UNLEARNED, Made, make_runs, score, write_run
from page_checks import Page, problems

from expunge import api
from expunge.errors import DataError, MetricError, UsageError
from expunge.report.comparison import write_comparison
from expunge.report.write import write_report
from expunge.runs.purge import purge
from expunge.runs.redact import KEY_FILE, keyed_digest, redaction_key
from expunge.runs.run import Run


@pytest.fixture
def runs(tmp_path: Path) -> Made:
    return make_runs(tmp_path)


def words(path: Path) -> str:
    return Page(path.read_text(encoding="utf-8")).words


def test_the_page_is_sound(page: Path) -> None:
    assert problems(page) == []


def test_the_checks_would_find_a_bad_page(page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    text = page.read_text(encoding="utf-8").replace("</main>", '<img src="http://x/y.png"><h5 id="main">x</h5></main>')
    bad.write_text(text.replace("<header>", "<header><div>"), encoding="utf-8")
    found = "\n".join(problems(bad))
    for part in ("fetches http://x/y.png", "id main is there 2 times", "followed by h5", "</header> closes"):
        assert part in found


def test_a_question_that_few_suites_ask_stands_only_where_it_was_asked(page: Path, tmp_path: Path) -> None:
    question = "What does it choose among given answers?"
    assert question not in words(page)
    extra = {"wmdp.accuracy": score(0.31), "forget.knowmem": score(0.4)}
    write_run(tmp_path / "run", dict.fromkeys(SPLITS, 0.5), model="b" * 64, extra=extra)
    text = words(write_report(tmp_path / "run").path)
    assert question in text
    assert "Right choices near hazards" in text
    assert "Answers questions about forgotten texts" in text


def test_sections_come_in_their_order(page: Path) -> None:
    ids = re.findall(r'<section id="(\w+)"', page.read_text(encoding="utf-8"))
    assert ids == [
        *("verdict", "numbers", "training", "energy", "plane", "forms"),
        *("examples", "settings", "provenance", "limits"),
    ]


def test_the_verdict_its_numbers_and_the_missing_attack_are_said(page: Path) -> None:
    text = words(page)
    assert "Forgotten The model says no more of the forget set than one that never saw it" in text
    assert "at most 0.050, the retrained model's upper end" in text
    assert "No attack was run" in text


def test_hostile_text_is_shown_and_not_run(page: Path) -> None:
    raw = page.read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in raw
    assert not {"\u202e", "\u202c", "\x00"} & set(raw)
    assert "‹U+202E›" in raw
    assert "more characters" in raw


def test_a_page_is_the_same_twice(made: Made, page: Path, tmp_path: Path) -> None:
    again = write_report(made.unlearned, out=tmp_path / "again.html").path
    assert again.read_bytes() == page.read_bytes()


def test_ten_examples_with_three_answers_each(page: Path) -> None:
    found = re.findall(r'<article class="example".*?</article>', page.read_text(encoding="utf-8"), re.DOTALL)
    splits = [re.search(r'class="tag">([\w ]+)<', one)[1] for one in found]  # type: ignore[index]
    assert splits == ["forget"] * 5 + ["retain"] * 3 + ["neighbours"] * 2
    assert all(one.count('<bdi class="said"') == 5 for one in found)


def test_the_starting_and_the_retrained_run_are_found(runs: Made) -> None:
    written = write_report(runs.unlearned)
    assert written.path == runs.unlearned / "report.html"
    assert written.compared.start is not None
    assert written.compared.start.path == runs.start
    assert written.compared.retrained is not None
    assert written.compared.retrained.path == runs.retrained.resolve()


def test_without_yardsticks_no_verdict_is_given_and_the_commands_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "alone", UNLEARNED, model="b" * 64, start=tmp_path / "gone")
    written = write_report(run)
    assert written.verdict.word == "none"
    assert problems(written.path) == []
    text = words(written.path)
    assert "No verdict can be given" in text
    assert f"expunge report {run} --reference RETRAINED" in text
    assert f"expunge eval {tmp_path / 'gone' / 'model'} --recipe RECIPE" in text


def test_a_start_that_was_never_evaluated_is_named_with_its_command(runs: Made) -> None:
    shutil.rmtree(runs.start / "evals")
    written = write_report(runs.unlearned)
    assert written.verdict.word == "none"
    assert f"expunge eval {runs.start}" in written.verdict.missing
    with pytest.raises(UsageError, match="no finished evaluation") as caught:
        write_report(runs.unlearned, start=runs.start)
    assert f"expunge eval {runs.start}" in str(caught.value)


def test_a_run_that_only_trained_has_no_verdict(runs: Made) -> None:
    written = write_report(runs.start, reference=runs.retrained)
    assert written.verdict.word == "none"
    assert "did not unlearn" in words(written.path)
    assert problems(written.path) == []


def test_suppressed_and_leaking_forms_are_said(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, unlearned=UNLEARNED | {"forget_multi_hop": 0.6})
    written = write_report(runs.unlearned)
    assert written.verdict.word == "suppressed only"
    text = words(written.path)
    assert "by a detour over a kept person (0.600 against 0.050)" in text
    assert "Its truth ratios on the forget set are distributed otherwise" in text
    assert "stutter, repeat themselves" in text


def test_a_suite_without_forms_neighbours_or_guard_says_so(tmp_path: Path) -> None:
    few = ("forget", "retain")
    start = write_run(tmp_path / "s", {k: START[k] for k in few}, model="a" * 64, kind="train", hostile=False)
    run = write_run(tmp_path / "r", {k: UNLEARNED[k] for k in few}, model="b" * 64, start=start, hostile=False)
    never = write_run(tmp_path / "n", {k: RETRAINED[k] for k in few}, model="c" * 64, kind="train", hostile=False)
    for path in (start, run, never):
        for name in path.glob("evals/*/metrics.json"):
            found = json.loads(name.read_text())
            found["reference"] = {"model_digest": "c" * 64}
            found["skipped"] = {}
            name.write_text(json.dumps(found))
    written = write_report(run, reference=never)
    assert written.verdict.word == "forgotten"
    assert problems(written.path) == []
    text = words(written.path)
    for part in (
        "asks every question in one form",
        "No guard was calibrated",
        "Not measured in this suite: forget, in other words, neighbours (kept)",
        "two more retain rows stand in",
        "Only the trained wording was asked",
        "No membership attack was computed",
    ):
        assert part in text


def saved_guard(run: Path, **changes: object) -> None:
    guard = {"threshold": -15.5, "rate": 0.02, "statistic": "last", "temperature": 1.0, "model_digest": "b" * 64}
    (run / "model" / "energy_guard.json").write_text(json.dumps(guard | changes))


def test_a_saved_guard_is_drawn_and_decides_the_examples(runs: Made) -> None:
    saved_guard(runs.unlearned)
    text = words(write_report(runs.unlearned).path)
    assert "guard refuses above −15.5" in text
    assert "refuses to answer" in text
    assert "lets through" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"model_digest": "d" * 64}, "calibrated for another model"), ({"statistic": "prompt"}, "no place on this axis")],
)
def test_a_guard_of_another_kind_is_not_drawn(runs: Made, changes: dict[str, object], said: str) -> None:
    saved_guard(runs.unlearned, **changes)
    text = words(write_report(runs.unlearned).path)
    assert said in text
    assert "guard refuses above" not in text


def test_a_broken_guard_is_an_error(runs: Made) -> None:
    (runs.unlearned / "model" / "energy_guard.json").write_text("{}")
    with pytest.raises(DataError, match="not a saved guard"):
        write_report(runs.unlearned)


@pytest.mark.parametrize("who", ["start", "retrained"])
def test_another_template_is_refused(runs: Made, tmp_path: Path, who: str) -> None:
    other = write_run(tmp_path / "other", START, model="a" * 64, kind="train", template="cd" * 32)
    with pytest.raises(MetricError, match="another template"):
        write_report(runs.unlearned, **{"start" if who == "start" else "reference": other})


def test_other_rows_are_refused(runs: Made, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", RETRAINED, model="c" * 64, kind="train", rows_digest="9")
    with pytest.raises(MetricError, match=r"other rows .*forget"):
        write_report(runs.unlearned, reference=other)


def test_another_starting_model_is_refused(runs: Made, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", START, model="e" * 64, kind="train")
    with pytest.raises(MetricError, match="holds another model"):
        write_report(runs.unlearned, start=other)


def test_a_run_without_an_evaluation_names_the_command(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", UNLEARNED, model="b" * 64)
    shutil.rmtree(run / "evals")
    with pytest.raises(UsageError, match="no finished evaluation") as caught:
        write_report(run)
    assert f"expunge eval {run}" in str(caught.value)


def test_tables_without_metrics_name_the_command(runs: Made) -> None:
    next(runs.unlearned.glob("evals/*/metrics.json")).unlink()
    with pytest.raises(UsageError, match=r"no metrics\.json") as caught:
        write_report(runs.unlearned)
    assert f"expunge metrics {runs.unlearned}" in str(caught.value)


def test_metrics_that_are_not_metrics_are_an_error(runs: Made) -> None:
    next(runs.unlearned.glob("evals/*/metrics.json")).write_text('{"metrics": {"a": 1}, "skipped": {}}')
    with pytest.raises(DataError, match="not what `expunge eval` writes"):
        write_report(runs.unlearned)


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_a_half_written_run_says_to_repeat_its_command(tmp_path: Path, status: str) -> None:
    run = write_run(tmp_path / "r", UNLEARNED, model="b" * 64, status=status)
    with pytest.raises(UsageError, match="half-written: it stopped at step 20 of 60") as caught:
        write_report(run)
    assert "expunge unlearn" in str(caught.value)


def test_purged_text_is_said_to_be_purged(runs: Made) -> None:
    old = write_report(runs.unlearned).path
    assert purge(Run.open(runs.unlearned)).reports == (old,)
    assert not old.exists()
    written = write_report(runs.unlearned)
    assert problems(written.path) == []
    assert "The text of these rows was purged" in words(written.path)
    raw = written.path.read_text(encoding="utf-8")
    assert "forget query" not in raw
    assert "forget reply" not in raw


def test_redaction_withholds_every_forgotten_text(runs: Made) -> None:
    written = write_report(runs.unlearned, redact=True)
    assert problems(written.path) == []
    raw = written.path.read_text(encoding="utf-8")
    for text in ("forget query", "forget reply", "forget person"):
        assert text not in raw
    assert "retain query" in raw
    key = redaction_key(runs.unlearned)
    assert key.hex() not in raw
    found = re.findall(r"withheld, HMAC (\w{16})", raw)
    every = {keyed_digest(f"forget reply {row} in its own words", key=key) for row in range(12)}
    assert len(found) == 5 * 5 + 5 * 3  # forget rows whole; of the others, answers that are not the true one
    assert every & set(found)
    assert keyed_digest(HOSTILE, key=key) in found


def test_the_key_stays_with_its_owner_and_is_kept(runs: Made) -> None:
    key = redaction_key(runs.unlearned)
    assert redaction_key(runs.unlearned) == key
    assert redaction_key(runs.start) != key
    assert (runs.unlearned / KEY_FILE).stat().st_mode & 0o077 == 0
    (runs.unlearned / KEY_FILE).write_text("short")
    with pytest.raises(DataError, match="not a redaction key"):
        redaction_key(runs.unlearned)


def test_the_card_has_counts_numbers_and_no_text(runs: Made) -> None:
    written = write_report(runs.unlearned)
    assert written.card == runs.unlearned / "model" / "README.md"
    text = written.card.read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["tags"] == ["expunge", "machine-unlearning", "eua"]
    assert "base_model" not in front
    assert "12 rows" in text
    assert "made start/model forget" in text
    assert str(runs.start) not in text
    assert "`forget.extraction_strength` | 0.980 [0.960, 1] | 0.020" in text
    assert "No attack was run" in text
    for heading in ("## Intended use", "## Limits", "## Method"):
        assert heading in text
    assert "forget query" not in text


def test_a_card_of_somebodys_own_is_left_alone(runs: Made) -> None:
    card = runs.unlearned / "model" / "README.md"
    card.write_text("mine")
    assert write_report(runs.unlearned).card is None
    assert card.read_text() == "mine"


def test_numbers_are_computed_against_a_retrained_run_that_is_named_later(
    runs: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.evals.suite import Measured
    from expunge.report import collect

    asked = []

    def measure(tables: object, **options: object) -> Measured:
        asked.append(options["reference"] is not None)
        return Measured({"forget_quality": score(0.5)}, {})

    monkeypatch.setattr(collect, "measure_of", lambda suite: measure)
    for path in runs.unlearned.glob("evals/*/metrics.json"):
        found = json.loads(path.read_text())
        found["reference"] = None
        path.write_text(json.dumps(found))
    written = write_report(runs.unlearned, reference=runs.retrained)
    assert asked == [True]
    assert written.compared.this.scores["forget_quality"].value == 0.5
    assert json.loads(next(runs.unlearned.glob("evals/*/metrics.json")).read_text())["reference"] is None


def test_a_comparison_knows_who_is_who(made: Made, tmp_path: Path) -> None:
    written = write_comparison([made.start, made.retrained, made.unlearned], out=tmp_path / "c.html")
    assert problems(written.path) == []
    assert {name: verdict.word for name, verdict in written.verdicts.items()} == {"eua": "forgotten"}
    text = words(written.path)
    assert "3 runs side by side" in text
    assert "The retrained model." in text


def test_runs_of_one_name_are_told_apart(made: Made, tmp_path: Path) -> None:
    other = make_runs(tmp_path / "second", unlearned=UNLEARNED | {"retain": 0.5})
    written = write_comparison([made.unlearned, other.unlearned, made.start, made.retrained], out=tmp_path / "c.html")
    assert sorted(verdict.word for verdict in written.verdicts.values()) == ["damaged", "forgotten"]
    assert all(name.endswith("/eua") for name in written.verdicts)
    assert problems(written.path) == []


def test_a_comparison_adds_the_yardsticks_at_hand(made: Made, tmp_path: Path) -> None:
    other = make_runs(tmp_path / "second", unlearned=UNLEARNED | {"retain": 0.5})
    written = write_comparison([made.unlearned, other.unlearned], out=tmp_path / "c.html")
    named = write_comparison([made.unlearned, other.unlearned, made.start, made.retrained], out=tmp_path / "d.html")
    assert written.verdicts == named.verdicts
    assert (tmp_path / "c.html").read_text() == (tmp_path / "d.html").read_text()


def test_a_redacted_comparison_withholds_text(runs: Made, tmp_path: Path) -> None:
    written = write_comparison([runs.start, runs.unlearned], out=tmp_path / "c.html", redact=True)
    raw = written.path.read_text(encoding="utf-8")
    assert "forget query" not in raw
    assert "withheld, HMAC" in raw


def test_comparing_takes_two(made: Made) -> None:
    with pytest.raises(UsageError, match="two runs or more"):
        write_comparison([made.start])


def test_from_python(runs: Made, tmp_path: Path) -> None:
    assert api.report(str(runs.unlearned), out=tmp_path / "r.html") == tmp_path / "r.html"
    assert api.compare([runs.start, runs.unlearned], out=tmp_path / "c.html").exists()


@pytest.mark.slow
def test_a_report_needs_no_torch(made: Made, tmp_path: Path) -> None:
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "transformers", "accelerate"}}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
from expunge import api
api.report({str(made.unlearned)!r}, out={str(tmp_path / "r.html")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_fixture_has_every_split_of_the_suite() -> None:
    assert len(SPLITS) == 14
    assert set(DIRECT) <= set(SPLITS)
