"""`lm2 score`: scores BABILong predictions, with intervals and baselines, and compares models on the same samples."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.terminal import table_console

if TYPE_CHECKING:
    from rich.table import Table

    from lm2.eval.babilong import Cell, Comparison
    from lm2.eval.predictions import Prediction

# How `lm2 reproduce` names a model and its seed.
_SEED = re.compile(r"-seed\d+$")
# Wide enough for a row of all lengths where the output is no terminal that would say its width.
_PLAIN_WIDTH = 250


def score(
    files: Annotated[
        list[Path],
        typer.Argument(help="Prediction files: .jsonl of this project, .csv of the BABILong repository, or folders."),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(help="Dataset that was asked, a folder or an official name: its rows must be the predictions'."),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Score only these tasks, such as qa1,qa2.")] = None,
    lengths: Annotated[str | None, typer.Option(help="Score only these lengths, such as 4k,8k.")] = None,
    metric: Annotated[str, typer.Option(help="Metric to print: exact, official or substring.")] = "exact",
    baseline: Annotated[
        str | None, typer.Option(help="Compare each other model with this one, on the same samples.")
    ] = None,
    pool_seeds: Annotated[
        bool,
        typer.Option(
            "--pool-seeds",
            help="Compare over seeds: NAME-seed0 and NAME-seed1 are NAME, which --baseline names.",
        ),
    ] = False,
    model: Annotated[str | None, typer.Option(help="Model of the .csv files; else the name of their folder.")] = None,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the scores by all metrics to this file, for `lm2 tables babilong`."),
    ] = None,
) -> None:
    """Score BABILong predictions: accuracy with 95% intervals, n and chance per cell, averages, paired comparisons."""
    score_files(files, dataset, tasks, lengths, metric, baseline, pool_seeds, model, json_path)


def score_files(
    files: list[Path],
    dataset: str | None = None,
    tasks: str | None = None,
    lengths: str | None = None,
    metric: str = "exact",
    baseline: str | None = None,
    pool_seeds: bool = False,
    model: str | None = None,
    json_path: Path | None = None,
    models: Mapping[str, Any] | None = None,
) -> None:
    """What `score` does with its options; `models` tells the file of scores about models (lm2.eval.scores_json)."""
    from lm2.data.lengths import parse_lengths
    from lm2.eval.babilong import Scores, score_cells
    from lm2.eval.metrics import METRICS, check_metric, check_task
    from lm2.eval.predictions import check_against_dataset, find_prediction_files, read_predictions
    from lm2.eval.scores_json import write_scores

    check_metric(metric)
    task_names = None if tasks is None else [name.strip() for name in tasks.split(",")]
    for name in task_names or ():
        check_task(name)
    length_names = None if lengths is None else parse_lengths(lengths)
    paths = find_prediction_files(files)
    _check_output(json_path, paths)
    rows = read_predictions(paths, model)
    for field, names in (("task", task_names), ("length", length_names)):
        rows = rows if names is None else _select(rows, field, names)
    if dataset is not None:
        check_against_dataset(rows, dataset)
    sides = _sides(rows, pool_seeds)
    _check_pooling(sides, baseline, pool_seeds)
    pairs = _pair_sides(sides, baseline)

    scores = Scores(
        cells=score_cells(rows),
        comparisons=tuple(_compare(sides, ours, theirs, name) for ours, theirs in pairs for name in METRICS),
        settings={
            "files": [str(path) for path in paths],
            "dataset": dataset,
            "models": dict(models or {}),
            "interval": "Wilson 95% per cell, paired bootstrap 95% for comparisons",
        },
    )
    if json_path is not None:
        write_scores(json_path, scores)
    _print_scores(scores.cells, scores.comparisons, metric)


def _check_output(path: Path | None, inputs: list[Path]) -> None:
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"--json is {path}, but that is a folder: name a file")
    if path.resolve() in {source.resolve() for source in inputs}:
        raise ValueError(f"--json is {path}, but that is one of the prediction files")


_Side = tuple[str, str]


def _sides(rows: list["Prediction"], pool_seeds: bool) -> "dict[_Side, dict[str, list[Prediction]]]":
    """What can be compared: by name and prompt, the predictions of each model that goes by the name."""
    sides: dict[_Side, dict[str, list[Prediction]]] = {}
    for row in rows:
        name = _SEED.sub("", row.model) if pool_seeds else row.model
        sides.setdefault((name, row.prompt), {}).setdefault(row.model, []).append(row)
    return sides


def _check_pooling(sides: "Mapping[_Side, Mapping[str, object]]", baseline: str | None, pool_seeds: bool) -> None:
    if not pool_seeds:
        return
    if baseline is None:
        raise ValueError("--pool-seeds changes what is compared, but nothing is: name a --baseline")
    if all(len(models) == 1 for models in sides.values()):
        names = ", ".join(sorted({name for models in sides.values() for name in models}))
        raise ValueError(
            f"--pool-seeds needs a model with several seeds, named as NAME-seed0 and NAME-seed1; the files hold {names}"
        )


def _pair_sides(sides: Iterable[_Side], baseline: str | None) -> list[tuple[_Side, _Side]]:
    """Which (name, prompt) is compared with which: the same prompt where the baseline has it, else its only one."""
    if baseline is None:
        return []
    ordered = sorted(sides)
    prompts = [prompt for name, prompt in ordered if name == baseline]
    others = [side for side in ordered if side[0] != baseline]
    if not prompts or not others:
        names = ", ".join(sorted({name for name, _ in ordered}))
        raise ValueError(f"--baseline is {baseline!r}, but the files must hold it and another model; they hold {names}")
    pairs = []
    for name, prompt in others:
        if prompt not in prompts and len(prompts) > 1:
            raise ValueError(
                f"model {name!r} has the prompt {prompt}, the baseline {baseline!r} has not, but several others "
                f"({', '.join(prompts)}): give files of one of them"
            )
        pairs.append(((name, prompt), (baseline, prompt if prompt in prompts else prompts[0])))
    return pairs


def _compare(
    sides: "Mapping[_Side, Mapping[str, list[Prediction]]]", ours: _Side, theirs: _Side, metric: str
) -> "Comparison":
    from lm2.eval.compare import compare_over_seeds

    own, other = ([*sides[side].values()] for side in (ours, theirs))
    return compare_over_seeds(ours[0], own, theirs[0], other, metric)


def _select(rows: list["Prediction"], name: str, wanted: Iterable[str]) -> list["Prediction"]:
    """The rows whose task, or length, is one of those wanted, all of which must occur."""
    present = {getattr(row, name) for row in rows}
    if absent := [value for value in wanted if value not in present]:
        raise ValueError(f"no prediction has the {name} {absent[0]}, there are only {', '.join(sorted(present))}")
    return [row for row in rows if getattr(row, name) in wanted]


def _print_scores(cells: tuple["Cell", ...], comparisons: tuple["Comparison", ...], metric: str) -> None:
    console = table_console(_PLAIN_WIDTH)
    for run in dict.fromkeys((cell.model, cell.prompt) for cell in cells):
        own = [cell for cell in cells if (cell.model, cell.prompt) == run]
        console.print(_grid(own, metric))
        table, notes = _averages(own)
        console.print(table)
        for note in notes:
            console.print(note, highlight=False, soft_wrap=True)
    if comparisons:
        console.print(_comparison_table(comparisons))
    console.print(
        "Accuracies in percent, with Wilson 95% intervals. majority: the best constant answer to a cell under this "
        "metric. random: a uniform guess over the task's labels. *: the interval reaches down to that. "
        "-: a cell that the average needs is missing.",
        highlight=False,
        soft_wrap=True,
    )


def _lengths(cells: list["Cell"]) -> list[str]:
    from lm2.data.lengths import context_tokens

    return sorted({cell.length for cell in cells}, key=context_tokens)


def _tasks(cells: list["Cell"]) -> list[str]:
    from lm2.eval.babilong import task_order

    return sorted({cell.task for cell in cells}, key=task_order)


def _grid(cells: list["Cell"], metric: str) -> "Table":
    """Task x length of one model with one prompt."""
    from rich.table import Table

    from lm2.eval.babilong import average

    first = cells[0]
    table = Table(title=f"{first.model}, prompt {first.prompt}: {metric}", title_justify="left")
    lengths = _lengths(cells)
    for column in ("task", *lengths, "mean", "n", "majority", "random"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in _tasks(cells):
        row = {cell.length: cell for cell in cells if cell.task == task}
        scores = [cell.metrics[metric] for cell in row.values()]
        mean = average(cells, metric, first.model, first.prompt, [task], lengths).accuracy
        table.add_row(
            task,
            *(_cell_text(row[length], metric) if length in row else "" for length in lengths),
            _percent(mean),
            _range([cell.n for cell in row.values()], "{:d}"),
            _range([100 * score.majority for score in scores], "{:.1f}"),
            _range([100 * score.random for score in scores], "{:.1f}"),
        )
    return table


def _cell_text(cell: "Cell", metric: str) -> str:
    score = cell.metrics[metric]
    mark = "*" if score.low <= score.majority else ""
    return f"{_percent(score.accuracy)}{mark}\n{_percent(score.low)}-{_percent(score.high)}"


def _averages(cells: list["Cell"]) -> tuple["Table", list[str]]:
    """Averages over groups of tasks by each metric, and what they lack."""
    from rich.table import Table

    from lm2.eval.babilong import TASK_GROUPS, average
    from lm2.eval.metrics import METRICS

    model, prompt, lengths, tasks = cells[0].model, cells[0].prompt, _lengths(cells), _tasks(cells)
    groups = {name: group for name, group in TASK_GROUPS.items() if set(group) <= set(tasks)}
    if tuple(tasks) not in groups.values():
        groups["all tasks here" if len(tasks) > 1 else tasks[0]] = tuple(tasks)
    table = Table(title=f"{model}, prompt {prompt}: averages", title_justify="left")
    for column in ("tasks", "metric", *lengths, "all lengths"):
        table.add_column(column, justify="left" if column in ("tasks", "metric") else "right")
    notes = []
    for name, group in groups.items():
        for metric in METRICS:
            spans = [*([length] for length in lengths), lengths]
            means = [average(cells, metric, model, prompt, group, span) for span in spans]
            table.add_row(name, metric, *(_percent(mean.accuracy) for mean in means))
        if missing := means[-1].missing:
            notes.append(f"{name} lacks " + ", ".join(f"{task} at {length}" for task, length in missing))
    return table, notes


def _comparison_table(comparisons: tuple["Comparison", ...]) -> "Table":
    from rich.table import Table

    table = Table(title="Paired comparisons: macro averages over cells, 95% bootstrap intervals", title_justify="left")
    for column in ("model", "baseline", "metric", "cells", "n", "model's", "baseline's", "difference", "ratio"):
        table.add_column(column, justify="left" if column in ("model", "baseline", "metric") else "right")
    for item in comparisons:
        gap, ratio = item.difference, item.ratio
        table.add_row(
            *item.names,
            item.metric,
            str(len(item.cells)),
            str(item.n),
            _percent(item.mean),
            _percent(item.baseline_mean),
            f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]",
            "none" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _range(values: list[int] | list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}-{high}"
