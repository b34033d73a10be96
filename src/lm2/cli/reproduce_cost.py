"""What the models of `lm2 reproduce` cost to train and to ask: measured by a job of its own, told in the report."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from lm2.cli.reproduce_entries import BySeed, Entry, tokens_read

if TYPE_CHECKING:
    from lm2.cli.jobs import Job
    from lm2.eval.report import Block
    from lm2.train.config import Recipe


def longest_in_training(recipe: "Recipe") -> int:
    """Tokens of the longest samples that a recipe trains on."""
    return max(stage.longest_tokens(recipe.data.segment_length_tokens) for stage in recipe.curriculum)


def cost_job(folder: Path, by_seed: BySeed) -> "Job":
    """Measures the models of the first seed on as many tokens as their questions had; seeds do not differ in cost.

    At the lengths that all were asked.
    """
    from lm2.cli.jobs import Job

    entries = _first_seed(by_seed)
    trained = [entry for entry in entries if not entry.retrieves]
    leader = trained[0].recipe

    def command() -> list[str]:
        lengths = {count for counts in _counts(folder, entries).values() for count in counts.values()}
        longest = max(longest_in_training(leader), 1)
        return [
            *(sys.executable, "-m", "lm2.cli.main", "eval", "cost"),
            *(str(entry.model(folder)) for entry in trained),
            *("--lengths", ",".join(map(str, sorted(lengths))), "--training-tokens", str(longest)),
            *("--device", leader.train.device, "--json", str(_file(folder))),
        ]

    return Job(
        "measure costs",
        command,
        folder / "logs" / "cost.log",
        is_done=_file(folder).exists,
        is_ready=lambda: True,
        progress=lambda: 0.0,
    )


def cost_facts(folder: Path, by_seed: BySeed, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Costs by entry, as report.json has them.

    Args:
        folder: The job's.
        by_seed: What is compared.
        runs: What is known of the trained runs.
    """
    from lm2.cli.eval_cost import read_costs

    measured, entries = read_costs(_file(folder)), _first_seed(by_seed)
    first = {row["tokens"]: row for row in measured[entries[0].run_name]["reading"]}
    counts = _counts(folder, entries)
    facts = {}
    for entry in entries:
        cost = measured[entry.trained().run_name]
        own = {row["tokens"]: row for row in cost["reading"]}
        reading = []
        for length, count in counts[entry.run_name].items():
            row, other = own[count], first[counts[entries[0].run_name][length]]
            pairs = zip(row["seconds"], other["seconds"], strict=True)
            ratio = median(mine / theirs for mine, theirs in pairs)
            kept = {key: row[key] for key in ("tokens", "flops", "state_bytes")}
            reading.append({"length": length, **kept, "time_ratio": ratio})
        per_token = cost["training_flops"] / cost["training_tokens"]
        seeds = [each for other in by_seed.values() for each in other if each.name == entry.name]
        facts[entry.name] = {
            # Per token at the longest samples, for all tokens of the run.
            "training_flops": fmean(per_token * runs[each.trained().run_name]["tokens"] for each in seeds),
            "reading": reading,
        }
    return facts


def cost_blocks(costs: Mapping[str, Any], pictures: Mapping[str, str]) -> "list[Block]":
    """The part of the report on costs."""
    from lm2.eval.report import Heading, Picture, Table, Text

    lengths = [row["length"] for row in next(iter(costs.values()))["reading"]]
    return [
        Heading("Cost"),
        Text(
            "Operations of matrix products and attention: of training, as a step on a longest sample has them "
            "per token; of reading a question with its context. They and the state, which is what a model keeps of the "
            "context to go on from, are the same on every machine. Times are ratios to the first model's, in turns."
        ),
        Table(
            ["model", "training, operations", *(f"reading {length}" for length in lengths)],
            [
                [name, _short(cost["training_flops"]), *(_short(row["flops"]) for row in cost["reading"])]
                for name, cost in costs.items()
            ],
        ),
        Table(
            [
                "model",
                *(f"time, {length}" for length in lengths),
                *(f"state at {length}, kB" for length in _ends(lengths)),
            ],
            [
                [
                    name,
                    *(f"{row['time_ratio']:.2f}" for row in cost["reading"]),
                    *(
                        f"{row['state_bytes'] / 1000:,.0f}"
                        for row in cost["reading"]
                        if row["length"] in _ends(lengths)
                    ),
                ]
                for name, cost in costs.items()
            ],
        ),
        Picture("cost.png", pictures["cost.png"]),
    ]


def _counts(folder: Path, entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """By run and length, the tokens that reading is measured on, at the lengths that all were asked.

    A model that was asked less than the leader has read about as much a question, so it is measured on the leader's.
    """
    read = {entry.run_name: tokens_read(entry.results(folder)) for entry in entries}
    of_leader = read[entries[0].run_name]
    common = [length for length in of_leader if all(length in counts for counts in read.values())]
    return {
        entry.run_name: {length: (read[entry.run_name] if entry.retrieves else of_leader)[length] for length in common}
        for entry in entries
    }


def _ends(lengths: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([lengths[0], lengths[-1]]))


def _first_seed(by_seed: BySeed) -> Sequence[Entry]:
    return next(iter(by_seed.values()))


def _file(folder: Path) -> Path:
    return folder / "cost.json"


def _short(number: float) -> str:
    return f"{number:.2e}"
