"""The report of `lm2 reproduce`, from the files of its runs."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm2.eval.babilong import Comparison
    from lm2.eval.grids import Grid
    from lm2.eval.report import Block
    from lm2.train.config import Recipe

    BySeed = Mapping[int, Sequence[Recipe]]
    Repeated = dict[str, list[Grid]]

_METRIC = "exact"
_MIB = 2**20


def write_report(folder: Path, by_seed: "BySeed", command: str) -> dict[str, Any]:
    """Writes report.md, report.json, report.html and their pictures.

    Args:
        folder: The job's.
        by_seed: For each seed the recipes, the leader first; all runs are trained and evaluated.
        command: That makes the job again.

    Returns:
        What is in report.json.
    """
    from lm2.data.files import write_whole
    from lm2.eval.report import to_html, to_markdown

    longest = longest_in_training(next(iter(by_seed.values()))[0])
    grids = _grids(folder, by_seed)
    facts = {run.name: _run_facts(folder / run.name, rival) for run, rival in _runs(folder, by_seed)}
    _check_same_stream(by_seed, facts)
    comparisons = _compare(folder, by_seed, longest)
    report: dict[str, Any] = {
        "kind": "lm2-report",
        "version": 1,
        "command": command,
        "commit": _commit(),
        "machine": _machine(),
        "longest_in_training_tokens": longest,
        "metric": _METRIC,
        "accuracy": {
            model: [
                {"task": task, "length": length, "seeds": [grid.cells[task, length].accuracy for grid in repetitions]}
                for task, length in repetitions[0].cells
            ]
            for model, repetitions in grids.items()
        },
        "comparisons": [{"lengths": name, **asdict(comparison)} for name, comparison in comparisons],
        "runs": facts,
    }
    pictures = _draw(folder, by_seed, grids, longest)
    blocks = _blocks(report, grids, comparisons, pictures)
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


def longest_in_training(recipe: "Recipe") -> int:
    """Tokens of the longest samples that a recipe trains on."""
    segment = recipe.data.segment_length_tokens or 0
    return max(
        stage.segments.max * segment if stage.segments is not None else max(stage.lengths_tokens or (0,))
        for stage in recipe.curriculum
    )


def _runs(folder: Path, by_seed: "BySeed") -> "list[tuple[Path, Recipe]]":
    from lm2.cli.reproduce import run_name

    return [(folder / run_name(rival), rival) for rivals in by_seed.values() for rival in rivals]


def _grids(folder: Path, by_seed: "BySeed") -> "Repeated":
    from lm2.eval.grids import grids_of_scores
    from lm2.eval.scores_json import read_scores

    grids: Repeated = {}
    for run, rival in _runs(folder, by_seed):
        [grid] = grids_of_scores([read_scores(run / "eval" / "scores.json")], _METRIC)
        grids.setdefault(rival.name, []).append(grid)
    return grids


def _run_facts(run: Path, rival: "Recipe") -> dict[str, Any]:
    import torch

    from lm2.cli.build_model import build_model
    from lm2.cli.run_logs import read_run_log
    from lm2.data.tokenizer import load_tokenizer

    log = read_run_log(run)
    last = [row for row in log if row["kind"] == "train"][-1]
    validations = [row for row in log if row["kind"] == "validation"]
    with torch.device("meta"):
        parameters = build_model(rival.model, load_tokenizer(rival.data.tokenizer), 0).num_parameters()
    return {
        "recipe": rival.name,
        "seed": rival.seed,
        "parameters": parameters,
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "peak_memory_bytes": last["memory_bytes"],
        "validation_accuracy": validations[-1]["accuracy"] if validations else None,
        "stages": _stages(log, last["step"]),
    }


def _stages(log: list[dict[str, Any]], total_steps: int) -> list[dict[str, Any]]:
    """Each stage with its steps and its last accuracy."""
    order = list(dict.fromkeys(row["stage"] for row in log if row["kind"] in ("train", "validation")))
    ends = [*(row["step"] for row in log if row.get("event") == "stage"), total_steps]
    last = {row["stage"]: row["accuracy"] for row in log if row["kind"] == "validation"}
    gave_up = {row["stage"] for row in log if row.get("event") == "gave up"}
    return [
        {"name": name, "last_step": end, "accuracy": last.get(name), "gave_up": name in gave_up}
        for name, end in zip(order, ends, strict=True)
    ]


def _check_same_stream(by_seed: "BySeed", facts: Mapping[str, Mapping[str, Any]]) -> None:
    from lm2.cli.reproduce import run_name

    for rivals in by_seed.values():
        read = {(facts[run_name(rival)]["steps"], facts[run_name(rival)]["tokens"]) for rival in rivals}
        assert len(read) == 1, f"rivals read the same tokens in the same steps: {read}"


def _compare(folder: Path, by_seed: "BySeed", longest: int) -> "list[tuple[str, Comparison]]":
    """Leader against each other model, for each seed, within the lengths of training and beyond."""
    from lm2.cli.reproduce import run_name
    from lm2.data.lengths import context_tokens
    from lm2.eval.compare import compare
    from lm2.eval.predictions import find_prediction_files, read_predictions

    found = []
    for leader, *others in by_seed.values():
        rows = {
            rival.name: read_predictions(find_prediction_files([folder / run_name(rival) / "eval" / "predictions"]))
            for rival in (leader, *others)
        }
        for other in others:
            for name, is_beyond in (("within training lengths", False), ("beyond", True)):
                ours, theirs = (
                    [row for row in rows[model] if (context_tokens(row.length) > longest) == is_beyond]
                    for model in (leader.name, other.name)
                )
                if ours:
                    found.append((name, compare(ours, theirs, _METRIC)))
    return found


def _draw(folder: Path, by_seed: "BySeed", grids: "Repeated", longest: int) -> dict[str, str]:
    """Draws all pictures; returns their names and what they show."""
    from lm2.cli.run_logs import read_run_log
    from lm2.eval.figures import draw_heat_table, draw_radar, plan_radar, save_figure
    from lm2.eval.report_figures import draw_lengths, draw_training

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
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for run, rival in _runs(folder, by_seed):
        curves.setdefault(rival.name, []).append(_curve(read_run_log(run)))
    drawn["training.png"] = draw_training(curves), f"Accuracy of {models} in validation over the tokens of training."
    drawn["heat.png"] = draw_heat_table(every), "Accuracy of every run by task and length; the tables have the numbers."
    if plan_radar(every).grids:
        drawn["radar.png"] = draw_radar(every), "Accuracy of every run by kind of reasoning."
    for name, (figure, _) in drawn.items():
        save_figure(figure, folder / name)
    return {name: alt for name, (_, alt) in drawn.items()}


def _curve(log: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(tokens, accuracy) of each validation; tokens are those of the last line of training before it."""
    tokens, points = 0, []
    for row in log:
        if row["kind"] == "train":
            tokens = row["tokens"]
        elif row["kind"] == "validation":
            points.append((float(tokens), float(row["accuracy"])))
    return points


def _blocks(
    report: Mapping[str, Any],
    grids: "Repeated",
    comparisons: "list[tuple[str, Comparison]]",
    pictures: Mapping[str, str],
) -> "list[Block]":
    from lm2.eval.report import Command, Heading, Picture, Table, Text

    models = list(grids)
    runs = report["runs"]
    num_seeds = len(grids[models[0]])
    n = next(iter(grids[models[0]][0].cells.values())).n
    columns, rows = _accuracy_table(report)
    return [
        Heading(f"{models[0]} against {', '.join(models[1:])}" if models[1:] else models[0], 1),
        Text(
            "All models have read the same tokens in the same steps and answered the same questions. Trained on "
            f"samples of up to {report['longest_in_training_tokens']:,} tokens; every length is BABILong's, asked {n} "
            f"times for each of {num_seeds} seeds (exact match)."
        ),
        Command(report["command"]),
        Text(f"Commit {report['commit']}; {report['machine']}."),
        Heading("Accuracy"),
        Text("Percent, mean over seeds; in brackets the lowest and the highest seed."),
        Table(columns, rows),
        *(Picture(name, alt) for name, alt in pictures.items() if name.startswith("accuracy")),
        Heading("Which is better"),
        Text(
            "Mean over tasks and lengths, in percentage points, with a 95% interval of the paired bootstrap; the "
            "difference is real where the interval leaves out 0."
        ),
        Table(
            ["model", "against", "lengths", "model", "other", "difference", "95% interval"],
            [
                [
                    found.model,
                    found.baseline,
                    lengths,
                    _percent(found.mean),
                    _percent(found.baseline_mean),
                    f"{100 * found.difference.value:+.1f}",
                    f"{100 * found.difference.low:+.1f} to {100 * found.difference.high:+.1f}",
                ]
                for lengths, found in comparisons
            ],
        ),
        Heading("Training"),
        Text("Times and speeds are ratios to the first model with the same seed: seconds of one machine tell little."),
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
        *(Picture(name, alt) for name, alt in pictures.items() if name in ("heat.png", "radar.png")),
    ]


def _accuracy_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    accuracy = report["accuracy"]
    first = next(iter(accuracy.values()))
    tasks = list(dict.fromkeys(cell["task"] for cell in first))
    lengths = list(dict.fromkeys(cell["length"] for cell in first))
    rows = []
    for model, cells in accuracy.items():
        seeds = {(cell["task"], cell["length"]): cell["seeds"] for cell in cells}
        rows += [[model, task, *(_spread(seeds[task, length]) for length in lengths)] for task in tasks]
    return ["model", "task", *lengths], rows


def _spread(shares: Sequence[float]) -> str:
    mean = _percent(fmean(shares))
    return mean if len(shares) == 1 else f"{mean} ({_percent(min(shares))}-{_percent(max(shares))})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _training_row(name: str, runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    run = runs[name]
    leader = next(other for other in runs.values() if other["seed"] == run["seed"])
    validated = run["validation_accuracy"]
    return [
        name,
        f"{run['parameters']:,}",
        f"{run['steps']:,}",
        f"{run['tokens']:,}",
        f"{run['seconds'] / leader['seconds']:.2f}",
        f"{run['peak_memory_bytes'] / _MIB:,.0f}",
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


def _commit() -> str:
    """The commit of this package's source tree; "+changes" where files differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "not recorded"


def _machine() -> str:
    import torch

    from lm2.cli.jobs import available_cores

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{available_cores()} CPU cores"
    return f"{platform.system()} {platform.machine()}, {device}, torch {torch.__version__}"
