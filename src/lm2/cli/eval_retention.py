"""`lm2 eval retention`: how many segments of noise what was told outlasts."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.options import Device, Dtype, JsonFile, ModelFolders, ModelTokenizer
from lm2.cli.ranges import parse_numbers, parse_tasks
from lm2.cli.terminal import show_progress, table_console
from lm2.data.bounds import at_least

if TYPE_CHECKING:
    from lm2.cli.load_model import LoadedModel

KIND, VERSION = "lm2-retention", 1


def retention(
    models: ModelFolders,
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks, such as 1-5 or 1,3,7-9.")] = "1",
    segments: Annotated[
        str, typer.Option("--segments", help="Segments of noise between the last fact and the question.")
    ] = "0,1,4,16,64,256",
    segment_tokens: Annotated[
        int | None, typer.Option("--segment-tokens", help="Tokens of a segment; else those of the first model's.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Stories of each task.")] = 100,
    background: Annotated[
        str, typer.Option("--background", help="The noise: 'builtin', 'pg19', or a folder of .txt books.")
    ] = "builtin",
    facts: Annotated[
        str, typer.Option("--facts", help="'simulator', or a folder of original bAbI files.")
    ] = "simulator",
    seed: Annotated[int, typer.Option("--seed", help="Of stories and noise.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Stories that are read at once.")] = 10,
    device: Device = "auto",
    dtype: Dtype = "auto",
    tokenizer: ModelTokenizer = None,
    json_path: JsonFile = None,
) -> None:
    """Tell each of MODELS stories, then noise, and ask after more and more of it: what a memory forgets.

    Facts come without noise between them, and every distance asks the same questions, so what differs from no noise at
    all is what noise has washed away.
    """
    at_least("--samples", samples, 1)
    at_least("--batch-size", batch_size, 1)
    at_least("--segment-tokens", segment_tokens, 1)
    task_numbers = parse_tasks(tasks)
    distances = sorted(set(parse_numbers("--segments", segments, "numbers of segments, such as 0,4,256", at_least=0)))

    from lm2.cli.load_model import load_models
    from lm2.cli.provenance import describe_machine, find_commit
    from lm2.data.files import write_whole
    from lm2.eval.runner import keeps_bounded_state

    loaded = load_models(models, device, dtype, tokenizer)
    for each in loaded:
        if not keeps_bounded_state(each.model):
            raise ValueError(
                f"{each.name} has no bounded memory, so nothing to forget; give models that have (lm2, rmt, armt), or "
                "measure it by eval babilong"
            )
    segment_tokens = segment_tokens or int(loaded[0].model.config.segment_length)
    right = {
        each.name: {
            f"qa{task}": _measure(
                each,
                task,
                [count * segment_tokens for count in distances],
                samples,
                batch_size,
                facts,
                background,
                seed,
            )
            for task in task_numbers
        }
        for each in loaded
    }
    if json_path is not None:
        document = {
            "kind": KIND,
            "version": VERSION,
            "commit": find_commit(),
            "machine": describe_machine(loaded[0].model.device.type),
            "segment_tokens": segment_tokens,
            "segments": distances,
            "samples": samples,
            "seed": seed,
            "facts": facts,
            "background": background,
            "right": right,
        }
        with write_whole(json_path) as file:
            file.write(json.dumps(document, indent=1) + "\n")
    _print(right, distances, samples, segment_tokens)


def _measure(
    loaded: "LoadedModel",
    task: int,
    distances_tokens: list[int],
    samples: int,
    batch_size: int,
    facts: str,
    background: str,
    seed: int,
) -> list[int]:
    """How many questions are answered right after each distance."""
    from itertools import islice

    from lm2.data.babilong import open_maker
    from lm2.data.encoding import TextEncoder
    from lm2.eval.metrics import is_exact
    from lm2.eval.retention import answers_after_noise, make_stories

    encoder = TextEncoder(loaded.tokenizer, loaded.tokenizer_name)
    maker = open_maker(facts, background, encoder, seed, allow_repeats=True)
    maker.check(task, "0k", samples)
    stories = make_stories(maker, task, samples, distances_tokens[-1])
    counts = [0] * len(distances_tokens)
    with show_progress(counts=True) as progress:
        bar = progress.add_task(f"{loaded.name} qa{task}", total=samples)
        while batch := list(islice(stories, batch_size)):
            answers = answers_after_noise(loaded.model, loaded.tokenizer, encoder.encode, batch, distances_tokens)
            for place, row in enumerate(answers):
                counts[place] += sum(
                    is_exact(story.target, text, story.question, f"qa{task}")
                    for story, text in zip(batch, row, strict=True)
                )
            progress.advance(bar, len(batch))
    return counts


def _print(right: dict[str, Any], distances: list[int], samples: int, segment_tokens: int) -> None:
    from rich.table import Table

    from lm2.eval.babilong import wilson_interval

    title = f"exact match in % (95% interval) by segments of {segment_tokens} tokens of noise; n = {samples}"
    table = Table(title=title, title_justify="left")
    for column in ("model", "task", *map(str, distances)):
        table.add_column(column, justify="left" if column in ("model", "task") else "right")
    for name, by_task in right.items():
        for task, counts in by_task.items():
            cells = []
            for count in counts:
                low, high = wilson_interval(count, samples)
                cells.append(f"{100 * count / samples:.0f} ({100 * low:.0f}-{100 * high:.0f})")
            table.add_row(name, task, *cells)
    table_console(plain_width=160).print(table)
