"""Scores of BABILong predictions: one cell per model, task, length and prompt, with intervals and baselines; averages.

All accuracies are shares between 0 and 1. lm2.eval.compare compares two models; lm2.eval.scores_json is the file form.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from lm2.data.lengths import context_tokens
from lm2.eval.metrics import METRICS, TASK_LABELS, check_metric, check_task
from lm2.eval.predictions import Prediction

# Groups of tasks that averages are taken over. qa7 can be left out, because two of the three metrics fail on it: "one"
# lies inside "none" (see lm2.eval.metrics).
TASK_GROUPS: dict[str, tuple[str, ...]] = {
    "qa1-5": tuple(f"qa{number}" for number in range(1, 6)),
    "qa1-10": tuple(f"qa{number}" for number in range(1, 11)),
    "qa1-10 without qa7": tuple(f"qa{number}" for number in range(1, 11) if number != 7),
}

# Quantile of the normal distribution for a two-sided 95% interval.
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class MetricScore:
    """One cell under one metric.

    Attributes:
        right: Samples counted as right.
        accuracy: right / n.
        low: Lower end of the Wilson 95% interval of the accuracy.
        high: Upper end.
        majority_answer: The one answer that scores best under this metric when it is given to every sample of the cell.
            Under exact match that is the most frequent target.
        majority: Accuracy of that answer.
        random: Expected accuracy of a guess drawn uniformly from the labels of the task.
    """

    right: int
    accuracy: float
    low: float
    high: float
    majority_answer: str
    majority: float
    random: float


@dataclass(frozen=True)
class Cell:
    """All samples of one model, task ("qa1"), length ("4k") and prompt ("plain", or flags as in official file names).

    `metrics` has one entry for each name in METRICS.
    """

    model: str
    task: str
    length: str
    prompt: str
    n: int
    metrics: dict[str, MetricScore]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same samples: macro averages over cells, and their difference and ratio, paired bootstrap.

    Attributes:
        model: The model that is compared.
        baseline: The model it is compared with.
        metric: One of METRICS.
        prompt: Prompt of `model`.
        baseline_prompt: Prompt of `baseline`.
        cells: (task, length) of the cells compared, all of them in both models.
        n: Samples compared.
        mean: Macro average of `model` over the cells, each cell counting the same.
        baseline_mean: The same of `baseline`.
        difference: mean - baseline_mean.
        ratio: mean / baseline_mean, or None where a resample had a baseline of 0, so that no interval exists.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples.
        num_runs: Runs of `model`, such as seeds; a sample counts as the share of them that are right.
        num_baseline_runs: Runs of `baseline`.
    """

    model: str
    baseline: str
    metric: str
    prompt: str
    baseline_prompt: str
    cells: tuple[tuple[str, str], ...]
    n: int
    mean: float
    baseline_mean: float
    difference: Estimate
    ratio: Estimate | None
    resamples: int
    seed: int
    num_runs: int = 1
    num_baseline_runs: int = 1

    @property
    def names(self) -> tuple[str, str]:
        """What tables call the two: with the number of runs where there are several."""
        sides = ((self.model, self.num_runs), (self.baseline, self.num_baseline_runs))
        ours, theirs = (name if runs == 1 else f"{name}, {runs} seeds" for name, runs in sides)
        return ours, theirs


@dataclass(frozen=True)
class Scores:
    """What `lm2 score` found out: cells in order of model, prompt, task and length; comparisons; settings."""

    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Average:
    """A macro average over a grid of cells, each cell counting the same.

    Attributes:
        accuracy: The mean, or None when a cell is missing: a mean over other cells is another quantity.
        accuracy_of_present: The mean over the cells that are there, or None when there is none. Show it only together
            with `missing`.
        num_cells: Cells that are there.
        missing: (task, length) of the cells that are not there.
    """

    accuracy: float | None
    accuracy_of_present: float | None
    num_cells: int
    missing: tuple[tuple[str, str], ...]


def task_order(task: str) -> int:
    """The number of a task, to sort by. Raises ValueError when there is no such task."""
    check_task(task)
    return int(task.removeprefix("qa"))


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927), which stays inside 0 to 1 and has width at 0 and n too.

    Raises:
        ValueError: `n` is not positive, or `right` is not 0 to n.
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"right is {right} of n = {n}, but n must be positive and right 0 to n")
    share, weight = right / n, _Z**2 / n
    centre = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    # At 0 and n the ends are 0 and 1, which rounding may miss.
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)


def score_cells(predictions: Iterable[Prediction]) -> tuple[Cell, ...]:
    """Scores predictions under all metrics, cell by cell."""
    groups: defaultdict[tuple[str, str, str, str], list[Prediction]] = defaultdict(list)
    for row in predictions:
        groups[row.model, row.prompt, row.task, row.length].append(row)

    def order(key: tuple[str, str, str, str]) -> tuple[str, str, int, int]:
        model, prompt, task, length = key
        return model, prompt, task_order(task), context_tokens(length)

    cells = []
    for key in sorted(groups, key=order):
        model, prompt, task, length = key
        metrics = {name: _score(groups[key], task, name) for name in METRICS}
        cells.append(Cell(model, task, length, prompt, len(groups[key]), metrics))
    return tuple(cells)


def _score(rows: list[Prediction], task: str, metric: str) -> MetricScore:
    is_right, n = METRICS[metric], len(rows)
    right = sum(is_right(row.target, row.output, row.question, task) for row in rows)
    # Many samples ask the same question with the same target, so a guess need not be scored once per sample.
    asked = Counter((row.target, row.question) for row in rows)
    targets, labels = sorted({row.target for row in rows}), TASK_LABELS[task]
    guesses = {
        guess: sum(count for (target, question), count in asked.items() if is_right(target, guess, question, task)) / n
        for guess in {*targets, *labels}
    }
    majority = max(targets, key=guesses.__getitem__)
    return MetricScore(
        right=right,
        accuracy=right / n,
        low=wilson_interval(right, n)[0],
        high=wilson_interval(right, n)[1],
        majority_answer=majority,
        majority=guesses[majority],
        random=math.fsum(guesses[label] for label in labels) / len(labels),
    )


def average(
    cells: Iterable[Cell], metric: str, model: str, prompt: str, tasks: Sequence[str], lengths: Sequence[str]
) -> Average:
    """Averages one model's accuracy over all of tasks x lengths, and says which cells are missing.

    Args:
        cells: Scored cells; those of other models and prompts are passed over.
        metric: One of METRICS.
        model: Name of the model.
        prompt: Name of its prompt.
        tasks: Such as TASK_GROUPS["qa1-5"], or one task.
        lengths: Such as ("8k", "16k").

    Raises:
        ValueError: unknown metric, task or length; none or one of them twice; no cell of that model and prompt.
    """
    check_metric(metric)
    for name, values, check in (("tasks", tasks, task_order), ("lengths", lengths, context_tokens)):
        if not values or len({check(value) for value in values}) < len(values):
            raise ValueError(f"{name} is {list(values)}, but must name at least one, and each once")
    found = {(cell.task, cell.length): cell for cell in cells if (cell.model, cell.prompt) == (model, prompt)}
    if not found:
        raise ValueError(f"there is no cell of model {model!r} with prompt {prompt!r}")
    return macro_average({key: cell.metrics[metric].accuracy for key, cell in found.items()}, tasks, lengths)


def macro_average(accuracies: Mapping[tuple[str, str], float], tasks: Sequence[str], lengths: Sequence[str]) -> Average:
    """Averages accuracies by (task, length) over all of tasks x lengths, and says which are missing."""
    wanted = [(task, length) for task in tasks for length in lengths]
    present = [accuracies[key] for key in wanted if key in accuracies]
    missing = tuple(key for key in wanted if key not in accuracies)
    mean = math.fsum(present) / len(present) if present else None
    return Average(None if missing else mean, mean, len(present), missing)
