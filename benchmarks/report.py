"""Plots and a table of targets, made from the JSON alone."""

from pathlib import Path

import matplotlib as mpl

# Files only: no screen is needed.
mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

NAMES = {"lm2": "LM2", "llama": "Llama, same backbone", "matched_llama": "Llama, same parameters"}
COLORS = {"lm2": "#0b6e99", "llama": "#c4632b", "matched_llama": "#8a8a8a"}
MIB = 2**20

_ALL_LABELS = {
    "time_vs_llama": "time, ratio to the same-backbone Llama",
    "time_vs_matched": "time, ratio to the same-size Llama",
    "memory_vs_llama": "peak memory, ratio to the same-backbone Llama",
    "time_over_flops": "time ratio / FLOP ratio",
}


def write_reports(results: dict, folder: Path) -> list[Path]:
    """Writes the plots of all measured parts and `speed.md`; returns the paths."""
    plots = {"training": _plot_training, "length": _plot_length, "prefill": _plot_prefill, "decode": _plot_decode}
    written = []
    for name, part in results["parts"].items():
        figure = plots[name](part)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        plt.close(figure)
        written.append(path)
    table = folder / "speed.md"
    table.write_text(_table(results))
    return [*written, table]


# Plots


def _plot_training(part: dict):
    cells, clock = part["cells"], part["run"]["clock"]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12.5, 1.9 + 0.62 * len(cells)), sharey=True, layout="constrained"
    )
    # Room for three bars a cell, the first cell on top.
    rows = [-float(index) for index in range(len(cells))]
    times = [cell["ratios"]["time_vs_llama"][clock] for cell in cells]
    matched = [cell["ratios"]["time_vs_matched"][clock] for cell in cells]
    for ratios, shift, color, label in (
        (times, 0.25, COLORS["lm2"], "time, to the Llama with the same backbone"),
        (matched, -0.25, COLORS["matched_llama"], "time, to the Llama with the same parameters"),
    ):
        medians = [ratio["median"] for ratio in ratios]
        spread = [[r["median"] - r["min"] for r in ratios], [r["max"] - r["median"] for r in ratios]]
        places = [row + shift for row in rows]
        left.barh(places, medians, 0.23, color=color, xerr=spread, error_kw={"capsize": 2, "lw": 1}, label=label)
    flops = [cell["ratios"]["flops_vs_llama"] for cell in cells]
    left.barh(rows, flops, 0.23, color="#b5d3df", label="FLOPs, to the Llama with the same backbone")
    right.barh(
        rows, [cell["ratios"]["memory_vs_llama"] for cell in cells], 0.5, color=COLORS["lm2"], label="peak memory"
    )
    for axis, quantity in ((left, "time_vs_llama"), (right, "memory_vs_llama")):
        bounds = [cell["targets"].get(quantity, {}).get("at_most") for cell in cells]
        known = [(row, bound) for row, bound in zip(rows, bounds, strict=True) if bound]
        axis.vlines(
            [bound for _, bound in known],
            [row - 0.42 for row, _ in known],
            [row + 0.42 for row, _ in known],
            color="#b00020",
            lw=1.5,
            label="target (at most)",
        )
        axis.axvline(1, color="black", lw=0.8)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    left.set_yticks(rows, [_cell_label(cell) for cell in cells])
    left.set_xlabel(f"LM2 / Llama ({clock} time: median, smallest and largest)")
    right.set_xlabel("LM2 / Llama with the same backbone, peak memory")
    figure.suptitle(f"Training step, {_conditions(part)}", fontsize=11)
    return figure


def _cell_label(cell: dict) -> str:
    return f"{cell['name']}\n({cell['shape']})"


def _plot_length(part: dict):
    cells, clock = part["cells"], part["run"]["clock"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    tokens = [cell["tokens"] for cell in cells]
    for name in ("lm2", "llama"):
        seconds = [sorted(cell["seconds"][name][clock])[cell["rounds"] // 2] for cell in cells]
        left.plot(tokens, seconds, "o-", color=COLORS[name], label=NAMES[name])
    ratios = [cell["ratios"]["time_vs_llama"][clock] for cell in cells]
    medians = [ratio["median"] for ratio in ratios]
    spread = [[r["median"] - r["min"] for r in ratios], [r["max"] - r["median"] for r in ratios]]
    right.errorbar(tokens, medians, spread, fmt="o-", color=COLORS["lm2"], capsize=3, label="LM2 / Llama")
    bounds = [(cell["tokens"], cell["targets"]["time_vs_llama"]["at_most"]) for cell in cells if cell["targets"]]
    if bounds:
        right.plot(*zip(*bounds, strict=True), "_", color="#b00020", ms=22, mew=2, label="target (at most)")
    right.axhline(1, color="black", lw=0.8)
    _plain_log_scale(left)
    left.set_ylabel(f"training step ({clock} seconds)")
    right.set_ylabel("ratio of the times")
    right.set_ylim(bottom=0)
    _token_axes((left, right), tokens, "tokens in the row")
    figure.suptitle(f"Training step on one long row, {_conditions(part)}", fontsize=11)
    return figure


def _plot_prefill(part: dict):
    clock = part["run"]["clock"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    tokens = sorted({cell["tokens"] for cell in part["cells"]})
    for name in ("lm2", "llama"):
        cells = [cell for cell in part["cells"] if cell["model"] == name]
        places = [cell["tokens"] for cell in cells]
        per_token = [1e3 * cell["seconds"][clock][0] / cell["tokens"] for cell in cells]
        left.plot(places, per_token, "o-", color=COLORS[name], label=NAMES[name])
        right.plot(places, [cell["peak_bytes"] / MIB for cell in cells], "o-", color=COLORS[name], label=NAMES[name])
    left.set_ylabel(f"prefill, {clock} milliseconds per token")
    right.set_ylabel("peak memory so far (MiB)")
    _plain_log_scale(left)
    _plain_log_scale(right)
    _token_axes((left, right), tokens, "tokens read")
    figure.suptitle(f"Reading in pieces of {part['piece_tokens']} tokens, {_conditions(part)}", fontsize=11)
    return figure


def _plot_decode(part: dict):
    clock = part["run"]["clock"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    contexts = part["plan"]["contexts"]
    for name in ("lm2", "llama"):
        cells = [cell for cell in part["cells"] if cell["model"] == name]
        medians = [1e3 * cell["median"][clock] for cell in cells]
        left.plot([cell["context"] for cell in cells], medians, "o-", color=COLORS[name], label=NAMES[name])
    for cell, shade in zip(
        [cell for cell in part["cells"] if cell["model"] == "lm2"], (0.3, 0.5, 0.7, 1.0), strict=False
    ):
        milliseconds = [1e3 * value for value in cell["seconds"][clock]]
        label = f"after {_short(cell['context'])} tokens"
        right.plot(milliseconds, color=COLORS["lm2"], alpha=shade, lw=0.8, label=label)
    left.set_ylabel(f"decode, {clock} milliseconds per token (median)")
    _plain_log_scale(left)
    _token_axes((left,), contexts, "tokens of context")
    right.set_xlabel("token of the segment (the last one writes the bank)")
    right.set_ylabel(f"LM2, {clock} milliseconds")
    right.set_ylim(bottom=0)
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.suptitle(f"Decoding token by token, {_conditions(part)}", fontsize=11)
    return figure


def _token_axes(axes: tuple, tokens: list[int], label: str) -> None:
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(tokens, [_short(count) for count in tokens])
        axis.xaxis.minorticks_off()
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)


def _plain_log_scale(axis) -> None:
    """A logarithmic y axis with plain numbers, and enough of it to have some."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(low / 1.5, high * 1.5)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.yaxis.set_minor_formatter("{x:g}")


def _short(count: int) -> str:
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _conditions(part: dict) -> str:
    run = part["run"]
    quick = ", QUICK" if run["quick"] else ""
    return f"{run['dtype']}, {run['machine']['device']}, {run['machine']['threads']} thread(s){quick}"


# Table


def _table(results: dict) -> str:
    lines = [
        "# Speed and memory",
        "",
        "Made from `speed.json` by `benchmarks/speed.py`. Ratios of models that ran in turns in one process; each part "
        "is one run.",
    ]
    for name, part in results["parts"].items():
        run = part["run"]
        quick = " **Quick shapes: these numbers mean nothing.**" if run["quick"] else ""
        lines += [
            "",
            f"## {name}",
            "",
            f"{run['machine']['cpu']}, {run['machine']['threads']} thread(s), {run['dtype']}, "
            f"{run['machine']['device']}, torch {run['machine']['torch']}; commit `{run['commit'][:12]}`; "
            f"{run['date']}; judged by {run['clock']} "
            f"time.{quick}",
            "",
        ]
        if name == "training":
            lines += [*_training_table(part), ""]
        lines += ["| cell | quantity | target | measured | met |", "|---|---|---|---|---|"]
        lines += [_target_row(*row) for row in _targets(name, part)]
        if name == "prefill":
            lines += ["", f"Llama is not read further because {part['llama_stops_because']}."]
    return "\n".join(lines) + "\n"


def _training_table(part: dict) -> list[str]:
    clock = part["run"]["clock"]
    lines = [
        "| cell | time / Llama (min to max) | time / matched Llama (min to max) | peak memory / Llama | "
        "FLOPs / Llama | time ratio / FLOP ratio |",
        "|---|---|---|---|---|---|",
    ]
    for cell in part["cells"]:
        ratios = cell["ratios"]
        times = (_spread(ratios[name][clock]) for name in ("time_vs_llama", "time_vs_matched"))
        others = (f"{ratios[name]:.2f}" for name in ("memory_vs_llama", "flops_vs_llama", "time_over_flops"))
        lines.append(f"| {' | '.join((cell['name'], *times, *others))} |")
    return lines


def _spread(ratio: dict) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def _targets(name: str, part: dict) -> list[tuple[str, str, dict]]:
    if name in ("prefill", "decode"):
        return [("LM2", quantity.replace("_", " "), target) for quantity, target in part["targets"].items()]
    return [
        (cell.get("name") or f"{_short(cell['tokens'])} tokens", _ALL_LABELS[quantity], target)
        for cell in part["cells"]
        for quantity, target in cell["targets"].items()
    ]


def _target_row(cell: str, quantity: str, target: dict) -> str:
    at_least, at_most = target["at_least"], target["at_most"]
    bound = f"at most {at_most:.2f}" if at_least is None else f"{at_least:.2f} to {at_most:.2f}"
    # Three digits: a target missed by little must not read as met.
    return f"| {cell} | {quantity} | {bound} | {target['measured']:.3f} | {'yes' if target['met'] else '**no**'} |"
