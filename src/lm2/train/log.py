"""What a run tells: lines of JSON in log.jsonl always, TensorBoard and Weights & Biases if asked for, and a live bar.

Each line of the log is complete on its own. `kind` is
- "train", every `train.log_every_steps`: the loss of that step (mean over its supervised tokens), gradient norm before
  clipping, learning rate, tokens so far, speed and memory;
- "validation": accuracy, by task too, loss, and means of the gates;
- "event": start, resume, stages, checkpoints, the end.
A run that goes on from a checkpoint first drops the lines of later steps, so every step is in the log once.
"""

import importlib.util
import json
import resource
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lm2.data.files import write_whole
from lm2.train.checking import plain
from lm2.train.config import Recipe

# What a bar shows, when it is there, and how.
_BAR_FORMATS = {
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.1%}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "memory_gigabytes": "{:.1f} GB",
}


def check_loggers(recipe: Recipe) -> None:
    """Refuses loggers that are not installed.

    Raises:
        ValueError: names the key and the package.
    """
    for is_wanted, key, package in (
        (recipe.train.tensorboard, "tensorboard", "tensorboard"),
        (recipe.train.wandb, "wandb", "wandb"),
    ):
        if is_wanted and importlib.util.find_spec(package) is None:
            raise ValueError(f"train.{key} is true, but {package} is not installed: pip install {package}")


class RunLog:
    """Writes the log of a run; in processes other than the first, nothing."""

    def __init__(self, folder: Path, recipe: Recipe, step: int, tokens: int, is_first: bool) -> None:
        """Opens the log, at `step` of a run that goes on.

        Args:
            folder: The run's.
            recipe: The run's.
            step: Steps done; later lines of an existing log are dropped.
            tokens: Read in them.
            is_first: Whether this process writes.

        Raises:
            OSError: the log cannot be written.
        """
        self.path = folder / "log.jsonl"
        self._is_first = is_first
        self._file, self._board, self._wandb = None, None, None
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not (is_first and console.is_terminal))
        self._schedule = recipe.schedule
        self._task = self._bar.add_task("", total=self._schedule.total, completed=self._schedule.done(step, tokens))
        self._shown: dict[str, str] = {}
        self._tokens, self._time = 0, time.perf_counter()
        if not is_first:
            return
        if self.path.exists():
            _drop_later(self.path, step)
        self._file = self.path.open("a", encoding="utf-8")
        if recipe.train.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if recipe.train.wandb:
            import wandb

            self._wandb = wandb.init(
                project="lm2",
                name=recipe.name,
                id=_wandb_id(folder),
                resume="allow",
                dir=str(folder),
                config=plain(recipe),
            )
        self._bar.start()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        for logger in (self._file, self._board):
            if logger is not None:
                logger.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds a line; numbers also go to the other loggers, and to the bar."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self.path} could not be written: {error}") from error
        if kind == "event":
            return
        numbers = {f"{kind}/{name}": value for name, value in _flat(values).items()}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)
        if "memory_bytes" in values:
            values["memory_gigabytes"] = values["memory_bytes"] / 1e9
        # A step's loss, not the validation's.
        shown = [name for name in _BAR_FORMATS if name in values and (kind, name) != ("validation", "loss")]
        self._shown |= {name: _BAR_FORMATS[name].format(values[name]) for name in shown}
        if kind == "validation" and values.get("gates"):
            gates = sorted(values["gates"].values())
            self._shown["gates"] = f"gates {gates[0]:.2f} to {gates[-1]:.2f}"

    def count_tokens(self, tokens: int) -> None:
        """Notes what a step has read, for the speed."""
        self._tokens += tokens

    def tokens_per_second(self) -> float:
        """The speed since it was last asked for."""
        now = time.perf_counter()
        speed = self._tokens / (now - self._time)
        self._tokens, self._time = 0, now
        return speed

    def show(self, step: int, tokens: int, stage: str) -> None:
        """Moves the bar, which counts what the schedule counts."""
        done = self._schedule.done(step, tokens)
        self._bar.update(self._task, completed=done, description=" | ".join([stage, *self._shown.values()]))


def memory_bytes(device: torch.device) -> int:
    """The most memory that was in use so far: of the accelerator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def _drop_later(path: Path, step: int) -> None:
    rows = read_log(path)
    with write_whole(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows if row["step"] <= step)


def _flat(values: dict[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            numbers |= {f"{name}/{key}": entry for key, entry in _flat(value).items()}
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[name] = value
    return numbers


def _wandb_id(folder: Path) -> str:
    """An identity of the run that outlives interruptions."""
    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")
