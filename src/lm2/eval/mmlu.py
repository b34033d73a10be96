"""MMLU (Hendrycks et al. 2021) by groups of subjects, as Table 2 of the LM2 paper has it.

Every subject is in two groups of that table: one of the benchmark's four categories, and one of four levels, which its
name says. The paper's "Average" is the mean of these eight overlapping groups, as its printed numbers show.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Four choices.
CHANCE = 0.25

_STEM, _HUMANITIES, _SOCIAL, _OTHERS = CATEGORIES = ("STEM", "Humanities", "Social Sciences", "Others")
_GENERAL = "General Knowledge"
LEVELS = ("High School", "College", "Professional", _GENERAL)
ALL, PAPER_AVERAGE = "All questions", "Average (of the eight)"

# The benchmark's own categories.
_SUBJECTS = {
    _STEM: (
        "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science "
        "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
        "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
        "high_school_mathematics high_school_physics high_school_statistics machine_learning"
    ),
    _HUMANITIES: (
        "formal_logic high_school_european_history high_school_us_history high_school_world_history "
        "international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory "
        "professional_law world_religions"
    ),
    _SOCIAL: (
        "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
        "high_school_microeconomics high_school_psychology human_sexuality professional_psychology "
        "public_relations security_studies sociology us_foreign_policy"
    ),
    _OTHERS: (
        "business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
        "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"
    ),
}
CATEGORY_OF = {subject: category for category, names in _SUBJECTS.items() for subject in names.split()}

# Table 2 of arXiv 2502.06049, percent.
PAPER_PERCENT = {
    "vanilla Llama (paper)": (27.2, 28.7, 29.2, 27.7, 28.8, 27.7, 27.5, 27.2, 28.0),
    "RMT (paper)": (25.7, 26.7, 27.0, 27.1, 26.5, 27.1, 26.6, 25.6, 26.5),
    "LM2 (paper)": (28.1, 32.2, 31.6, 28.0, 30.4, 29.0, 27.6, 28.5, 29.4),
}
PAPER_ROWS = (*CATEGORIES, *LEVELS, PAPER_AVERAGE)


@dataclass(frozen=True)
class SubjectScore:
    """One subject.

    Attributes:
        subject: Its name, such as "college_physics".
        accuracy: Share of right answers.
        n: Questions.
    """

    subject: str
    accuracy: float
    n: int


@dataclass(frozen=True)
class GroupScore:
    """Some subjects together.

    Attributes:
        group: Its name.
        num_subjects: Of it that were asked.
        num_missing: Of it that were not.
        n: Questions.
        accuracy: Share of right answers.
        standard_error: Of `accuracy`, as questions were drawn.
    """

    group: str
    num_subjects: int
    num_missing: int
    n: int
    accuracy: float
    standard_error: float

    @property
    def is_at_chance(self) -> bool:
        """Whether a 95% interval reaches down to guessing."""
        return self.accuracy - 1.96 * self.standard_error <= CHANCE


def level_of(subject: str) -> str:
    """The level that a subject's name says, such as "College"; General Knowledge where it says none."""
    for level in LEVELS:
        if subject.startswith(f"{level.lower().replace(' ', '_')}_"):
            return level
    return _GENERAL


def subject_scores(document: Mapping[str, Any]) -> list[SubjectScore]:
    """The subjects in results of `lm2 eval harness`; tasks are named as theirs, after any prefix such as "mmlu_".

    Raises:
        ValueError: a subject is there twice, its accuracy is missing, or there is none.
    """
    found: dict[str, SubjectScore] = {}
    for task, metrics in document["results"].items():
        subject = next((name for name in CATEGORY_OF if task == name or task.endswith(f"_{name}")), None)
        if subject is None:
            continue
        accuracy = next((value for key, value in metrics.items() if key.split(",")[0] == "acc"), None)
        if accuracy is None:
            raise ValueError(f"task {task!r} has no accuracy (acc); choose MMLU's tasks of multiple choice")
        if subject in found:
            raise ValueError(f"subject {subject!r} is there twice; run one version of MMLU's tasks")
        found[subject] = SubjectScore(subject, float(accuracy), int(document["n-samples"][task]["effective"]))
    if not found:
        raise ValueError("no task of MMLU is in the results; run lm2 eval harness MODEL --tasks mmlu --out FILE")
    return [found[subject] for subject in CATEGORY_OF if subject in found]


def group_scores(scores: Sequence[SubjectScore]) -> list[GroupScore]:
    """The rows of Table 2, those without any subject left out, and all questions together.

    A group's accuracy counts every question once. Subjects are the strata of its standard error.
    """
    groups = {name: [one for one in scores if CATEGORY_OF[one.subject] == name] for name in CATEGORIES}
    groups |= {name: [one for one in scores if level_of(one.subject) == name] for name in LEVELS}
    rows = [_together(name, _weights(members), members) for name, members in groups.items() if members]
    shares = [_weights(members) for members in groups.values() if members]
    mean = {one.subject: math.fsum(share.get(one.subject, 0.0) for share in shares) / len(shares) for one in scores}
    return [*rows, _together(PAPER_AVERAGE, mean, scores), _together(ALL, _weights(scores), scores)]


def _weights(members: Sequence[SubjectScore]) -> dict[str, float]:
    """The share of a group's questions that each subject has."""
    total = sum(one.n for one in members)
    return {one.subject: one.n / total for one in members}


def _together(group: str, weights: Mapping[str, float], members: Sequence[SubjectScore]) -> GroupScore:
    wanted = [
        subject
        for subject, category in CATEGORY_OF.items()
        if group in (ALL, PAPER_AVERAGE, category, level_of(subject))
    ]
    variance = math.fsum(weights[one.subject] ** 2 * one.accuracy * (1 - one.accuracy) / one.n for one in members)
    return GroupScore(
        group,
        len(members),
        len(wanted) - len(members),
        sum(one.n for one in members),
        math.fsum(weights[one.subject] * one.accuracy for one in members),
        math.sqrt(variance),
    )
