"""Tables of BABILong accuracies: Markdown to read, CSV and JSON to compute with. The same input gives the same bytes.

All numbers in tables are percentages. What a table cannot show in full it says: missing cells, averages over fewer
cells, metrics that differ, values that were not published as such.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lm2.eval.babilong import Average, Comparison, Estimate
from lm2.eval.grids import Grid, GridCell, all_lengths, average_grid, common_lengths, groups_to_average
from lm2.eval.reference import PrintedTable, Reference

CELL_COLUMNS = (
    "model",
    "source",
    "metric",
    "training",
    "task",
    "length",
    "n",
    "accuracy_percent",
    "low_percent",
    "high_percent",
    "majority_percent",
    "random_percent",
    "is_at_chance",
    "is_back_computed",
)

# `accuracy_percent` is over the cells that are there; compare it only with averages over the same cells, which it is
# where num_missing is 0. Where no cell was published, but the mean was, num_cells is 0.
AVERAGE_COLUMNS = (
    "model",
    "source",
    "metric",
    "training",
    "tasks",
    "lengths",
    "accuracy_percent",
    "num_cells",
    "num_missing",
    "published_percent",
)

_METRIC_NAMES = {
    "exact": "exact match of the normalised answer",
    "official": "the label rule of the BABILong repository, with its faults",
    "substring": "the older substring rule of the BABILong authors, with its faults",
}

_LEGEND = """\
In brackets: Wilson 95% interval. `*`: not above the best constant answer, that is, the interval reaches down to it
(without an interval: the value does). `-`: no such cell. `(k of K)`: the average is over k cells where K are asked for,
so it is another quantity than one without this mark. `p`: mean as published, where cells are not. `~`: not published,
computed back from a published mean. majority: accuracy of the best constant answer to a cell. random: a uniform guess
over the task's labels."""

_REFERENCE_LEGEND = """\
Models with a source in brackets are published numbers: other scale, other training data, other samples, and a metric
that may be another or is not known. Their majority and random are those of bAbI's test files by exact match. By the
older substring rule the constant answer "none" gets 95.6 on qa7."""


@dataclass(frozen=True)
class TableSet:
    """What tables are made from.

    Attributes:
        grids: Models in the order shown.
        metric: Metric of our own models.
        comparisons: Paired comparisons of our models.
        references: Where published grids come from.
    """

    grids: tuple[Grid, ...]
    metric: str
    comparisons: tuple[Comparison, ...] = ()
    references: tuple[Reference, ...] = ()


def to_markdown(tables: TableSet) -> str:
    """All tables as one Markdown document."""
    grids = tables.grids
    parts = ["# BABILong accuracy", "Percent of answers that are right.\n" + _LEGEND]
    if any(grid.is_ours for grid in grids):
        parts.append(f"Metric of our models: **{tables.metric}**, {_METRIC_NAMES[tables.metric]}.")
    if tables.references:
        parts.append(_REFERENCE_LEGEND)
    parts += ["## Models", _models_table(grids)]
    for name, tasks in groups_to_average(grids).items():
        parts += [f"## Mean over {name}, by length", *_side_by_side(grids, name, tasks)]
    for grid in grids:
        if grid.cells:
            parts += [f"## {_escape(grid.label)}", *_grid_table(grid)]
    if comparisons := [item for item in tables.comparisons if item.metric == tables.metric]:
        parts += ["## Paired comparisons", *_comparison_table(comparisons)]
    for reference in tables.references:
        parts += [f"## Source: {reference.title}", f"{reference.source}, {reference.url}."]
        notes = [*reference.notes, *(f"{model.name}: {note}" for model in reference.models for note in model.notes)]
        if notes:
            parts.append("\n".join(f"- {note}" for note in notes))
        for table in reference.printed_tables:
            parts += [f"### {table.title}", *_printed_table(table)]
    return "\n\n".join(parts) + "\n"


def _models_table(grids: Sequence[Grid]) -> str:
    columns = ["model", "size", "metric", "training for the task", "prompt", "n per cell"]
    rows = [
        [grid.label, grid.parameters, grid.metric, grid.training, grid.prompt, f"{_range_of_n(grid)} ({grid.n_basis})"]
        for grid in grids
    ]
    return _markdown_table(columns, rows, num_text_columns=len(columns))


def _side_by_side(grids: Sequence[Grid], name: str, tasks: Sequence[str]) -> list[str]:
    """Means of all models by length, and over the lengths that models share."""
    lengths = all_lengths(grids)
    sharing, shared = common_lengths(grids, tasks)
    has_shared_column = len(sharing) > 1 and len(shared) > 1
    columns = ["model", "metric", *lengths, *(["shared lengths"] if has_shared_column else [])]
    rows = []
    for grid in grids:
        means = [_mean_text(average_grid(grid, tasks, [length]), _published(grid, name, length)) for length in lengths]
        if has_shared_column:
            means.append(_mean_text(average_grid(grid, tasks, shared)) if grid in sharing else "-")
        if set(means) != {"-"}:
            rows.append([grid.label, grid.metric, *means])
    parts = [_markdown_table(columns, rows, num_text_columns=2)]
    if has_shared_column:
        parts.append(f"Shared lengths: {', '.join(shared)}; models without the whole group at each of them have `-`.")
    return parts


def _grid_table(grid: Grid) -> list[str]:
    """Task x length of one model, and its averages."""
    lengths = [length for length in grid.lengths if any((task, length) in grid.cells for task in grid.tasks)]
    columns = ["task", *lengths, "mean", "n", "majority", "random"]
    rows = []
    for task in grid.tasks:
        row = [grid.cells.get((task, length)) for length in lengths]
        present = [cell for cell in row if cell is not None]
        rows.append(
            [
                task,
                *(_cell_text(cell) for cell in row),
                _mean_text(average_grid(grid, [task], lengths)),
                _range([cell.n for cell in present], "{:d}"),
                _range([100 * cell.majority for cell in present], "{:.1f}"),
                _range([100 * cell.random for cell in present], "{:.1f}"),
            ]
        )
    for name, tasks in groups_to_average([grid]).items():
        if len(tasks) > 1:
            spans = [*([length] for length in lengths), lengths]
            means = [_mean_text(average_grid(grid, tasks, span)) for span in spans]
            rows.append([f"mean {name}", *means, "", "", ""])
    metric = f"Metric: {grid.metric}. Training for the task: {grid.training}."
    return [metric, _markdown_table(columns, rows)]


def _comparison_table(comparisons: Sequence[Comparison]) -> list[str]:
    columns = ["model", "baseline", "metric", "cells", "n", "model's", "baseline's", "difference", "ratio"]
    rows = [
        [
            f"{item.names[0]} ({item.prompt})",
            f"{item.names[1]} ({item.baseline_prompt})",
            item.metric,
            str(len(item.cells)),
            str(item.n),
            f"{100 * item.mean:.1f}",
            f"{100 * item.baseline_mean:.1f}",
            _estimate_text(item.difference, 100, "{:+.1f}"),
            "none" if item.ratio is None else _estimate_text(item.ratio, 1, "{:.3f}"),
        ]
        for item in comparisons
    ]
    note = (
        "Macro averages over the cells that `lm2 score` compared, on the same samples; in brackets the 95% interval of "
        "a paired bootstrap."
    )
    return [note, _markdown_table(columns, rows, num_text_columns=3)]


def _printed_table(table: PrintedTable) -> list[str]:
    """A published table as it is printed, then what is wrong with it."""
    rows = [[str(row[0]), *(_printed(value) for value in row[1:])] for row in table.rows]
    errors = [
        f"{error.row}, {error.column}: printed {error.printed:.1f}, the cells give {error.from_cells:.1f}."
        for error in table.errors
    ]
    parts = [_markdown_table(list(table.columns), rows)]
    if errors or table.notes:
        parts.append("\n".join(f"- {note}" for note in (*table.notes, *errors)))
    return parts


def to_csv_of_cells(tables: TableSet) -> str:
    """One row per model, task and length; see CELL_COLUMNS."""
    return _csv(CELL_COLUMNS, (record for grid in tables.grids for record in _cell_records(grid)))


def to_csv_of_averages(tables: TableSet) -> str:
    """One row per model, group of tasks and span of lengths; see AVERAGE_COLUMNS."""
    return _csv(AVERAGE_COLUMNS, _average_records(tables.grids))


def to_json(tables: TableSet) -> str:
    """All of it: models with their cells, averages, paired comparisons by every metric, references as published."""
    models = []
    for grid in tables.grids:
        about = {key: value for key, value in vars(grid).items() if key not in ("cells", "published_means")}
        models.append({**about, "cells": list(_cell_records(grid))})
    document = {
        "kind": "lm2-tables",
        "version": 1,
        "metric": tables.metric,
        "models": models,
        "averages": list(_average_records(tables.grids)),
        "comparisons": [asdict(item) for item in tables.comparisons],
        "references": [asdict(reference) for reference in tables.references],
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _cell_records(grid: Grid) -> Iterable[dict[str, Any]]:
    for task in grid.tasks:
        for length in grid.lengths:
            if (cell := grid.cells.get((task, length))) is not None:
                yield {
                    **_identity(grid),
                    "task": task,
                    "length": length,
                    "n": cell.n,
                    "accuracy_percent": _percent(cell.accuracy),
                    "low_percent": _percent(cell.low),
                    "high_percent": _percent(cell.high),
                    "majority_percent": _percent(cell.majority),
                    "random_percent": _percent(cell.random),
                    "is_at_chance": cell.is_at_chance,
                    "is_back_computed": cell.is_back_computed,
                }


def _average_records(grids: Sequence[Grid]) -> Iterable[dict[str, Any]]:
    """Each task over the model's lengths; each group at each length, over the model's, and over the shared lengths."""
    shared = {name: common_lengths(grids, tasks) for name, tasks in groups_to_average(grids).items()}
    for grid in grids:
        for task in grid.tasks:
            yield _average_record(grid, task, [task], grid.lengths)
        for name, tasks in groups_to_average(grids).items():
            sharing, lengths = shared[name]
            spans = [*((length,) for length in grid.lengths), grid.lengths, *([lengths] if grid in sharing else [])]
            for span in dict.fromkeys(spans):
                record = _average_record(grid, name, tasks, span)
                if record["num_cells"] or record["published_percent"] is not None:
                    yield record


def _average_record(grid: Grid, name: str, tasks: Sequence[str], lengths: Sequence[str]) -> dict[str, Any]:
    average = average_grid(grid, tasks, lengths)
    return {
        **_identity(grid),
        "tasks": name,
        "lengths": " ".join(lengths),
        "accuracy_percent": _percent(average.accuracy_of_present),
        "num_cells": average.num_cells,
        "num_missing": len(average.missing),
        "published_percent": _percent(_published(grid, name, lengths[0]) if len(lengths) == 1 else None),
    }


def _identity(grid: Grid) -> dict[str, str]:
    return {"model": grid.label, "source": grid.source, "metric": grid.metric, "training": grid.training}


def _published(grid: Grid, name: str, length: str) -> float | None:
    return grid.published_means.get((name, length))


def _percent(share: float | None) -> float | None:
    # Enough digits for n of a million, and few enough to hide what floating point adds.
    return None if share is None else round(100 * share, 4)


def _csv(columns: Sequence[str], records: Iterable[dict[str, Any]]) -> str:
    """Missing values are empty fields, truth values are true and false."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {key: str(value).lower() if isinstance(value, bool) else value for key, value in record.items()}
        )
    return text.getvalue()


def _cell_text(cell: GridCell | None) -> str:
    if cell is None:
        return "-"
    text = f"{'~' if cell.is_back_computed else ''}{100 * cell.accuracy:.1f}{'*' if cell.is_at_chance else ''}"
    if cell.low is None or cell.high is None:
        return text
    return f"{text} ({100 * cell.low:.1f}-{100 * cell.high:.1f})"


def _mean_text(average: Average, published: float | None = None) -> str:
    if average.accuracy is not None:
        return f"{100 * average.accuracy:.1f}"
    if published is not None:
        return f"{100 * published:.1f} p"
    if average.accuracy_of_present is None:
        return "-"
    num_wanted = average.num_cells + len(average.missing)
    return f"{100 * average.accuracy_of_present:.1f} ({average.num_cells} of {num_wanted})"


def _estimate_text(estimate: Estimate, scale: float, form: str) -> str:
    value, low, high = (form.format(scale * number) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _printed(value: str | float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, (int, float)) else value


def _range_of_n(grid: Grid) -> str:
    return _range([cell.n for cell in grid.cells.values()], "{:d}")


def _range(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low}-{high}"


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], num_text_columns: int = 1) -> str:
    """A Markdown table whose columns after the first few are numbers, aligned right."""
    rules = [":--" if place < num_text_columns else "--:" for place in range(len(columns))]
    lines = [columns, rules, *rows]
    return "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in lines)


def _escape(text: str) -> str:
    """Names of models may hold what Markdown would take for a column or an HTML tag."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
