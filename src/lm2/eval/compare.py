"""Two models on the same samples: whether one is better, and by how much, with a paired bootstrap."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

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
    return _compare_runs([_by_sample(rows)], [_by_sample(baseline_rows)], metric, resamples, seed)


def compare_over_seeds(
    model: str,
    runs: Sequence[Iterable[Prediction]],
    baseline: str,
    baseline_runs: Sequence[Iterable[Prediction]],
    metric: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares two models that were trained with several seeds each; every run answered the same samples.

    As `compare`, but a sample counts as the share of a side's runs that are right, so it is drawn with the answers of
    all runs at once: their answers to one sample are not independent. The interval is of other samples for these
    runs; two or three seeds cannot tell what further seeds would bring.

    Args:
        model: What the comparison calls the model.
        runs: For each of its seeds the predictions with one prompt, the same for all.
        baseline: What the comparison calls the other.
        baseline_runs: Those of the other.
        metric: One of METRICS.
        resamples: Bootstrap resamples, at least 1000.
        seed: Seed of the resamples.

    Raises:
        ValueError: as `compare`, between any two runs; the runs of a side differ in their prompt; a side has none.
    """
    sides = [[*map(_by_sample, side)] for side in (runs, baseline_runs)]
    for name, side in zip((model, baseline), sides, strict=True):
        prompts = {prompt for (_, prompt), _ in side}
        if len(prompts) != 1:
            found_prompts = ", ".join(sorted(prompts)) or "none, as it has no runs"
            raise ValueError(f"the runs of {name!r} must have one prompt, but they have {found_prompts}")
    found = _compare_runs(sides[0], sides[1], metric, resamples, seed)
    return replace(found, model=model, baseline=baseline)


def mean_over_seeds(
    runs: Sequence[Iterable[Prediction]], metric: str, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """A model's macro average over cells, with the interval that `compare_over_seeds` has for a difference.

    Args:
        runs: For each of its seeds the predictions, all of the same samples.
        metric: One of METRICS.
        resamples: Bootstrap resamples, at least 1000.
        seed: Seed of the resamples.

    Raises:
        ValueError: as `compare_over_seeds`.
    """
    counts = list(_count_outcomes([*map(_by_sample, runs)], [], metric).values())
    [mean] = _macro_mean([count[None] for count in counts], _OURS)
    return _estimate(float(mean), _macro_mean(_resample(counts, resamples, seed), _OURS))


_Side = tuple[tuple[str, str], dict[_Key, Prediction]]


def _compare_runs(ours: list[_Side], theirs: list[_Side], metric: str, resamples: int, seed: int) -> Comparison:
    outcomes = _count_outcomes(ours, theirs, metric)
    counts = list(outcomes.values())
    observed, drawn = [count[None] for count in counts], _resample(counts, resamples, seed)
    (mean, means), (baseline_mean, baseline_means) = (
        (float(_macro_mean(observed, side)[0]), _macro_mean(drawn, side)) for side in (_OURS, _THEIRS)
    )
    ratio = None
    if baseline_mean > 0 and baseline_means.all():
        ratio = _estimate(mean / baseline_mean, means / baseline_means)
    (model, prompt), (baseline, baseline_prompt) = ours[0][0], theirs[0][0]
    return Comparison(
        model=model,
        baseline=baseline,
        metric=metric,
        prompt=prompt,
        baseline_prompt=baseline_prompt,
        cells=tuple(outcomes),
        n=len(ours[0][1]),
        mean=mean,
        baseline_mean=baseline_mean,
        difference=_estimate(mean - baseline_mean, means - baseline_means),
        ratio=ratio,
        resamples=resamples,
        seed=seed,
        num_runs=len(ours),
        num_baseline_runs=len(theirs),
    )


# Of a table of outcomes: how many of our runs are right about a sample, and how many of theirs.
_OURS, _THEIRS = 1, 2


def _count_outcomes(ours: list[_Side], theirs: list[_Side], metric: str) -> dict[tuple[str, str], NDArray[np.int64]]:
    """By cell in order, for how many samples so many of our runs are right (rows), and so many of theirs (columns)."""
    check_metric(metric)
    for (one_run, one), (other_run, other) in combinations((*ours, *theirs), 2):
        _check_pairs(one, other, _run_name(*one_run), _run_name(*other_run))
    right = METRICS[metric]
    outcomes: defaultdict[tuple[str, str], NDArray[np.int64]]
    outcomes = defaultdict(lambda: np.zeros((len(ours) + 1, len(theirs) + 1), np.int64))
    for key, row in ours[0][1].items():
        num_right, num_baseline_right = (
            sum(right(row.target, answers[key].output, row.question, row.task) for _, answers in side)
            for side in (ours, theirs)
        )
        outcomes[row.task, row.length][num_right, num_baseline_right] += 1
    cells = sorted(outcomes, key=lambda cell: (task_order(cell[0]), context_tokens(cell[1])))
    return {cell: outcomes[cell] for cell in cells}


def _resample(counts: list[NDArray[np.int64]], resamples: int, seed: int) -> list[NDArray[np.int64]]:
    """Each cell's table of outcomes, drawn again so many times: [resamples, rows, columns]."""
    if resamples < 1000:
        raise ValueError(f"resamples is {resamples}, but must be at least 1000 for a 95% interval")
    rng = np.random.default_rng(seed)
    return [
        rng.multinomial(count.sum(), count.ravel() / count.sum(), size=resamples).reshape(-1, *count.shape)
        for count in counts
    ]


def _macro_mean(tables: list[NDArray[np.int64]], side: int) -> NDArray[np.float64]:
    """Means over cells of the accuracy of one side, for each draw of the tables of outcomes."""
    other = _OURS + _THEIRS - side
    return np.asarray(np.mean([_share(table.sum(axis=other)) for table in tables], axis=0))


def _share(samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Accuracy from how many samples 0, 1, ... runs are right about, along the last axis."""
    return samples @ np.arange(samples.shape[-1]) / (samples.sum(axis=-1) * (samples.shape[-1] - 1))


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _by_sample(rows: Iterable[Prediction]) -> _Side:
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
