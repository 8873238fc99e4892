"""Measuring models, and reading what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.api.models import Progress
from expunge.api.runs import RecipeLike
from expunge.config.load import load_recipe

if TYPE_CHECKING:
    from expunge.evals.logs.store import Imported
    from expunge.evals.recompute import Recomputed as Evaluation
    from expunge.evals.suite import Profile
    from expunge.metrics.explain import Explained
    from expunge.report.samples import Order, Samples


def evaluate(
    target: str | Path,
    *,
    recipe: RecipeLike | None = None,
    suite: str | None = None,
    profile: Profile = "canonical",
    reference: str | Path | None = None,
    start: str | Path | None = None,
    out: str | Path | None = None,
    tofu: str | None = None,
    source: str | Path | None = None,
    world: str | Path | None = None,
    num_fewshot: int | None = None,
    tasks: Sequence[str] = (),
    tasks_path: str | Path | None = None,
    forget_split: str | None = None,
    template: str | None = None,
    limit: int | None = None,
    samples: int | None = None,
    temperatures: Sequence[float] = (),
    top_ps: Sequence[float] = (),
    gradnorm: bool = False,
    gibberish: str | Path | None = None,
    perplexity_model: str | Path | None = None,
    token_budget: int | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a run or a model on a suite.

    Args:
        target: a run directory, a model folder or a Hub id.
        recipe: whose rows, template and TOFU place to measure by; a run's own unless said. With it a starting model
            is measured on the rows it is about to forget.
        suite: `expunge ls suites`; the run's own unless said.
        profile: `canonical`, or the published definitions to reproduce (`openunlearning`, `tofu`).
        reference: an evaluated run of the retrained model; forget quality and match-direction ideals need it.
        start: an evaluated run of the starting model, for metrics that say what changed; unless said, the run that
            an unlearned model's manifest names, where it was evaluated on the same rows.
        out: run directory for a model that is not a run.
        tofu: folder or Hub id of TOFU.
        source: folder or Hub id of the rows, for every suite but `tofu` and `world`.
        world: folder of `expunge world build`, for the suite `world`.
        num_fewshot: answered questions before each one, for the suites `mmlu` and `harness`.
        tasks: of lm-evaluation-harness, for the suite `harness`.
        tasks_path: folder of more of them, in its YAML form.
        forget_split: of TOFU `forget01`, `forget05` or `forget10`; of PISTOL the forgotten edges, joined by commas.
        template: named profile instead of the run's template, or of the one that the suite insists on.
        limit: only the first rows of each split.
        samples: answers sampled to each prompt of the forget set, for Leak@k; `eval.sampling` of a recipe says more.
        temperatures: what they are sampled at; 1 unless said.
        top_ps: top-p values; every one goes with every temperature; 1 unless said.
        gradnorm: measure gradients for the gradient norm attack.
        gibberish: a text classifier (folder or Hub id) with a label `clean`, which judges greedy answers.
        perplexity_model: another language model (folder or Hub id), which judges them.
        token_budget: padded tokens of one forward; measured unless said.
        allow_missing: accept metrics over fewer than 99 % of their rows.
        overwrite: run the passes again although their tables are there.
        device: `cpu`, `cuda`, `mps`.
        progress: receives one dict per event.

    Returns:
        Scores by name, what was skipped and why, and where the tables lie; the same on every process, where several
        were started and divided the work.
    """
    from expunge.evals.run import EvalOptions
    from expunge.evals.run import evaluate as run_evaluation
    from expunge.train.layout import together

    options = EvalOptions(
        recipe=None if recipe is None else load_recipe(recipe, ()).recipe,
        suite=suite,
        profile=profile,
        reference=Path(reference) if reference else None,
        start=Path(start) if start else None,
        out=Path(out) if out else None,
        tofu=tofu,
        source=str(source) if source else None,
        world=Path(world) if world else None,
        num_fewshot=num_fewshot,
        tasks=tuple(tasks),
        tasks_path=Path(tasks_path) if tasks_path else None,
        forget_split=forget_split,
        template=template,
        limit=limit,
        samples=samples,
        temperatures=tuple(temperatures),
        top_ps=tuple(top_ps),
        gradnorm=gradnorm,
        gibberish=str(gibberish) if gibberish else None,
        perplexity_model=str(perplexity_model) if perplexity_model else None,
        token_budget=token_budget,
        allow_missing=allow_missing,
        overwrite=overwrite,
        device=device,
    )
    with together():
        return run_evaluation(target, options, progress=progress)


def import_log(file: str | Path, *, origin: str, out: str | Path, overwrite: bool = False) -> Imported:
    """Write an evaluation log of other software as tables that are measured like an evaluation. Needs no torch.

    Args:
        file: OpenUnlearning's `TOFU_EVAL.json` or `MUSE_EVAL.json`, TOFU's `eval_log_aggregated.json`, MUSE's
            `out.json`, `history.json`, `auc.json` or the folder that holds them.
        origin: which software wrote it: `openunlearning`, `tofu` or `muse`.
        out: the folder that is written.
        overwrite: replace an import that lies there.

    Returns:
        The folder, its rows, and which aggregates of the log follow from them.

    Raises:
        UsageError: unknown software, no such file, or `out` holds something.
        DataError: not such a log, a key that is missing, a value that is not a finite number.
    """
    from expunge.evals.logs.store import import_log as read

    return read(Path(file), origin=origin, out=Path(out), overwrite=overwrite)


def samples(
    run: str | Path,
    metric: str,
    *,
    order: Order = "worst",
    number: int = 10,
    suite: str | None = None,
    profile: str | None = None,
    reference: str | Path | None = None,
    start: str | Path | None = None,
    redact: bool = False,
) -> Samples:
    """The rows behind a score, each with its question, its true answer and what the model said. Needs no torch.

    Args:
        run: an evaluated run directory, one evaluation's folder, or an imported log.
        metric: a mean over the rows of one split, or an AUC: `forget.rougeL_recall`, `membership.loss_auc`.
        order: `worst` or `best` rows first, by the metric's direction or its distance from the ideal.
        number: how many rows, at least 1.
        suite: which suite's tables, where the run has several.
        profile: whose definitions; the evaluated profile unless said.
        reference: an evaluated run of the retrained model; a metric that is to match it needs one.
        start: an evaluated run of the starting model.
        redact: replace the text of forget rows, and answers that are not the true one, by keyed digests.

    Returns:
        The metric's score and `samples`, one per row, with the row's own value.

    Raises:
        UsageError: no such evaluation or metric, or one that is no mean over rows.
        MetricError: a metric that was skipped or cannot be computed from these tables.
        DataError: tables that cannot be read.
    """
    from expunge.report.samples import pick_samples

    return pick_samples(
        Path(run),
        metric,
        order=order,
        number=number,
        suite=suite,
        profile=profile,
        reference=Path(reference) if reference else None,
        start=Path(start) if start else None,
        redact=redact,
    )


def explain(name: str) -> Explained:
    """What a metric measures, which way is better, what it cannot tell and where it comes from. Needs no torch.

    Args:
        name: as a suite reports it (`forget.rougeL_recall`), without its split, or as a profile or a log has it.

    Returns:
        Its line of the registry (`info`) and the long form (`card`).

    Raises:
        UsageError: no suite reports such a metric; the message offers the nearest name.
    """
    from expunge.metrics.explain import explain as look_up

    return look_up(name)


def report(
    run: str | Path,
    *,
    start: str | Path | None = None,
    reference: str | Path | None = None,
    runs: Sequence[str | Path] = (),
    out: str | Path | None = None,
    redact: bool = False,
) -> Path:
    """Write what a run did as one self-contained HTML file, and the model card beside its weights. Needs no torch.

    Args:
        run: an evaluated run directory.
        start: the evaluated starting model; found from the run's manifest unless given.
        reference: the evaluated retrained model; unless given, the run beside this one that its metrics name.
        runs: more runs for the forget-retain plane.
        out: the file; `report.html` in the run unless given.
        redact: replace the text of forget rows by ids and keyed digests.

    Returns:
        The file.

    Raises:
        UsageError: a run that is not there, half-written or not evaluated.
        MetricError: runs that were not measured on the same rows with the same template.
    """
    from expunge.report.write import write_report

    return write_report(
        Path(run),
        start=None if start is None else Path(start),
        reference=None if reference is None else Path(reference),
        runs=[Path(other) for other in runs],
        out=None if out is None else Path(out),
        redact=redact,
    ).path


def compare(runs: Sequence[str | Path], *, out: str | Path = "comparison.html", redact: bool = False) -> Path:
    """Lay evaluated runs side by side in one HTML file; see `report`.

    Raises:
        UsageError: fewer than two runs, or one that is not evaluated.
        MetricError: runs that were not measured on the same rows with the same template.
    """
    from expunge.report.comparison import write_comparison

    return write_comparison([Path(run) for run in runs], out=Path(out), redact=redact).path
