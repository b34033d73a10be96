"""`lm2 params`: how many parameters a model has, where they are, and what its state costs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.sources import load_config

if TYPE_CHECKING:
    from lm2 import LM2Config

# Section 3 of the paper, with the vocabulary of Llama 3.
_PAPER_SIZE: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
    "num_memory_slots": 2048,
    "segment_length": 2048,
}
_PAPER_QUOTES = {"backbone": 1.2e9, "memory": 0.5e9, "total": 1.7e9}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


def params(
    source: Annotated[
        Path | None, typer.Argument(help="A model folder, a config .json, or a .yaml recipe with a 'model:' section.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Show both memory designs at the paper's size instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a model's parameters (backbone, memory, total), its state per sequence, and how it relates to the paper."""
    configs = _configs(source, paper)
    reports = [_report(config) for config in configs]
    if as_json:
        print(json.dumps({"models": reports, "paper": _PAPER_QUOTES}, indent=2))
    else:
        _print_table("the paper's size" if source is None else str(source), reports)


def _configs(source: Path | None, paper: bool) -> list["LM2Config"]:
    if paper + (source is not None) != 1:
        raise ValueError("give either a SOURCE (a model folder, a config .json, a .yaml recipe) or --paper")
    if source is not None:
        return [load_config(source)]

    from lm2 import LM2Config

    return [LM2Config(memory_design=design, **_PAPER_SIZE) for design in ("segment", "paper")]


def _report(config: "LM2Config") -> dict[str, Any]:
    """Numbers of one model. `state_bytes_per_sequence` holds None where the state grows with the text."""
    import torch

    from lm2 import LM2ForCausalLM

    with torch.device("meta"):
        model = LM2ForCausalLM(config)
    width, num_blocks = config.hidden_size, len(config.memory_block_indices)
    return {
        "memory_design": config.memory_design if config.has_memory else None,
        "memory_blocks": num_blocks,
        "hidden_size": width,
        "parameters": model.count_parameters(),
        "state_bytes_per_sequence": {name: _state_bytes(config, size) for name, size in _DTYPE_BYTES.items()},
        # Eq. 1-6: query, key, value, output gate, input gate, forget gate.
        "memory_of_equations_1_to_6": num_blocks * 6 * width**2,
        # Counted in the released code: a gate of twice the width and a feed-forward layer more, biases, norms.
        "memory_of_authors_code": num_blocks * (8 * width**2 + 13 * width + 2),
    }


def _state_bytes(config: "LM2Config", dtype_bytes: int) -> int | None:
    if not config.has_memory or config.attention_window is None:
        return None
    return config.num_state_bytes(dtype_bytes)


def _print_table(title: str, reports: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Parameters: {title}", title_justify="left")
    table.add_column("memory design")
    for report in reports:
        table.add_column(report["memory_design"] or "none", justify="right")

    for part in ("backbone", "memory", "total"):
        table.add_row(part, *(f"{report['parameters'][part]:,}" for report in reports))
    table.add_row("memory, in d² per block", *(_in_squares(report) for report in reports))
    for name in _DTYPE_BYTES:
        sizes = (_size(report["state_bytes_per_sequence"][name]) for report in reports)
        table.add_row(f"state per sequence, {name}", *sizes)
    console = Console()
    console.print(table)

    report = reports[0]
    console.print(
        "Paper: 1.2B backbone + 0.5B memory = 1.7B, with d = 2048 and memory in all 16 blocks. At this model's "
        f"d = {report['hidden_size']} and {report['memory_blocks']} memory blocks, Eq. 1-6 have 6 d² per block = "
        f"{_billions(report['memory_of_equations_1_to_6'])}, the authors' code about 8 d² = "
        f"{_billions(report['memory_of_authors_code'])}.",
        highlight=False,
    )


def _in_squares(report: dict[str, Any]) -> str:
    if not report["memory_blocks"]:
        return "-"
    return f"{report['parameters']['memory'] / report['memory_blocks'] / report['hidden_size'] ** 2:.2f}"


def _size(num_bytes: int | None) -> str:
    return "grows with the text" if num_bytes is None else f"{num_bytes:,} bytes"


def _billions(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e7 else f"{number:,}"
