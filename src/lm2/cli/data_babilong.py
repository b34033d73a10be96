"""`lm2 data babilong`: samples of any task and length, in the official file layout."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.ranges import parse_tasks
from lm2.cli.terminal import show_progress
from lm2.data.bounds import at_least

if TYPE_CHECKING:
    from lm2.data.babilong import Sample, SampleMaker

_METADATA_VERSION = 1


def babilong(
    out: Annotated[Path, typer.Option("--out", help="Folder to write into; made if missing.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks, such as 1-5 or 1,3,7-9.")] = "1-5",
    lengths: Annotated[str, typer.Option("--lengths", help="Lengths, such as 0k,4k,1M; 0k is facts only.")] = "0k,1k",
    samples: Annotated[int, typer.Option("--samples", help="Samples for each task and length.")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random choices.")] = 0,
    split: Annotated[str, typer.Option("--split", help="train or test, of facts and of background.")] = "test",
    facts: Annotated[
        str, typer.Option("--facts", help="'simulator', or a folder of original bAbI files.")
    ] = "simulator",
    background: Annotated[
        str | None, typer.Option("--background", help="'builtin' (default), 'pg19', or a folder of .txt books.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="What lengths are counted by: 'builtin', or a tokenizer folder.")
    ] = "builtin",
    file_format: Annotated[str, typer.Option("--format", help="json or parquet.")] = "json",
    allow_repeats: Annotated[
        bool, typer.Option("--allow-repeats", help="Use background again when a sample has used all of it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace cells that exist.")] = False,
) -> None:
    """Write BABILong samples to OUT/data/qaN/LENGTH.json, a file for each task and length."""
    from lm2.data.babilong import open_maker
    from lm2.data.encoding import TextEncoder
    from lm2.data.facts import check_split
    from lm2.data.layout import cell_path, check_folder, check_format, write_card
    from lm2.data.lengths import context_tokens, parse_lengths
    from lm2.data.tokenizer import load_tokenizer

    task_numbers, length_names = parse_tasks(tasks), parse_lengths(lengths)
    at_least("--samples", samples, 1)
    check_split(split)
    check_format(file_format)
    needs_background = any(map(context_tokens, length_names))
    if not needs_background and (background is not None or allow_repeats):
        raise ValueError("--background and --allow-repeats have no effect at 0k, which is facts only; leave them out")
    cells = [(task, length) for length in length_names for task in task_numbers]
    if out.exists():
        check_folder(out, file_format)
        existing = [path for cell in cells if (path := cell_path(out, *cell, file_format)).exists()]
        if existing and not overwrite:
            raise ValueError(
                f"{existing[0]} exists ({len(existing)} of {len(cells)} cells do); give --overwrite to replace"
            )

    encoder = TextEncoder(load_tokenizer(tokenizer), tokenizer)
    source = (background or "builtin") if needs_background else None
    maker = open_maker(facts, source, encoder, seed, split, allow_repeats)
    for task, length in cells:
        maker.check(task, length, samples)

    repeating = _write_cells(out, cells, samples, maker, file_format)
    write_card(out)
    print(
        f"wrote {len(cells)} cells of {samples} samples to {out}; lengths counted with tokenizer {encoder.name} "
        f"({encoder.fingerprint[:12]}), facts from {maker.facts.name}, background "
        f"{maker.background.name if maker.background else 'none (facts only)'}"
    )
    if repeating:
        print(f"{repeating} samples have background sentences more than once (metadata/ says which cells)")


def _write_cells(out: Path, cells: list[tuple[int, str]], samples: int, maker: "SampleMaker", file_format: str) -> int:
    """Writes every cell with its metadata; returns how many samples repeat background."""
    from lm2.data.layout import cell_path, write_metadata, write_rows

    repeating = 0
    with show_progress(counts=True) as progress:
        bar = progress.add_task("", total=len(cells) * samples)
        for task, length in cells:
            progress.update(bar, description=f"qa{task} {length}")
            repeats: list[bool] = []

            def rows(task: int = task, length: str = length, repeats: list[bool] = repeats) -> "Iterator[Sample]":
                for index in range(samples):
                    sample = maker.sample(task, length, index)
                    repeats.append(sample.repeats)
                    yield sample
                    progress.advance(bar)

            write_rows(cell_path(out, task, length, file_format), rows())
            write_metadata(out, task, length, _metadata(maker, task, length, repeats))
            repeating += sum(repeats)
    return repeating


def _metadata(maker: "SampleMaker", task: int, length: str, repeats: list[bool]) -> dict[str, Any]:
    import lm2
    from lm2.data.lengths import context_tokens

    num_tokens = context_tokens(length)
    return {
        "format_version": _METADATA_VERSION,
        "lm2_version": lm2.__version__,
        "command": shlex.join(["lm2", *sys.argv[1:]]),
        "task": task,
        "length": length,
        "context_tokens": num_tokens or None,
        "samples": len(repeats),
        "seed": maker.seed,
        "split": maker.split,
        "facts": maker.facts.name,
        "background": maker.background.name if maker.background and num_tokens else None,
        "tokenizer": {"name": maker.encoder.name, "fingerprint_sha256": maker.encoder.fingerprint},
        "repeats_allowed": maker.allow_repeats,
        "samples_with_repeats": sum(repeats),
    }
