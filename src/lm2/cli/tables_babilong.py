"""`lm2 tables babilong`: tables and pictures of BABILong scores, beside published results."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm2.cli.ranges import parse_tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lm2.eval.babilong import Scores
    from lm2.eval.grids import Grid
    from lm2.eval.tables import TableSet

_FORMATS = ("md", "csv", "json")
_TABLE_FILES = {"md": ("tables.md",), "csv": ("cells.csv", "averages.csv"), "json": ("tables.json",)}
_FIGURE_NEEDS = {
    "heat": "heat table: only means are published, no cells",
    "radar": "radar chart: no model has all of qa1 to qa10 at any length",
}
_FIGURE_ENDINGS = ("png", "svg")


def babilong(
    scores: Annotated[
        list[Path] | None,
        typer.Argument(help="Files that `lm2 score --json` wrote, or predictions: .jsonl, .csv, or folders of them."),
    ] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="Published results to show beside, such as paper,armt; may be repeated.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric of the scores: exact, official or substring.")] = "exact",
    tasks: Annotated[str | None, typer.Option(help="Show only these tasks, such as 1-5 or 1,3,7-9.")] = None,
    lengths: Annotated[str | None, typer.Option(help="Show only these lengths, such as 4k,8k.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write into; without it the tables are printed.")
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", help="md, csv, json, or several, such as md,csv (default: all; md printed)."),
    ] = None,
    no_figures: Annotated[bool, typer.Option("--no-figures", help="Write tables only.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of OUT that exist.")] = False,
) -> None:
    """Make tables (Markdown, CSV, JSON) and pictures (heat table, radar chart; PNG and SVG) of BABILong accuracies.

    Without SCORES, published results alone are shown: `lm2 tables babilong --reference paper`.
    """
    chosen_formats = _parse_formats(formats, out)
    if out is None and (no_figures or overwrite):
        raise ValueError(f"{'--no-figures' if no_figures else '--overwrite'} has no effect without --out")
    has_figures = out is not None and not no_figures
    if has_figures and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib: pip install 'lm2[viz]', or give --no-figures")
    if out is not None:
        _check_folder(out, _file_names(chosen_formats, has_figures), overwrite)

    table_set = _gather(scores or [], ",".join(reference or []) or None, metric, tasks, lengths)
    texts = _texts(table_set, chosen_formats)
    if out is None:
        print(*texts.values(), sep="", end="")
        return
    # All is drawn before anything is written, so that an error leaves nothing behind.
    drawn = _draw(table_set.grids) if has_figures else {}
    _write(out, texts, drawn)


def _parse_formats(text: str | None, out: Path | None) -> list[str]:
    if text is None:
        return ["md"] if out is None else list(_FORMATS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in _FORMATS or names.count(name) > 1:
            raise ValueError(f"--format is {text!r}, but must be {', '.join(_FORMATS)}, or several of them, each once")
    if out is None and sum(len(_TABLE_FILES[name]) for name in names) > 1:
        raise ValueError(f"--format is {text!r}, which makes several files: give --out, the folder to write into")
    return names


def _file_names(formats: list[str], has_figures: bool) -> list[str]:
    names = [name for kind in formats for name in _TABLE_FILES[kind]]
    if has_figures:
        names += [f"{name}.{ending}" for name in _FIGURE_NEEDS for ending in _FIGURE_ENDINGS]
    return names


def _check_folder(out: Path, names: list[str], overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, but that is a file: name a folder")
    present = [name for name in names if (out / name).exists()]
    if present and not overwrite:
        raise ValueError(f"{out / present[0]} exists: choose another --out, or give --overwrite")


def _gather(
    paths: list[Path], reference: str | None, metric: str, tasks: str | None, lengths: str | None
) -> "TableSet":
    from lm2.data.lengths import parse_lengths
    from lm2.eval.grids import check_labels, grids_of_reference, grids_of_scores, select
    from lm2.eval.metrics import check_metric
    from lm2.eval.reference import load_reference
    from lm2.eval.tables import TableSet

    check_metric(metric)
    if not paths and reference is None:
        raise ValueError("there is nothing to show: give files of scores, or --reference, or both")
    if not paths and metric != "exact":
        raise ValueError(f"--metric is {metric!r}, but chooses the metric of scores, and none are given")
    names = [] if reference is None else [name.strip() for name in reference.split(",")]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--reference names {twice[0]} twice; name it once")
    task_names = None if tasks is None else [f"qa{number}" for number in parse_tasks(tasks)]
    length_names = None if lengths is None else parse_lengths(lengths)

    references = tuple(load_reference(name) for name in names)
    all_scores = _read_all_scores(paths)
    grids = [*grids_of_scores(all_scores, metric), *(grid for each in references for grid in grids_of_reference(each))]
    check_labels(grids)
    if task_names is not None or length_names is not None:
        grids = select(grids, task_names, length_names)
    comparisons = tuple(item for each in all_scores for item in each.comparisons)
    return TableSet(tuple(grids), metric, comparisons, references)


def _read_all_scores(paths: list[Path]) -> list["Scores"]:
    """Scores from files of `lm2 score`, and of predictions, which are scored here."""
    from lm2.eval.babilong import Scores, score_cells
    from lm2.eval.predictions import read_predictions
    from lm2.eval.scores_json import read_scores

    predictions = [path for path in paths if path.suffix != ".json"]
    read = [read_scores(path) for path in paths if path.suffix == ".json"]
    return read + ([Scores(score_cells(read_predictions(predictions)))] if predictions else [])


def _texts(table_set: "TableSet", formats: list[str]) -> dict[str, str]:
    """The contents of the tables' files, by file name."""
    from lm2.eval.tables import to_csv_of_averages, to_csv_of_cells, to_json, to_markdown

    makers = {"md": [to_markdown], "csv": [to_csv_of_cells, to_csv_of_averages], "json": [to_json]}
    return {
        name: make(table_set) for kind in formats for name, make in zip(_TABLE_FILES[kind], makers[kind], strict=True)
    }


def _draw(grids: tuple["Grid", ...]) -> dict[str, "Figure | None"]:
    """The pictures by name, None for one that cannot be drawn from these grids."""
    from lm2.eval.figures import draw_heat_table, draw_radar, plan_radar

    return {
        "heat": draw_heat_table(grids) if any(grid.cells for grid in grids) else None,
        "radar": draw_radar(grids) if plan_radar(grids).grids else None,
    }


def _write(out: Path, texts: dict[str, str], figures: dict[str, "Figure | None"]) -> None:
    """Writes all files, and names each; says which pictures are not there, and leaves no older ones in their place."""
    from lm2.data.files import write_whole

    for name, text in texts.items():
        with write_whole(out / name) as file:
            file.write(text)
        print(out / name)
    for name, figure in figures.items():
        if figure is None:
            print(f"no {_FIGURE_NEEDS[name]}")
        for path in (out / f"{name}.{ending}" for ending in _FIGURE_ENDINGS):
            if figure is None:
                path.unlink(missing_ok=True)
            else:
                from lm2.eval.figures import save_figure

                save_figure(figure, path)
                print(path)
