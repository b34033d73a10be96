"""Pictures of BABILong accuracies: a heat table of every cell, and a radar chart of five kinds of reasoning.

Needs matplotlib (the extra `viz`). The same input gives the same SVG, byte for byte.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lm2.data.files import write_whole
from lm2.eval.babilong import TASK_GROUPS
from lm2.eval.grids import Grid, GridCell, all_lengths, all_tasks, average_grid, common_lengths

# Kinds of reasoning, as in figure 3 of the LM2 paper.
REASONING_GROUPS: dict[str, tuple[str, ...]] = {
    "single-step\n(qa1)": ("qa1",),
    "multi-step\n(qa2-3)": ("qa2", "qa3"),
    "relation tracking\n(qa4-5)": ("qa4", "qa5"),
    "basic queries\n(qa6-8)": ("qa6", "qa7", "qa8"),
    "negation and\nuncertainty (qa9-10)": ("qa9", "qa10"),
}

_HEAT_NOTE = (
    "const.: the best constant answer to each cell, mean over lengths. * not above it: its accuracy is in the 95% "
    "interval of the model's or higher (where n is not known: as high as the model's, or higher). ~ not published, "
    "computed back from a mean."
)

# Even steps of brightness for every kind of colour vision (Nuñez et al. 2018).
_COLOUR_MAP = "cividis"
_NO_CELL = "#eeeeee"
# Told apart by every kind of colour vision (Okabe and Ito 2008); yellow is left out, it is too light for lines.
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")

# Sizes in inches; a figure is as large as what it shows.
_CELL_WIDTH, _CELL_HEIGHT = 0.45, 0.29
_LEFT, _PANEL_GAP = 0.6, 0.25
_PANEL_TOP, _PANEL_BOTTOM = 0.95, 0.15
_BAR_HEIGHT = 0.16
_HEAD, _FOOT = 0.5, 1.2
# Characters per inch at the size of small text, rounded down so that no line is too long.
_SMALL, _SMALL_PER_INCH = 8.5, 15
_MIN_WIDTH = 6.5
# Room for the line that tells the metric, where a panel has few columns.
_MIN_PITCH = 4.0
_MAX_LENGTHS_IN_TWO_COLUMNS = 9
_RADAR_WIDTH, _RADAR_SIZE = 8.5, 4.2
_RINGS = (20, 40, 60, 80, 100)
_DPI = 150

# Any, because the keys that matplotlib names in its types change from version to version.
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 10,
    # Text stays text: it can be searched, and the file is a quarter as large.
    "svg.fonttype": "none",
    # Names in the file follow from what it shows, not from chance.
    "svg.hashsalt": "lm2",
    "text.parse_math": False,
}


def draw_heat_table(grids: Sequence[Grid]) -> Figure:
    """Draws task x length, a panel per model: accuracy in percent, as number and colour.

    A column at the right of each panel shows the best constant answer in the same colours, and `*` marks the cells that
    are not above it. Panels share tasks and lengths; what a model lacks is grey. Models without cells are left out.

    Raises:
        ValueError: no model has cells.
    """
    shown = [grid for grid in grids if grid.cells]
    if not shown:
        raise ValueError("no model has cells to draw: only published means are there")
    tasks = all_tasks(shown)
    lengths = [
        length for length in all_lengths(shown) if any((task, length) in g.cells for g in shown for task in tasks)
    ]
    # The column of constant answers stands half a cell apart.
    panel_width = (len(lengths) + 1.5) * _CELL_WIDTH
    panel_height = len(tasks) * _CELL_HEIGHT
    # Two wide panels side by side would be too small to read in a document.
    num_columns = 1 if len(shown) == 1 or len(lengths) > _MAX_LENGTHS_IN_TWO_COLUMNS else 2
    num_rows = math.ceil(len(shown) / num_columns)
    pitch_x = max(_MIN_PITCH, _LEFT + panel_width + _PANEL_GAP)
    pitch_y = _PANEL_TOP + panel_height + _PANEL_BOTTOM
    width = max(_MIN_WIDTH, num_columns * pitch_x)
    height = _HEAD + num_rows * pitch_y + _FOOT

    with mpl.rc_context(_STYLE):
        figure = _new_figure(width, height)
        figure.text(0.5, 1 - 0.3 / height, "BABILong: accuracy in %", ha="center", va="center", size=14)
        for place, grid in enumerate(shown):
            row, column = divmod(place, num_columns)
            left = _LEFT + column * pitch_x + (pitch_x - _LEFT - panel_width - _PANEL_GAP) / 2
            bottom = height - _HEAD - _PANEL_TOP - panel_height - row * pitch_y
            box = (left / width, bottom / height, panel_width / width, panel_height / height)
            _draw_panel(
                figure.add_axes(box), grid, tasks, lengths, num_characters=int((pitch_x - _LEFT) * _SMALL_PER_INCH)
            )
        _draw_colour_bar(figure, width, height)
        figure.text(0.5, 0.12 / height, _wrap(_HEAT_NOTE, width), ha="center", va="bottom", size=_SMALL)
    return figure


def _draw_panel(axes: Axes, grid: Grid, tasks: Sequence[str], lengths: Sequence[str], num_characters: int) -> None:
    colours = mpl.colormaps[_COLOUR_MAP]
    constant_x = len(lengths) + 0.5
    axes.set_xlim(0, len(lengths) + 1.5)
    axes.set_ylim(len(tasks), 0)
    cells = []
    for y, task in enumerate(tasks):
        row = [grid.cells.get((task, length)) for length in lengths]
        present = [cell for cell in row if cell is not None]
        majority = sum(cell.majority for cell in present) / len(present) if present else None
        shares = [*(None if cell is None else cell.accuracy for cell in row), majority]
        labels = [*map(_number, row), "-" if majority is None else _percent(majority)]
        names = [*(f"cell {task} {length}" for length in lengths), f"constant {task}"]
        for x, share, label, name in zip((*range(len(lengths)), constant_x), shares, labels, names, strict=True):
            colour = _NO_CELL if share is None else colours(share)
            cells.append(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
            ink = "white" if share is not None and _is_dark(colour) else "black"
            axes.text(x + 0.5, y + 0.5, label, ha="center", va="center_baseline", color=ink, size=9.5, gid=name)
    axes.add_collection(PatchCollection(cells, match_original=True))
    axes.set_xticks([x + 0.5 for x in (*range(len(lengths)), constant_x)], [*lengths, "const."])
    axes.set_yticks([y + 0.5 for y in range(len(tasks))], tasks)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=9, pad=2)
    axes.set_frame_on(False)
    about = textwrap.wrap(f"{_samples(grid)}; metric: {grid.metric}", num_characters, max_lines=2, placeholder=" ...")
    axes.set_title(_shorten(grid.label, num_characters * 3 // 4), size=11, pad=22 + 12 * len(about))
    axes.annotate(
        "\n".join(about), (0.5, 1), (0, 20), "axes fraction", "offset points", ha="center", va="bottom", size=_SMALL
    )


def _draw_colour_bar(figure: Figure, width: float, height: float) -> None:
    length = min(5.0, 0.7 * width)
    axes = figure.add_axes((0.5 - length / width / 2, 0.85 / height, length / width, _BAR_HEIGHT / height))
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 100), _COLOUR_MAP)
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=range(0, 101, 20))
    bar.ax.tick_params(labelsize=_SMALL, pad=2, length=2)


@dataclass(frozen=True)
class RadarPlan:
    """What a radar chart shows: models that have all five groups, at lengths that they share, and who is left out."""

    grids: tuple[Grid, ...]
    lengths: tuple[str, ...]
    left_out: tuple[str, ...]


def plan_radar(grids: Sequence[Grid]) -> RadarPlan:
    """Chooses models and lengths for `draw_radar`; without models when none has qa1 to qa10 at any length."""
    chosen, lengths = common_lengths(grids, TASK_GROUPS["qa1-10"])
    return RadarPlan(chosen, lengths, tuple(grid.label for grid in grids if grid not in chosen))


def draw_radar(grids: Sequence[Grid]) -> Figure:
    """Draws one closed line per model over the five groups of the LM2 paper's figure 3, and one for constant answers.

    A group counts each of its tasks, at each length that all models shown share, the same. Models that lack a task are
    left out, and named below the chart.

    Raises:
        ValueError: no model has qa1 to qa10 at any length.
    """
    plan = plan_radar(grids)
    if not plan.grids:
        raise ValueError("no model has all of qa1 to qa10 at any length, which the radar chart needs")
    text = "\n".join(_wrap(note, _RADAR_WIDTH) for note in _radar_notes(plan))
    foot = 0.3 + 0.16 * (text.count("\n") + 1)
    legend = 0.1 + 0.26 * math.ceil((len(plan.grids) + 1) / 2)
    width, height = _RADAR_WIDTH, foot + legend + _RADAR_SIZE + 1.9
    box = (
        (width - _RADAR_SIZE) / 2 / width,
        (foot + legend + 0.65) / height,
        _RADAR_SIZE / width,
        _RADAR_SIZE / height,
    )
    title = "BABILong by kind of reasoning: accuracy in %"
    with mpl.rc_context(_STYLE):
        figure = _new_figure(width, height)
        figure.text(0.5, 1 - 0.3 / height, title, ha="center", va="center", size=14)
        _draw_web(figure.add_axes(box, projection="polar"), plan)
        figure.legend(loc="lower center", bbox_to_anchor=(0.5, foot / height), ncols=2, frameon=False, fontsize=10)
        figure.text(0.5, 0.15 / height, text, ha="center", va="bottom", size=_SMALL)
    return figure


def _draw_web(axes: Any, plan: RadarPlan) -> None:
    """Draws rings, spokes and lines into polar axes."""
    angles = [2 * math.pi * place / len(REASONING_GROUPS) for place in range(len(REASONING_GROUPS))]
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 100)
    axes.set_yticks(_RINGS, [""] * len(_RINGS))
    axes.set_xticks(angles, list(REASONING_GROUPS))
    axes.tick_params(axis="x", pad=14)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.grid(color="#cccccc", linewidth=0.7)
    axes.spines["polar"].set_color("#cccccc")

    closed = [*angles, angles[0]]
    for place, grid in enumerate(plan.grids):
        values = _group_percents(grid, plan.lengths)
        axes.plot(
            closed,
            [*values, values[0]],
            color=_LINE_COLOURS[place % len(_LINE_COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
            linestyle=_DASHES[place // len(_LINE_COLOURS) % len(_DASHES)],
            linewidth=1.8,
            markersize=5,
            label=_shorten(grid.label, 48),
        )
    constant = _constant_percents(plan.grids[0], plan.lengths)
    axes.fill(angles, constant, facecolor="#999999", alpha=0.25, edgecolor="none")
    axes.plot(closed, [*constant, constant[0]], color="#777777", linestyle=":", linewidth=1.2, label="constant answer")
    # Over the lines, which would cross out tick labels.
    behind = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
    for percent in _RINGS:
        axes.text(math.pi / 5, percent, str(percent), size=_SMALL, ha="center", va="center", bbox=behind, zorder=5)


def _radar_notes(plan: RadarPlan) -> list[str]:
    first = plan.grids[0]
    constant = (
        f"the best one to each cell, by the metric of {first.label}"
        if first.is_ours
        else "the best one to each task in bAbI's test files, by exact match"
    )
    notes = [
        f"Mean over tasks and lengths ({', '.join(plan.lengths)}).",
        *_metric_notes(plan.grids),
        f"Constant answer: {constant}.",
    ]
    if plan.left_out:
        notes.append(f"Not shown, as they lack tasks or lengths: {', '.join(plan.left_out)}.")
    return notes


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as .png or .svg, whole or not at all, without date or version in it.

    Raises:
        ValueError: another ending.
        OSError: the file cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    no_traces = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    if kind not in no_traces:
        raise ValueError(f"figure is {path.name!r}, but its name must end in .png or .svg")
    with mpl.rc_context(_STYLE), write_whole(path, "wb") as file:
        figure.savefig(file, format=kind, dpi=_DPI, metadata=no_traces[kind])


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white")
    # Without pyplot, so that nothing is global and no window is opened.
    FigureCanvasAgg(figure)
    return figure


def _group_percents(grid: Grid, lengths: Sequence[str]) -> list[float]:
    means = [average_grid(grid, tasks, lengths).accuracy for tasks in REASONING_GROUPS.values()]
    return [100 * mean for mean in means if mean is not None]


def _constant_percents(grid: Grid, lengths: Sequence[str]) -> list[float]:
    def mean(tasks: Sequence[str]) -> float:
        shares = [grid.cells[task, length].majority for task in tasks for length in lengths]
        return 100 * math.fsum(shares) / len(shares)

    return [mean(tasks) for tasks in REASONING_GROUPS.values()]


def _metric_notes(grids: Sequence[Grid]) -> list[str]:
    """The metric and n of the models, those that have the same together."""
    same: dict[tuple[str, str], list[str]] = {}
    for grid in grids:
        same.setdefault((grid.metric, _samples(grid)), []).append(grid.label)
    if len(same) == 1:
        [(metric, samples)] = same
        return [f"Metric: {metric}; {samples}."]
    return [f"{', '.join(labels)}: metric {metric}; {samples}." for (metric, samples), labels in same.items()]


def _samples(grid: Grid) -> str:
    known = {cell.n for cell in grid.cells.values() if cell.n is not None}
    if not known:
        return "n not known"
    low, high = min(known), max(known)
    basis = "" if grid.is_ours else f" ({grid.n_basis.split(':')[0]})"
    return f"n = {low if low == high else f'{low} to {high}'} per cell{basis}"


def _number(cell: GridCell | None) -> str:
    if cell is None:
        return "-"
    return f"{'~' if cell.is_back_computed else ''}{_percent(cell.accuracy)}{'*' if cell.is_at_chance else ''}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _is_dark(colour: Any) -> bool:
    """Whether white reads better on a colour than black: its relative luminance (WCAG 2) is below 0.18."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in mpl.colors.to_rgb(colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)) < 0.18


def _shorten(text: str, num_characters: int) -> str:
    """Cuts the middle out: names of models often differ at their ends only."""
    if len(text) <= num_characters:
        return text
    return f"{text[: num_characters // 2 - 2]}...{text[len(text) - num_characters // 2 + 2 :]}"


def _wrap(text: str, width: float) -> str:
    return textwrap.fill(text, int(width * _SMALL_PER_INCH))
