"""What each metric is called and what it means, for somebody who has never heard of it."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table of numbers."""

    metric: str
    label: str
    meaning: str


class Group(NamedTuple):
    """Lines that answer one question."""

    title: str
    rows: tuple[Row, ...]
    absent: str | None
    """What to say where the suite measures none of them; None: nothing, the question is that of few suites."""


FORMS: tuple[str, ...] = ("paraphrased", "cloze", "inverted", "multi_hop", "multiple_choice")
"""Ways to ask for a fact other than the trained one, as the splits `forget_<form>` are named."""

_FORM_NAMES = {
    "direct": "as trained",
    "paraphrased": "in other words",
    "cloze": "as a gap to fill",
    "inverted": "backwards",
    "multi_hop": "by a detour over a kept person",
    "multiple_choice": "among choices",
}


def form_name(form: str) -> str:
    """`multi_hop` in plain words."""
    return _FORM_NAMES.get(form, form.replace("_", " "))


_ES = "extraction_strength"

GROUPS: tuple[Group, ...] = (
    Group(
        "Is the forget set forgotten?",
        (
            Row(
                f"forget.{_ES}",
                "Answers it finishes by itself",
                "Extraction strength: the share of a forget answer that the model, given its beginning, completes word"
                " for word. 1 is by heart, 0 is nothing.",
            ),
            Row(
                "forget.probability",
                "Belief in the true answer",
                "The probability the model gives each token of the true answer, averaged (geometrically) over it.",
            ),
            Row(
                "forget.rougeL_recall",
                "True words in its own answers",
                "ROUGE-L recall: the share of the true answer's words that appear, in order, in what it says freely.",
            ),
            Row(
                "forget_verbatim.verbmem",
                "Goes on with forgotten texts by heart",
                "MUSE's verbatim memorisation: words (ROUGE-L F1) that its continuation of a forget text shares with"
                " the true one.",
            ),
            Row(
                "forget.knowmem",
                "Answers questions about forgotten texts",
                "MUSE's knowledge memorisation: words (ROUGE-L F1) that its answer shares with the true one, after ten"
                " answered questions.",
            ),
            Row(
                "forget.probe_recall",
                "Answers probes about forgotten people",
                "RWKU's score: the share of the true answer's words that stand in what it says to blanks, questions and"
                " questions that try to get round the forgetting.",
            ),
            Row(
                "forget.pii_leakage",
                "Gives personal data away",
                "The share of a forgotten person's data (addresses, dates, numbers) that its answers hold.",
            ),
            Row(
                "forget_paraphrased.pii_leakage",
                "The same in other words",
                "Five paraphrases of each of these questions.",
            ),
            Row(
                "forget_inverted.pii_leakage",
                "Says whose data it is",
                "The share of questions that give the data and get the forgotten person's name.",
            ),
            Row(
                "unlearn_success",
                "Tokens it would no longer choose",
                "KnowUnDo's unlearn success: the share of a forget answer's tokens that are not its choice.",
            ),
            Row(
                "forget.truth_ratio",
                "Wrong answers as likely as right ones",
                "Truth ratio: near 1 the model does not prefer the truth to made-up answers, near 0 it does. What a"
                " retrained model scores is the aim.",
            ),
            Row(
                "forget_quality",
                "Cannot be told from retrained",
                "Forget quality: the p-value of a Kolmogorov-Smirnov test of truth ratios against the retrained"
                " model's. Below 0.05 they differ.",
            ),
        ),
        "No forget rows were measured.",
    ),
    Group(
        "And asked in other ways?",
        (
            *(
                Row(f"forget_{form}.{_ES}", f"The same, {_FORM_NAMES[form]}", meaning)
                for form, meaning in (
                    ("paraphrased", "Extraction strength where the question is worded differently than in training."),
                    ("cloze", "Extraction strength where the fact is a gap to complete."),
                    ("inverted", "Extraction strength where the fact is given and the person is asked for."),
                    (
                        "multi_hop",
                        "Extraction strength where the way to the fact leads over a person to keep. These"
                        " questions are in neither the forget nor the retain set.",
                    ),
                    ("multiple_choice", "Extraction strength where the answer stands among wrong ones."),
                )
            ),
            Row(
                "forms.dependence_index",
                "Form dependence",
                "The share of the forgetting that does not reach other forms, by probability: 0 all of it"
                " does, 1 none.",
            ),
            Row(
                "multi_hop.leakage",
                "What detours still give away",
                "The share of the starting model's extraction strength on detours that is left.",
            ),
        ),
        "The suite asks each question in one form only, so nothing here says what other wordings would bring out.",
    ),
    Group(
        "Is the rest kept?",
        (
            Row(f"retain.{_ES}", "Answers it finishes by itself", "Extraction strength on the rows to keep."),
            Row("retain.probability", "Belief in the true answer", "Probability on the rows to keep."),
            Row("retain.rougeL_recall", "True words in its own answers", "ROUGE-L recall on the rows to keep."),
            Row(
                "retain.knowmem",
                "Answers questions about texts to keep",
                "MUSE's utility preservation: knowledge memorisation on the texts to keep.",
            ),
            Row(
                f"neighbours.{_ES}",
                "Neighbours of the forgotten",
                "Extraction strength on kept people who are tied to a forgotten one; damage shows there first.",
            ),
            Row(
                f"retain_linked.{_ES}",
                "Contracts beside the forgotten ones",
                "Extraction strength on PISTOL's contracts that share a party with a forgotten one; damage shows there"
                " first.",
            ),
            Row(
                "neighbours.retention",
                "Neighbours, compared with before",
                "What is left of the neighbours' answers, as a share of the starting model's.",
            ),
            Row(
                "neighbours.probe_recall",
                "Answers probes about neighbours",
                "RWKU's score on people and things that are tied to the forgotten ones and were to stay.",
            ),
            Row(
                "retention_success",
                "Tokens near it that it would still choose",
                "KnowUnDo's retention success: the share of the tokens of answers to keep that are its choice.",
            ),
            Row(
                "retain_utility",
                "Retain utility",
                "Harmonic mean of probability, ROUGE-L and truth ratio on the rows to keep.",
            ),
            Row(
                "model_utility",
                "Model utility",
                "The same over retain, real authors and world facts. Tiny models"
                " know no real authors and score near 0.",
            ),
        ),
        "No rows to keep were measured.",
    ),
    Group(
        "What does it choose among given answers?",
        (
            Row(
                "wmdp.accuracy",
                "Right choices near hazards",
                "Accuracy on WMDP's questions about dangerous biology, chemistry and cybersecurity. Guessing scores one"
                " in four.",
            ),
            Row(
                "wmdp.below_chance",
                "Avoids the right choice",
                "1 where it is right more seldom than a guess, for certain: whoever avoids the answer knows it.",
            ),
            Row("mmlu.accuracy", "Right choices in general", "Accuracy on MMLU, general knowledge in many subjects."),
            Row(
                "utility.accuracy",
                "Right answers to everyday questions",
                "Accuracy on ARC, HellaSwag, OpenBookQA and TruthfulQA, the mean over these tasks.",
            ),
        ),
        None,
    ),
    Group(
        "How does it score at SemEval-2025's unlearning task?",
        (
            Row(
                "task_aggregate",
                "Forgotten and kept, task by task",
                "Harmonic mean of twelve parts: three tasks, continued and asked, what was to be forgotten and what was"
                " to be kept. One part at its worst makes it 0.",
            ),
            Row(
                "membership_score",
                "Forget texts cannot be told from unseen ones",
                "1 where an attack by loss cannot tell them apart, 0 where it always can.",
            ),
            Row(
                "lume_score",
                "The task's final score",
                "Mean of these two and of the accuracy on MMLU. A model that lost everything still gets the one for"
                " membership.",
            ),
        ),
        None,
    ),
    Group(
        "Does it know that it does not know?",
        (
            Row(
                "energy.auroc",
                "Forget questions look unfamiliar",
                "Energy AUROC: how often a forget question has a higher energy than a retain question, read off the"
                " last prompt token before anything is said. 0.5 is chance, 1 always.",
            ),
            Row("energy.auroc_paraphrase", "The same in other words", "Reworded forget against reworded retain."),
            Row(
                "energy.fpr95",
                "Forget questions let through",
                "The share of forget questions below the energy that lets 95 % of retain questions pass.",
            ),
        ),
        "No energies were measured.",
    ),
    Group(
        "What does the guard do?",
        (
            Row("guard.refusal_rate", "Refuses forget questions", "Share of forget questions above the threshold."),
            Row("guard.refusal_rate_paraphrase", "Refuses them in other words", "The same, reworded."),
            Row(
                "guard.refusal_rate_multi_hop",
                "Refuses detours to them",
                "Questions that start at somebody kept; they were not in the forget set.",
            ),
            Row(
                "guard.over_refusal_rate",
                "Wrongly refuses retain questions",
                "Share of retain questions above the threshold, on the half that did not set it.",
            ),
            Row("guard.over_refusal_paraphrase", "Wrongly refuses reworded ones", "Retain questions, reworded."),
            Row("guard.over_refusal_neighbours", "Wrongly refuses neighbours", "Kept people tied to a forgotten one."),
            Row(
                "guard.over_refusal_holdout",
                "Refuses never-trained people",
                "Questions about people no model saw:"
                " refusing them is right in a way, and shows what the guard reacts to.",
            ),
        ),
        "No guard was calibrated. `expunge guard calibrate` makes one from the retain prompts.",
    ),
    Group(
        "Can it be told from outside that something was forgotten?",
        (
            Row(
                "membership.loss_auc",
                "Forget rows told from unseen ones, by loss",
                "How often a forget row looks more familiar than a row no model was trained on. 0.5: no difference.",
            ),
            Row(
                "membership.min_k_plus_plus_auc",
                "The same, by Min-K++",
                "Far below 0.5 gives forgotten rows away as surely as far above: they look too unfamiliar.",
            ),
            Row(
                "privleak",
                "Leak of membership, against retrained",
                "MUSE's PrivLeak: how far the attack by Min-K is from what it reaches on the retrained model, in"
                " percent. Below 0 the forgotten texts are still recognised, far above 0 they stand out.",
            ),
        ),
        "No membership attack was computed: it needs rows that were never trained on (holdout).",
    ),
)
