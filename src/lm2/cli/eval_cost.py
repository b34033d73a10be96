"""`lm2 eval cost`: what models cost in operations, time and state, against the length of what they read."""

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.options import Device, Dtype, JsonFile, ModelFolders, ModelTokenizer
from lm2.cli.ranges import parse_numbers
from lm2.cli.terminal import table_console
from lm2.data.bounds import at_least

if TYPE_CHECKING:
    from lm2.eval.cost import ModelCost

KIND, VERSION = "lm2-cost", 1


def cost(
    models: ModelFolders,
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens to read.")] = "1000,4000,16000",
    training_tokens: Annotated[
        int, typer.Option("--training-tokens", help="Tokens of the row whose training step is counted.")
    ] = 512,
    rounds: Annotated[int, typer.Option("--rounds", help="Timings of each.")] = 3,
    device: Device = "auto",
    dtype: Dtype = "auto",
    tokenizer: ModelTokenizer = None,
    json_path: JsonFile = None,
) -> None:
    """Print floating-point operations, time and state of reading, and the operations of a training step.

    Models take turns on the same random tokens. Operations are those of matrix products and attention; they and the
    state do not depend on the machine, times do.
    """
    lengths_tokens = sorted(set(parse_numbers("--lengths", lengths, "numbers of tokens, such as 1000,16000")))
    at_least("--rounds", rounds, 1)

    from lm2.cli.load_model import load_models
    from lm2.cli.provenance import describe_machine, find_commit
    from lm2.data.files import write_whole
    from lm2.eval.cost import measure_costs

    loaded = load_models(models, device, dtype, tokenizer)
    costs = measure_costs([each.model for each in loaded], lengths_tokens, training_tokens, rounds)
    named = {each.name: found for each, found in zip(loaded, costs, strict=True)}
    if json_path is not None:
        document = {
            "kind": KIND,
            "version": VERSION,
            "commit": find_commit(),
            "machine": describe_machine(loaded[0].model.device.type),
            "models": {name: found.as_dict() for name, found in named.items()},
        }
        with write_whole(json_path) as file:
            file.write(json.dumps(document, indent=1) + "\n")
    _print(named)


def read_costs(path: Path) -> dict[str, Any]:
    """By model what `--json` has written.

    Raises:
        ValueError: the file is none of this verb.
        OSError: it cannot be read.
    """
    document = json.loads(path.read_text("utf-8"))
    if (document.get("kind"), document.get("version")) != (KIND, VERSION):
        raise ValueError(f"{path} is no file of this lm2's eval cost; measure again")
    models: dict[str, Any] = document["models"]
    return models


def _print(costs: "dict[str, ModelCost]") -> None:
    from rich.table import Table

    console = table_console(plain_width=160)
    first = next(iter(costs.values()))
    table = Table(title="reading; times are ratios to the first model", title_justify="left")
    for column in ("model", "tokens", "operations", "time", "state, bytes"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, found in costs.items():
        for own, other in zip(found.reading, first.reading, strict=True):
            ratio = median(mine / theirs for mine, theirs in zip(own.seconds, other.seconds, strict=True))
            table.add_row(name, f"{own.tokens:,}", f"{own.flops:.3g}", f"{ratio:.2f}", f"{own.state_bytes:,}")
    console.print(table)
    training = Table(title=f"a training step of {first.training_tokens:,} tokens", title_justify="left")
    for column in ("model", "parameters", "operations", "to the first"):
        training.add_column(column, justify="left" if column == "model" else "right")
    for name, found in costs.items():
        ratio = found.training_flops / first.training_flops
        training.add_row(name, f"{found.parameters:,}", f"{found.training_flops:.3g}", f"{ratio:.2f}")
    console.print(training)
