"""Which model of `lm2 reproduce` is better: means over tasks, and the leader against each other model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm2.cli.reproduce_entries import BySeed, Entry
from lm2.data.lengths import context_tokens

if TYPE_CHECKING:
    from lm2.eval.babilong import Comparison, Estimate
    from lm2.eval.predictions import Prediction
    from lm2.eval.report import Block

    Rows = Mapping[str, Sequence[Prediction]]

METRIC = "exact"
_ALL_LENGTHS = "all"


@dataclass(frozen=True)
class MeanAccuracy:
    """A model's mean over tasks at one length, or at all that it was asked at; all its seeds together.

    Attributes:
        model: Its name.
        tasks: Name of the group of tasks.
        length: Of the contexts; "all" for the mean over lengths, each counting the same.
        mean: Share of right answers with its interval.
    """

    model: str
    tasks: str
    length: str
    mean: "Estimate"


@dataclass(frozen=True)
class Compared:
    """A comparison, and of what: the name of a group of tasks, and of lengths."""

    tasks: str
    lengths: str
    found: "Comparison"


def read_rows(folder: Path, by_seed: BySeed) -> "Rows":
    """What all entries have answered, by their run."""
    from lm2.eval.predictions import find_prediction_files, read_predictions

    return {
        entry.run_name: read_predictions(find_prediction_files([entry.results(folder) / "predictions"]))
        for entries in by_seed.values()
        for entry in entries
    }


def mean_accuracies(rows: "Rows", by_seed: BySeed) -> list[MeanAccuracy]:
    """Of every model over each group of tasks, at each length that it was asked at and over all of them."""
    from lm2.eval.compare import mean_over_seeds

    means = []
    for seeds in zip(*by_seed.values(), strict=True):
        runs = [rows[entry.run_name] for entry in seeds]
        lengths = _lengths(runs[0])
        for name, tasks in _task_groups(runs[0]).items():
            for length, wanted in {**{length: [length] for length in lengths}, _ALL_LENGTHS: lengths}.items():
                asked = [[row for row in run if row.task in tasks and row.length in wanted] for run in runs]
                means.append(MeanAccuracy(seeds[0].name, name, length, mean_over_seeds(asked, METRIC)))
    return means


def compare_all(rows: "Rows", by_seed: BySeed, longest: int) -> list[Compared]:
    """Leader against each other model, on the questions that both were asked.

    Over all seeds: within the lengths of training, beyond them, over all lengths and at each. For each of several
    seeds the first three. For each group of tasks.

    Args:
        rows: From `read_rows`.
        by_seed: What is compared for each seed, the leader first.
        longest: Tokens of the longest samples in training.
    """
    from lm2.eval.compare import compare_over_seeds

    together = [[*by_seed.values()]] if len(by_seed) > 1 else []
    found = []
    for group in (*together, *([entries] for entries in by_seed.values())):
        leader, *others = zip(*group, strict=True)
        for other in others:
            ours, theirs = (side[0].name if len(group) > 1 else side[0].run_name for side in (leader, other))
            sides = _asked_of_both(rows, leader, other)
            spans = _spans(_lengths(sides[0][0]), longest, each=len(group) == len(by_seed))
            for name, tasks in _task_groups(sides[0][0]).items():
                for span, lengths in spans.items():
                    runs, rival_runs = (
                        [[row for row in run if row.task in tasks and row.length in lengths] for run in side]
                        for side in sides
                    )
                    found.append(Compared(name, span, compare_over_seeds(ours, runs, theirs, rival_runs, METRIC)))
    return found


def compared_blocks(means: Sequence[MeanAccuracy], comparisons: Sequence[Compared]) -> "list[Block]":
    """The part of the report on which is better."""
    from lm2.eval.report import Heading, Table, Text

    columns = [*sorted({each.length for each in means} - {_ALL_LENGTHS}, key=context_tokens), _ALL_LENGTHS]
    cells = {(each.model, each.tasks, each.length): each.mean for each in means}
    rows = [
        [model, tasks, *(_share(cells.get((model, tasks, length))) for length in columns)]
        for model, tasks in dict.fromkeys((each.model, each.tasks) for each in means)
    ]
    return [
        Heading("Means over tasks"),
        Text(
            "Percent, all seeds together, with a 95% interval of the bootstrap; every task and length counts the same, "
            'and "all" is of the lengths that the model was asked at.'
        ),
        Table(["model", "tasks", *columns], rows),
        Heading("Which is better"),
        Text(
            "Means over tasks and lengths in percent, their difference in points and their ratio, with 95% intervals "
            "of the paired bootstrap, on the questions that both were asked; the difference is real where the interval "
            "leaves out 0. Intervals are of other questions for these models, not of other seeds."
        ),
        Table(
            ["model", "against", "tasks", "lengths", "questions", "model", "other", "difference", "ratio"],
            [_compared_row(each) for each in comparisons],
        ),
    ]


def _compared_row(each: Compared) -> list[str]:
    found, gap, ratio = each.found, each.found.difference, each.found.ratio
    return [
        *found.names,
        each.tasks,
        each.lengths,
        str(found.n),
        f"{100 * found.mean:.1f}",
        f"{100 * found.baseline_mean:.1f}",
        f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})",
        "-" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
    ]


def _share(mean: "Estimate | None") -> str:
    return "-" if mean is None else f"{100 * mean.value:.1f} ({100 * mean.low:.1f}-{100 * mean.high:.1f})"


def _asked_of_both(rows: "Rows", leader: Sequence[Entry], other: Sequence[Entry]) -> "list[list[list[Prediction]]]":
    """What both sides' runs have answered of the questions that both were asked; one side may have been asked less."""
    sides = [[rows[entry.run_name] for entry in side] for side in (leader, other)]
    ours, theirs = ({(row.task, row.length, row.index) for row in side[0]} for side in sides)
    common = ours & theirs
    return [[[row for row in run if (row.task, row.length, row.index) in common] for run in side] for side in sides]


def _lengths(rows: "Sequence[Prediction]") -> list[str]:
    return sorted({row.length for row in rows}, key=context_tokens)


def _spans(lengths: list[str], longest: int, each: bool) -> dict[str, list[str]]:
    """Groups of lengths that are not empty, by their name; those of the same lengths are told once."""
    spans = {
        "within training lengths": [length for length in lengths if context_tokens(length) <= longest],
        "beyond": [length for length in lengths if context_tokens(length) > longest],
        _ALL_LENGTHS: lengths,
        **({length: [length] for length in lengths} if each else {}),
    }
    told: dict[str, list[str]] = {}
    for name, group in spans.items():
        if group and group not in told.values():
            told[name] = group
    return told


def _task_groups(rows: "Sequence[Prediction]") -> dict[str, tuple[str, ...]]:
    """All tasks, and the first five where there are more; by their name."""
    from lm2.eval.babilong import TASK_GROUPS, task_order

    tasks = tuple(sorted({row.task for row in rows}, key=task_order))
    groups = {"qa1-5": TASK_GROUPS["qa1-5"]} if set(TASK_GROUPS["qa1-5"]) < set(tasks) else {}
    names = {group: name for name, group in TASK_GROUPS.items()}
    return {names.get(tasks, ", ".join(tasks)): tasks, **groups}
