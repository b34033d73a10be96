"""Pictures of a report: accuracy against length, and accuracy in training."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lm2.data.lengths import context_tokens
from lm2.eval.grids import Grid

# Told apart by every kind of colour vision (Okabe and Ito 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Any, because the keys that matplotlib names in its types change from version to version.
_STYLE: Any = {"font.size": 10, "svg.hashsalt": "lm2", "text.parse_math": False}


def draw_lengths(grids: Mapping[str, Sequence[Grid]], task: str, longest_in_training: int) -> Figure:
    """Accuracy of one task against length: a line for each repetition, a colour for each model, 95% intervals.

    Args:
        grids: By model, one for each seed.
        task: Such as "qa1".
        longest_in_training: Tokens; what is longer has a grey ground.
    """
    first = next(iter(grids.values()))[0]
    lengths = first.lengths
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 4.5), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        num_within = sum(context_tokens(length) <= longest_in_training for length in lengths)
        axes.axvspan(num_within - 0.5, len(lengths) - 0.5, color="#eeeeee", zorder=0, label="longer than in training")
        for place, (model, repetitions) in enumerate(grids.items()):
            colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
            for number, grid in enumerate(repetitions):
                cells = [grid.cells[task, length] for length in lengths]
                values = [100 * cell.accuracy for cell in cells]
                below = [100 * (cell.accuracy - (cell.accuracy if cell.low is None else cell.low)) for cell in cells]
                above = [100 * ((cell.accuracy if cell.high is None else cell.high) - cell.accuracy) for cell in cells]
                axes.errorbar(
                    range(len(lengths)),
                    values,
                    yerr=(below, above),
                    color=colour,
                    marker=marker,
                    markersize=5,
                    linewidth=1.5,
                    elinewidth=0.7,
                    capsize=2,
                    alpha=0.9,
                    label=model if number == 0 else None,
                )
        constant = [100 * first.cells[task, length].majority for length in lengths]
        axes.plot(range(len(lengths)), constant, color="#777777", linestyle=":", label="best constant answer")
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_xlim(-0.5, len(lengths) - 0.5)
        axes.set_ylim(-2, 102)
        axes.set_xlabel("length of the context in tokens (0k: facts only)")
        axes.set_ylabel("accuracy in % (exact match)")
        axes.set_title(f"{task}: accuracy against length")
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.legend(loc="lower left", fontsize=9)
    return figure


def draw_training(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]) -> Figure:
    """Accuracy of validation over tokens: a line for each repetition, a colour for each model.

    Args:
        curves: By model, for each seed the points (tokens, accuracy). Validation is of the stage that it is in, so
            accuracy falls where a stage begins.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 4.0), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for place, (model, repetitions) in enumerate(curves.items()):
            for number, points in enumerate(repetitions):
                axes.plot(
                    [tokens / 1e6 for tokens, _ in points],
                    [100 * accuracy for _, accuracy in points],
                    color=_COLOURS[place % len(_COLOURS)],
                    linewidth=1.3,
                    alpha=0.85,
                    label=model if number == 0 else None,
                )
        axes.set_ylim(-2, 102)
        axes.set_xlabel("million tokens read in training")
        axes.set_ylabel("accuracy in % (validation of the stage)")
        axes.set_title("Training: it falls where a stage of longer samples begins")
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.legend(loc="lower right", fontsize=9)
    return figure
