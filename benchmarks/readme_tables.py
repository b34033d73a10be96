"""
The README's tables of ten tasks, from the report of the job that measured them.

    python benchmarks/readme_tables.py                                 # from results/ten/report.json
    python benchmarks/readme_tables.py runs/reproduce-ten/report.json  # from another run of it

Prints Markdown. A test holds the README to what this prints for results/ten.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

REPORT = Path(__file__).parent / "results" / "ten" / "report.json"
LEADER = "ten"
NAMES = {
    LEADER: "LM2",
    "ten-armt": "ARMT",
    "ten-rmt": "RMT",
    "ten-llama": "Llama",
    "ten-llama-rag": "the Llama on what BM25 finds",
}
GROUPS = {"qa1-10": 10, "qa1-5": 5}
LENGTHS = ("0k", "1k", "4k", "8k", "16k", "32k", "64k", "128k")
LENGTHS_OF_TASKS = ("0k", "4k", "16k", "64k", "128k")
LENGTHS_OF_DIFFERENCES = ("within training lengths", "8k", "16k", "32k", "64k", "128k", "all")
GOALS = {"ten-rmt": "1.371", "ten-llama": "1.863"}


def readme_tables(report: Mapping[str, Any]) -> list[str]:
    """The Markdown of each table, in the README's order, from a report of `lm2 reproduce --scale ten --rag`."""
    names = {name: NAMES[name] for name in NAMES if name in report["accuracy"]}
    tables = [_table((group, *LENGTHS), _mean_rows(report, group, names)) for group in GROUPS]
    if any(len(cell["seeds"]) > 1 for cell in report["accuracy"][LEADER]):
        tables.append(_table(("qa1-10 by seed", *LENGTHS), _seed_rows(report, names)))
    for first in (1, 6):
        tasks = [f"qa{task}" for task in range(first, first + 5)]
        tables.append(_table((" / ".join(LENGTHS_OF_TASKS), *tasks), _task_rows(report, tasks, names)))
    rivals = {name: names[name] for name in names if name != LEADER}
    tables.append(_table(("LM2 minus", *LENGTHS_OF_DIFFERENCES), _difference_rows(report, rivals)))
    tables.append(
        _table(("LM2 / rival, all lengths", "qa1 to qa10", "qa1 to qa5", "goal"), _ratio_rows(report, rivals))
    )
    return tables


def _mean_rows(report: Mapping[str, Any], group: str, names: Mapping[str, str]) -> Iterator[list[str]]:
    means = {(row["model"], row["length"]): row["mean"] for row in report["means"] if row["tasks"] == group}
    for model, name in names.items():
        yield [name, *(_mean(means.get((model, length))) for length in LENGTHS)]
    constant: dict[str, list[float]] = {length: [] for length in LENGTHS}
    for cell in report["accuracy"][LEADER]:
        if int(cell["task"].removeprefix("qa")) <= GROUPS[group]:
            constant[cell["length"]].append(cell["majority"])
    yield ["best constant answer", *(f"{100 * sum(shares) / len(shares):.0f}" for shares in constant.values())]


def _seed_rows(report: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[list[str]]:
    for model, name in names.items():
        shares: dict[str, list[list[float]]] = {length: [] for length in LENGTHS}
        for cell in report["accuracy"][model]:
            shares[cell["length"]].append(cell["seeds"])
        means = [[100 * sum(seed) / len(seed) for seed in zip(*tasks, strict=True)] for tasks in shares.values()]
        yield [name, *(" / ".join(f"{mean:.0f}" for mean in seeds) or "-" for seeds in means)]


def _task_rows(report: Mapping[str, Any], tasks: Iterable[str], names: Mapping[str, str]) -> Iterator[list[str]]:
    for model, name in names.items():
        shares = {
            (cell["task"], cell["length"]): f"{100 * sum(cell['seeds']) / len(cell['seeds']):.0f}"
            for cell in report["accuracy"][model]
        }
        yield [name, *(" / ".join(shares.get((task, length), "-") for length in LENGTHS_OF_TASKS) for task in tasks)]


def _difference_rows(report: Mapping[str, Any], rivals: Mapping[str, str]) -> Iterator[list[str]]:
    for rival, name in rivals.items():
        found = [_comparison(report, rival, "qa1-10", lengths) for lengths in LENGTHS_OF_DIFFERENCES]
        yield [name, *("-" if one is None else _interval(one["difference"], 100, "+.1f", ".1f") for one in found)]


def _ratio_rows(report: Mapping[str, Any], rivals: Mapping[str, str]) -> Iterator[list[str]]:
    for rival, name in rivals.items():
        found = [_comparison(report, rival, group, "all") for group in GROUPS]
        ratios = ["-" if one is None else _interval(one["ratio"], 1, ".2f", ".2f") for one in found]
        yield [name, *ratios, GOALS.get(rival, "")]


def _comparison(report: Mapping[str, Any], rival: str, group: str, lengths: str) -> Mapping[str, Any] | None:
    """The comparison with a rival, which is of one seed, or of all together where there are several."""
    found = [
        one
        for one in report["comparisons"]
        if (one["tasks"], one["lengths"]) == (group, lengths) and one["baseline"].rsplit("-seed", 1)[0] == rival
    ]
    return max(found, key=lambda one: one["num_runs"], default=None)


def _mean(mean: Mapping[str, float] | None) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean['value']:.0f} ({100 * mean['low']:.0f}-{100 * mean['high']:.0f})"


def _interval(estimate: Mapping[str, float], scale: float, form: str, bounds: str) -> str:
    value, low, high = (scale * estimate[key] for key in ("value", "low", "high"))
    return f"{value:{form}} ({low:{bounds}} to {high:{bounds}})"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(columns), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("|" + "|".join(f" {cell} " if cell != "---" else cell for cell in line) + "|" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", nargs="?", type=Path, default=REPORT, help="report.json of lm2 reproduce")
    print("\n\n".join(readme_tables(json.loads(parser.parse_args().report.read_text()))))


if __name__ == "__main__":
    main()
