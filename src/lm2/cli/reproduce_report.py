"""The report of `lm2 reproduce`, from the files of its runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lm2.cli.reproduce_compare import (
    METRIC,
    Compared,
    MeanAccuracy,
    compare_all,
    compared_blocks,
    mean_accuracies,
    read_rows,
)
from lm2.cli.reproduce_cost import cost_blocks, cost_facts, longest_in_training
from lm2.cli.reproduce_entries import BySeed

if TYPE_CHECKING:
    from lm2.eval.grids import Grid, GridCell
    from lm2.eval.report import Block
    from lm2.eval.report_figures import Curve
    from lm2.train.config import Recipe

    Repeated = dict[str, list[Grid]]

_MIB = 2**20


def write_report(folder: Path, by_seed: BySeed, command: str, own_stages: bool) -> dict[str, Any]:
    """Writes report.md, report.json, report.html and their pictures.

    Args:
        folder: The job's.
        by_seed: What is compared for each seed, the leader first; all is trained, evaluated and measured.
        command: That makes the job again.
        own_stages: Whether each model ended its stages itself, and so may have read other tokens in its steps.

    Returns:
        What is in report.json.
    """
    from lm2.data.files import write_whole
    from lm2.eval.report import to_html, to_markdown

    entries = [entry for of_seed in by_seed.values() for entry in of_seed]
    longest = longest_in_training(entries[0].recipe)
    grids = _grids(folder, by_seed)
    facts = {
        entry.run_name: _run_facts(folder / entry.run_name, entry.recipe) for entry in entries if not entry.retrieves
    }
    costs = cost_facts(folder, by_seed, facts)
    _check_same_stream(by_seed, facts, own_stages)
    rows = read_rows(folder, by_seed)
    means, comparisons = mean_accuracies(rows, by_seed), compare_all(rows, by_seed, longest)
    report: dict[str, Any] = {
        "kind": "lm2-report",
        "version": 2,
        "command": command,
        "own_stages": own_stages,
        "counted_in": entries[0].recipe.schedule.unit,
        "longest_in_training_tokens": longest,
        "metric": METRIC,
        "accuracy": {
            model: [
                _cell(task, length, [grid.cells[task, length] for grid in repetitions])
                for task, length in repetitions[0].cells
            ]
            for model, repetitions in grids.items()
        },
        "means": [asdict(mean) for mean in means],
        "comparisons": [{"tasks": each.tasks, "lengths": each.lengths, **asdict(each.found)} for each in comparisons],
        "runs": facts,
        "costs": costs,
        "retrieval": {entry.run_name: _retrieval(entry.results(folder)) for entry in entries if entry.retrieves},
    }
    pictures = _draw(folder, by_seed, grids, report)
    blocks = _blocks(report, grids, means, comparisons, pictures)
    texts = {
        "report.json": json.dumps(report, indent=2) + "\n",
        "report.md": to_markdown(blocks),
        "report.html": to_html(blocks, folder),
    }
    for name, text in texts.items():
        with write_whole(folder / name) as file:
            file.write(text)
    return report


def print_summary(report: Mapping[str, Any], folder: Path) -> None:
    """Prints accuracies by model, task and length, and where the report is."""
    from rich.table import Table

    from lm2.cli.terminal import table_console

    columns, rows = _accuracy_table(report)
    table = Table(title="exact match in %, mean over seeds", title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number > 1 else "left")
    for row in rows:
        table.add_row(*row)
    table_console(plain_width=160).print(table)
    print(f"the report is in {folder / 'report.html'}")


def _grids(folder: Path, by_seed: BySeed) -> "Repeated":
    from lm2.eval.grids import grids_of_scores
    from lm2.eval.scores_json import read_scores

    grids: Repeated = {}
    for entries in by_seed.values():
        for entry in entries:
            [grid] = grids_of_scores([read_scores(entry.results(folder) / "scores.json")], METRIC)
            grids.setdefault(entry.name, []).append(grid)
    return grids


def _run_facts(run: Path, rival: "Recipe") -> dict[str, Any]:
    from lm2.cli.provenance import read_record
    from lm2.cli.run_logs import read_run_log

    log, record = read_run_log(run), read_record(run / "model")
    assert record is not None, "a trained model has its record"
    validations = [row for row in log if row["kind"] == "validation"]
    kept = ("recipe", "seed", "commit", "machine", "parameters", "steps", "tokens", "seconds")
    return {
        **{key: record[key] for key in kept},
        # The most so far, which starts anew where a run goes on.
        "peak_memory_bytes": max((row["memory_bytes"] for row in log if row["kind"] == "train"), default=None),
        "validation_accuracy": validations[-1]["accuracy"] if validations else None,
        "stages": _stages(log, [stage.name for stage in rival.curriculum], record["steps"]),
    }


def _stages(log: list[dict[str, Any]], names: list[str], total_steps: int) -> list[dict[str, Any]]:
    """Each stage with its steps and its last accuracy."""
    ends = [*(row["step"] for row in log if row.get("event") == "stage"), total_steps]
    last = {row["stage"]: row["accuracy"] for row in log if row["kind"] == "validation"}
    gave_up = {row["stage"] for row in log if row.get("event") == "gave up"}
    return [
        {"name": name, "last_step": end, "accuracy": last.get(name), "gave_up": name in gave_up}
        for name, end in zip(names, ends, strict=True)
    ]


def _retrieval(results: Path) -> list[dict[str, Any]]:
    """How much of the supporting facts retrieval has found, by task and length."""
    cells: list[dict[str, Any]] = json.loads((results / "retrieval.json").read_text("utf-8"))["cells"]
    return cells


def _check_same_stream(by_seed: BySeed, facts: Mapping[str, Mapping[str, Any]], own_stages: bool) -> None:
    for entries in by_seed.values():
        trained = [(facts[entry.run_name], entry.recipe.schedule) for entry in entries if not entry.retrieves]
        for run, schedule in trained:
            assert schedule.done(run["steps"], run["tokens"]) >= schedule.total, f"a run went to its end: {run}"
        read = {(run["steps"], run["tokens"]) for run, _ in trained}
        assert own_stages or len(read) == 1, f"rivals read the same tokens in the same steps: {read}"


def _draw(folder: Path, by_seed: BySeed, grids: "Repeated", report: Mapping[str, Any]) -> dict[str, str]:
    """Draws all pictures; returns their names and what they show."""
    from lm2.cli.run_logs import read_run_log
    from lm2.eval.figures import draw_heat_table, draw_radar, plan_radar, save_figure
    from lm2.eval.report_figures import draw_cost, draw_lengths, draw_training

    facts, longest = report["runs"], report["longest_in_training_tokens"]
    every = [grid for repetitions in grids.values() for grid in repetitions]
    tasks = every[0].tasks
    models = " and ".join(grids)
    drawn = {
        f"accuracy-{task}.png": (
            draw_lengths(grids, task, longest),
            f"Accuracy of {models} on {task} against length; the tables have the numbers.",
        )
        for task in tasks
    }
    curves: dict[str, list[Curve]] = {}
    for entry in (entry for entries in by_seed.values() for entry in entries if not entry.retrieves):
        run = facts[entry.run_name]
        curve = _curve(read_run_log(folder / entry.run_name), run["steps"], run["tokens"])
        curves.setdefault(entry.name, []).append(curve)
    points = {
        model: [
            (row["length"], row["flops"], _mean_accuracy(report["accuracy"][model], row["length"]))
            for row in cost["reading"]
        ]
        for model, cost in report["costs"].items()
    }
    drawn["cost.png"] = draw_cost(points), f"Accuracy of {models} against the operations of reading; tables have both."
    drawn["training.png"] = (
        draw_training(curves),
        f"Accuracy in validation and loss of {' and '.join(curves)} over the tokens of training.",
    )
    drawn["heat.png"] = draw_heat_table(every), "Accuracy of every run by task and length; the tables have the numbers."
    if plan_radar(every).grids:
        drawn["radar.png"] = draw_radar(every), "Accuracy of every run by kind of reasoning."
    for name, (figure, _) in drawn.items():
        save_figure(figure, folder / name)
    return {name: alt for name, (_, alt) in drawn.items()}


def _mean_accuracy(cells: Sequence[Mapping[str, Any]], length: str) -> float:
    """Over tasks and seeds."""
    return fmean(fmean(cell["seeds"]) for cell in cells if cell["length"] == length)


def _curve(log: list[dict[str, Any]], steps: int, tokens: int) -> "Curve":
    """What is drawn of a run; tokens between the steps that were logged are interpolated."""
    import numpy as np

    from lm2.eval.report_figures import Curve

    train = [row for row in log if row["kind"] == "train"]
    validations = [row for row in log if row["kind"] == "validation"]
    before = [row for row in train if row["step"] < steps]
    read = np.interp(
        [row["step"] for row in validations],
        [0, *(row["step"] for row in before), steps],
        [0, *(row["tokens"] for row in before), tokens],
    ).tolist()
    following = [row["stage"] for row in validations[1:]]
    return Curve(
        accuracy=[(count, row["accuracy"]) for count, row in zip(read, validations, strict=True)],
        loss=[(float(row["tokens"]), row["loss"]) for row in train],
        stage_ends=[
            place
            for place, (row, after) in enumerate(zip(validations, [*following, None], strict=True))
            if row["stage"] != after
        ],
    )


def _blocks(
    report: Mapping[str, Any],
    grids: "Repeated",
    means: Sequence[MeanAccuracy],
    comparisons: Sequence[Compared],
    pictures: Mapping[str, str],
) -> "list[Block]":
    from lm2.eval.report import Command, Heading, Picture, Table, Text

    models = list(grids)
    runs = report["runs"]
    num_seeds = len(grids[models[0]])
    columns, rows = _accuracy_table(report)
    return [
        Heading(f"{models[0]} against {', '.join(models[1:])}" if models[1:] else models[0], 1),
        Text(_how_trained(report["own_stages"], report["counted_in"])),
        Text(
            f"Trained on samples of up to {report['longest_in_training_tokens']:,} tokens; every length is BABILong's, "
            f"{_how_often(grids[models[0]][0])} for each of {num_seeds} seeds (exact match)."
        ),
        Command(report["command"]),
        *(Text(text) for text in _origins(runs)),
        Heading("Accuracy"),
        Text(
            "Percent, mean over seeds; in brackets the lowest and the highest seed. A constant answer is the best one "
            "to each cell; a random one is drawn from the labels of the task. The intervals of every run are below."
        ),
        Table(columns, rows),
        *(Picture(name, alt) for name, alt in pictures.items() if name.startswith("accuracy")),
        *compared_blocks(means, comparisons),
        *_retrieval_blocks(report["retrieval"]),
        *cost_blocks(report["costs"], pictures),
        Heading("Training"),
        Text(
            "Times are ratios to the first model with the same seed. Runs may have shared the machine with one "
            "another, so they are a hint only."
        ),
        Table(
            ["run", "parameters", "steps", "tokens", "time", "peak memory, MiB", "validation"],
            [_training_row(name, runs) for name in runs],
        ),
        Picture("training.png", pictures["training.png"]),
        Heading("Stages"),
        Text(
            "The step at which each ended, and the accuracy there; * where it ended by its most steps, below its aim."
        ),
        _stage_table(runs),
        Heading("Every run"),
        Text("Percent with Wilson's 95% interval; * not above the best constant answer, which lies in the interval."),
        _run_table(grids),
        *(Picture(name, alt) for name, alt in pictures.items() if name in ("heat.png", "radar.png")),
    ]


def _how_trained(own_stages: bool, unit: str) -> str:
    if not own_stages:
        return "All models have read the same tokens in the same steps and answered the same questions."
    differ = "steps that they took" if unit == "tokens" else "tokens that they have read"
    return (
        f"All models were trained for as many {unit} and answered the same questions. Each went from stage to stage of "
        f"the curriculum when it was ready itself, so the {differ} differ."
    )


def _how_often(grid: "Grid") -> str:
    """How many questions of a task were asked at each length."""
    numbers = {length: grid.cells[task, length].n for task, length in grid.cells}
    if len(set(numbers.values())) == 1:
        return f"asked {next(iter(numbers.values()))} times"
    return f"asked {', '.join(f'{number} times at {length}' for length, number in numbers.items())}"


def _retrieval_blocks(retrieval: "Mapping[str, Sequence[Mapping[str, Any]]]") -> "list[Block]":
    from lm2.eval.report import Heading, Table, Text

    if not retrieval:
        return []
    lengths = list(dict.fromkeys(cell["length"] for cells in retrieval.values() for cell in cells))
    rows = []
    for name, cells in retrieval.items():
        found = {(cell["task"], cell["length"]): cell["support_recall"] for cell in cells}
        for task in dict.fromkeys(cell["task"] for cell in cells):
            shares = [found[task, length] for length in lengths]
            rows.append([name, task, *("-" if share is None else _percent(share) for share in shares)])
    return [
        Heading("Retrieval"),
        Text("Percent of the supporting facts that were among the sentences that retrieval found."),
        Table(["run", "task", *lengths], rows),
    ]


def _accuracy_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    accuracy = report["accuracy"]
    first = next(iter(accuracy.values()))
    tasks = list(dict.fromkeys(cell["task"] for cell in first))
    lengths = list(dict.fromkeys(cell["length"] for cell in first))
    rows = []
    for model, cells in accuracy.items():
        seeds = {(cell["task"], cell["length"]): cell["seeds"] for cell in cells}
        rows += [[model, task, *(_spread(seeds.get((task, length), ())) for length in lengths)] for task in tasks]
    # The leader's questions, of which others may have been asked fewer.
    chance = {(cell["task"], cell["length"]): cell for cell in first}
    for name, key in (("constant answer", "majority"), ("random answer", "random")):
        rows += [[name, task, *(_percent(chance[task, length][key]) for length in lengths)] for task in tasks]
    return ["model", "task", *lengths], rows


def _cell(task: str, length: str, cells: "Sequence[GridCell]") -> dict[str, Any]:
    """One task and length of all seeds, as report.json has it."""
    return {
        "task": task,
        "length": length,
        "n": cells[0].n,
        "seeds": [cell.accuracy for cell in cells],
        "intervals": [[cell.low, cell.high] for cell in cells],
        "majority": cells[0].majority,
        "random": cells[0].random,
    }


def _run_table(grids: "Repeated") -> "Block":
    from lm2.eval.report import Table

    every = [grid for repetitions in grids.values() for grid in repetitions]
    lengths = every[0].lengths
    rows = [
        [grid.label, task, *(_with_interval(grid.cells.get((task, length))) for length in lengths)]
        for grid in every
        for task in grid.tasks
    ]
    return Table(["run", "task", *lengths], rows)


def _with_interval(cell: "GridCell | None") -> str:
    if cell is None:
        return "-"
    assert cell.low is not None, "our cells have intervals"
    assert cell.high is not None, "our cells have intervals"
    return f"{_percent(cell.accuracy)}{'*' if cell.is_at_chance else ''} ({_percent(cell.low)}-{_percent(cell.high)})"


def _origins(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where runs were trained, those together that have it in common."""
    same: dict[tuple[str, str], list[str]] = {}
    for name, run in runs.items():
        same.setdefault((run["commit"], run["machine"]), []).append(name)
    return [
        f"Commit {commit}; {machine}{'' if len(same) == 1 else ': ' + ', '.join(names)}."
        for (commit, machine), names in same.items()
    ]


def _spread(shares: Sequence[float]) -> str:
    if not shares:
        return "-"
    mean = _percent(fmean(shares))
    return mean if len(shares) == 1 else f"{mean} ({_percent(min(shares))}-{_percent(max(shares))})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _training_row(name: str, runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    run = runs[name]
    leader = next(other for other in runs.values() if other["seed"] == run["seed"])
    validated, memory = run["validation_accuracy"], run["peak_memory_bytes"]
    return [
        name,
        f"{run['parameters']:,}",
        f"{run['steps']:,}",
        f"{run['tokens']:,}",
        f"{run['seconds'] / leader['seconds']:.2f}",
        "-" if memory is None else f"{memory / _MIB:,.0f}",
        "-" if validated is None else _percent(validated),
    ]


def _stage_table(runs: Mapping[str, Mapping[str, Any]]) -> "Block":
    from lm2.eval.report import Table

    names = [stage["name"] for stage in next(iter(runs.values()))["stages"]]
    rows = []
    for run, facts in runs.items():
        cells = []
        for stage in facts["stages"]:
            reached = "-" if stage["accuracy"] is None else _percent(stage["accuracy"])
            cells.append(f"{stage['last_step']}: {reached}{'*' if stage['gave_up'] else ''}")
        rows.append([run, *cells])
    return Table(["run", *names], rows)
