"""Pictures of a report: accuracy against length, and how training went."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter

from lm2.data.lengths import context_tokens
from lm2.eval.grids import Grid, GridCell

# Told apart by every kind of colour vision (Okabe and Ito 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Any, because the keys that matplotlib names in its types change from version to version.
_STYLE: Any = {"font.size": 10, "svg.hashsalt": "lm2", "text.parse_math": False}
_WIDTH = 7.5
# How far apart lines stand that would hide one another, of the room of one length.
_STEP_ASIDE, _MOST_ASIDE = 0.06, 0.5


@dataclass(frozen=True)
class Curve:
    """How one run was trained.

    Attributes:
        accuracy: (tokens read, share right) of each validation.
        loss: (tokens read, loss of the step) of each step that was logged.
        stage_ends: Places in `accuracy` of validations that were the last of a stage.
    """

    accuracy: Sequence[tuple[float, float]]
    loss: Sequence[tuple[float, float]]
    stage_ends: Sequence[int] = ()


def draw_lengths(grids: Mapping[str, Sequence[Grid]], task: str, longest_in_training: int) -> Figure:
    """Accuracy of one task against length: a line for each repetition, a colour for each model, 95% intervals.

    Cells that a run lacks are left out of its line.

    Args:
        grids: By model, one for each seed.
        task: Such as "qa1".
        longest_in_training: Tokens; what is longer has a grey ground.
    """
    every = [grid for repetitions in grids.values() for grid in repetitions]
    lengths = sorted({length for grid in every for name, length in grid.cells if name == task}, key=context_tokens)
    places = {length: place for place, length in enumerate(lengths)}
    with mpl.rc_context(_STYLE):
        figure = _new_figure(5.0)
        axes = figure.add_subplot()
        num_within = sum(context_tokens(length) <= longest_in_training for length in lengths)
        if num_within < len(lengths):
            axes.axvspan(
                num_within - 0.5, len(lengths) - 0.5, color="#eeeeee", zorder=0, label="longer than in training"
            )
        step = min(_STEP_ASIDE, _MOST_ASIDE / len(every))
        runs = [(place, model, grid) for place, model in enumerate(grids) for grid in grids[model]]
        for number, (place, model, grid) in enumerate(runs):
            cells = {length: grid.cells[task, length] for length in lengths if (task, length) in grid.cells}
            axes.errorbar(
                [places[length] + step * (number - (len(every) - 1) / 2) for length in cells],
                [100 * cell.accuracy for cell in cells.values()],
                yerr=_reach(cells.values()),
                color=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=5,
                linewidth=1.4,
                elinewidth=0.7,
                capsize=2,
                alpha=0.9,
                label=model if grid is grids[model][0] else None,
            )
        # All answer the same questions, so it is the same of all.
        constant = {key: cell.majority for grid in every for key, cell in grid.cells.items()}
        axes.plot(
            range(len(lengths)),
            [100 * constant[task, length] for length in lengths],
            color="#777777",
            linestyle=":",
            label="best constant answer",
        )
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_xlim(-0.5, len(lengths) - 0.5)
        _finish(axes, "length of the context in tokens (0k: facts only)", "accuracy in % (exact match)")
        axes.set_ylim(-2, 102)
        axes.set_title(f"{task}: accuracy against length, 95% intervals")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def draw_training(curves: Mapping[str, Sequence[Curve]]) -> Figure:
    """Accuracy of validation and loss over tokens: a line for each repetition, a colour for each model.

    Validation is of the stage that a run is in, so accuracy falls where a stage begins; the end of each has a marker.

    Args:
        curves: By model, one for each seed.
    """
    with mpl.rc_context(_STYLE):
        figure = _new_figure(6.5)
        above, below = figure.subplots(2, 1, sharex=True)
        for place, (model, repetitions) in enumerate(curves.items()):
            style: Any = {"color": _COLOURS[place % len(_COLOURS)], "linewidth": 1.2, "alpha": 0.85}
            for number, curve in enumerate(repetitions):
                above.plot(
                    [tokens for tokens, _ in curve.accuracy],
                    [100 * share for _, share in curve.accuracy],
                    marker=_MARKERS[place % len(_MARKERS)],
                    markersize=6,
                    markerfacecolor="white",
                    markevery=list(curve.stage_ends),
                    label=model if number == 0 else None,
                    **style,
                )
                below.plot([tokens for tokens, _ in curve.loss], [loss for _, loss in curve.loss], **style)
        _finish(above, "", "accuracy in % (validation)")
        above.set_ylim(-4, 104)
        above.set_title("Training; markers: the last validation of a stage")
        _finish(below, "tokens read in training", "loss of the step")
        below.set_ylim(bottom=0)
        below.xaxis.set_major_formatter(EngFormatter())
        figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def draw_cost(points: Mapping[str, Sequence[tuple[str, float, float]]]) -> Figure:
    """Accuracy against the operations that reading costs: a line for each model, a point for each length.

    Args:
        points: By model (length, operations, share right).
    """
    with mpl.rc_context(_STYLE):
        figure = _new_figure(5.0)
        axes = figure.add_subplot()
        for place, (model, row) in enumerate(points.items()):
            colour = _COLOURS[place % len(_COLOURS)]
            axes.plot(
                [operations for _, operations, _ in row],
                [100 * share for _, _, share in row],
                color=colour,
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=5,
                linewidth=1.2,
                alpha=0.9,
                label=model,
            )
            length, operations, share = row[-1]
            axes.annotate(
                length,
                (operations, 100 * share),
                (4, 4),
                textcoords="offset points",
                color=colour,
                fontsize=8,
                # Other models' lines and points may lie below it.
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
        axes.set_xscale("log")
        # Else powers of ten are written as formulas, which are off for the sake of models' names.
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.margins(x=0.08)
        _finish(axes, "operations to read a question with its context", "accuracy in % (exact match)")
        axes.set_ylim(-2, 108)
        axes.set_title("Accuracy against cost: each length a point, the longest named")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _reach(cells: Iterable[GridCell]) -> tuple[list[float], list[float]]:
    """Percent from each accuracy down and up to the ends of its interval; 0 where there is none."""
    pairs = [
        (cell.accuracy - cell.low, cell.high - cell.accuracy)
        if cell.low is not None and cell.high is not None
        else (0.0, 0.0)
        for cell in cells
    ]
    return [100 * down for down, _ in pairs], [100 * up for _, up in pairs]


def _new_figure(height: float) -> Figure:
    figure = Figure(figsize=(_WIDTH, height), facecolor="white", layout="constrained")
    # Without pyplot, so that nothing is global and no window is opened.
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
