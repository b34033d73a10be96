"""Two models on the same samples: whether one is better, and by how much, with a paired bootstrap."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lm2.data.lengths import context_tokens
from lm2.eval.babilong import Comparison, Estimate, task_order
from lm2.eval.metrics import METRICS, check_metric
from lm2.eval.predictions import Prediction

RESAMPLES = 10_000

_Key = tuple[str, str, int]


def compare(
    rows: Iterable[Prediction],
    baseline_rows: Iterable[Prediction],
    metric: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares a model with a baseline that answered the same samples.

    The samples of each cell are drawn again with replacement, both models' answers to a sample together (paired
    bootstrap, Efron and Tibshirani 1993; cells are strata), and the macro averages over cells taken of each resample.
    The intervals are the 2.5% and 97.5% quantiles. Drawing n of n samples is one multinomial draw of how many are right
    in both, in one or in neither model, so a resample costs the same at any n.

    Args:
        rows: Predictions of one model with one prompt.
        baseline_rows: Predictions of the other, or of another prompt.
        metric: One of METRICS.
        resamples: Bootstrap resamples, at least 1000.
        seed: Seed of the resamples.

    Raises:
        ValueError: the samples differ in task, length, index, question or target; rows of several models or prompts;
            samples whose lengths different tokenizers have counted; no rows; a bad number.
    """
    check_metric(metric)
    if resamples < 1000:
        raise ValueError(f"resamples is {resamples}, but must be at least 1000 for a 95% interval")
    (model, prompt), ours = _by_sample(rows)
    (baseline, baseline_prompt), theirs = _by_sample(baseline_rows)
    _check_pairs(ours, theirs, _run_name(model, prompt), _run_name(baseline, baseline_prompt))

    right = METRICS[metric]
    # Per cell: how many samples are right in neither, in the baseline only, in the model only, in both.
    outcomes: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for (task, length, index), row in ours.items():
        answers = (row.output, theirs[task, length, index].output)
        is_right, is_baseline_right = (right(row.target, answer, row.question, task) for answer in answers)
        outcomes[task, length][2 * is_right + is_baseline_right] += 1

    cells = tuple(sorted(outcomes, key=lambda cell: (task_order(cell[0]), context_tokens(cell[1]))))
    counts = [np.array(outcomes[cell]) for cell in cells]
    rng = np.random.default_rng(seed)
    draws = [rng.multinomial(count.sum(), count / count.sum(), size=resamples) for count in counts]
    mean, baseline_mean = (float(means[0]) for means in _macro_means([count[None] for count in counts]))
    means, baseline_means = _macro_means(draws)
    ratio = None
    if baseline_mean > 0 and baseline_means.all():
        ratio = _estimate(mean / baseline_mean, means / baseline_means)
    return Comparison(
        model=model,
        baseline=baseline,
        metric=metric,
        prompt=prompt,
        baseline_prompt=baseline_prompt,
        cells=cells,
        n=len(ours),
        mean=mean,
        baseline_mean=baseline_mean,
        difference=_estimate(mean - baseline_mean, means - baseline_means),
        ratio=ratio,
        resamples=resamples,
        seed=seed,
    )


def _macro_means(draws: list[NDArray[np.int64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over cells of the model's and the baseline's accuracy, for each row of outcomes."""
    ours = [(draw[:, 2] + draw[:, 3]) / draw.sum(axis=1) for draw in draws]
    theirs = [(draw[:, 1] + draw[:, 3]) / draw.sum(axis=1) for draw in draws]
    return np.mean(ours, axis=0), np.mean(theirs, axis=0)


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _by_sample(rows: Iterable[Prediction]) -> tuple[tuple[str, str], dict[_Key, Prediction]]:
    samples: dict[_Key, Prediction] = {}
    runs: set[tuple[str, str]] = set()
    for row in rows:
        key = (row.task, row.length, row.index)
        if key in samples:
            raise ValueError(f"{_sample_name(key)} of model {row.model!r} is there twice")
        samples[key] = row
        runs.add((row.model, row.prompt))
    if len(runs) != 1:
        names = ", ".join(_run_name(*run) for run in sorted(runs)) or "none"
        raise ValueError(f"a side of a comparison is one model with one prompt, but it has {names}")
    return runs.pop(), samples


def _check_pairs(ours: dict[_Key, Prediction], theirs: dict[_Key, Prediction], name: str, other: str) -> None:
    for here, there, owner, lacking in ((ours, theirs, name, other), (theirs, ours, other, name)):
        if only := sorted(here.keys() - there.keys()):
            raise ValueError(
                f"{owner} has {_sample_name(only[0])}, {lacking} does not ({len(only)} such samples): compare models "
                f"on the same samples only"
            )
    for key, row in ours.items():
        counted_by = {row.lengths_counted_by, theirs[key].lengths_counted_by} - {None}
        # Without background a sample is the same whoever counts.
        if len(counted_by) > 1 and context_tokens(row.length):
            raise ValueError(
                f"{name} and {other} have different tokenizers, and each counted the lengths of its own samples: they "
                "read different texts. Make samples once (lm2 data babilong) and ask both with --dataset"
            )
        for what in ("question", "target"):
            value, other_value = getattr(row, what), getattr(theirs[key], what)
            if value != other_value:
                raise ValueError(
                    f"{_sample_name(key)}: the {what} is {value!r} in {name}, but {other_value!r} in {other}: the "
                    f"predictions are of different datasets"
                )


def _sample_name(key: _Key) -> str:
    return f"{key[0]} at {key[1]}, row {key[2]}"


def _run_name(model: str, prompt: str) -> str:
    return f"{model!r} (prompt {prompt})"
