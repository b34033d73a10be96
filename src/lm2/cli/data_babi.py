"""`lm2 data babi`: new bAbI stories in files of the original format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm2.cli.ranges import parse_tasks
from lm2.cli.terminal import show_progress

if TYPE_CHECKING:
    from rich.progress import Progress

_SPLITS = ("train", "test")


def babi(
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    stories: Annotated[int, typer.Option("--stories", help="Stories of each task.")],
    task: Annotated[str, typer.Option("--task", help="Tasks, such as 1-3,7.")] = "1-20",
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives other stories.")] = 0,
    split: Annotated[str, typer.Option("--split", help="The name's last part: train or test.")] = "train",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Write simulated stories of bAbI tasks, one file per task, named as the original files are."""
    tasks = parse_tasks(task)
    if stories < 1:
        raise ValueError(f"--stories is {stories}, but must be 1 or more")
    if seed < 0:
        raise ValueError(f"--seed is {seed}, but must be 0 or more")
    if split not in _SPLITS:
        raise ValueError(f"--split is {split!r}, but must be one of {', '.join(_SPLITS)}")

    from lm2.data.babi.story import TASK_NAMES

    paths = {number: out / f"qa{number}_{TASK_NAMES[number]}_{split}.txt" for number in tasks}
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, which is not a folder")
    existing = [path for path in paths.values() if path.exists()]
    if existing and not overwrite:
        raise ValueError(f"{existing[0]} exists already; give --overwrite to replace it, or another --out")

    with show_progress() as progress:
        for number, path in paths.items():
            _write(path, number, stories, seed, progress)
    print(f"{len(paths)} files of {stories:,} stories in {out}")


def _write(path: Path, task: int, num_stories: int, seed: int, progress: "Progress") -> None:
    from lm2.data.babi.simulator import make_story
    from lm2.data.babi.story import format_story
    from lm2.data.files import write_whole

    bar = progress.add_task(path.name, total=num_stories)
    with write_whole(path) as file:
        for index in range(num_stories):
            file.write(format_story(make_story(task, seed, index)))
            progress.advance(bar)
