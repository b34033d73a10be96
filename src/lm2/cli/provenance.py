"""Where a trained model comes from: what `lm2 train` notes beside the weights, and what results tell of it."""

import json
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm2.data.files import write_whole

if TYPE_CHECKING:
    from lm2.train.checkpoint import TrainState
    from lm2.train.config import Recipe

_FILE = "training.json"
_KIND, _VERSION = "lm2-training", 1


def record_path(model: Path) -> Path:
    """The record of a model folder. It is written last: where it is, the model is whole."""
    return model / _FILE


def write_record(model: Path, recipe: "Recipe", num_parameters: int, state: "TrainState") -> None:
    """Notes how the model in a folder was trained.

    Raises:
        OSError: it could not be written.
    """
    record = {
        "kind": _KIND,
        "version": _VERSION,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "architecture": recipe.model.architecture,
        "init": recipe.model.init,
        "tasks": sorted({task for stage in recipe.curriculum for task in stage.tasks or ()}),
        "parameters": num_parameters,
        "steps": state.progress.step,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "processes": recipe.train.processes,
        "commit": find_commit(),
        "machine": describe_machine(recipe.train.device),
    }
    with write_whole(record_path(model)) as file:
        file.write(json.dumps(record, indent=2) + "\n")


def read_record(model: Path) -> dict[str, Any] | None:
    """What `write_record` noted; None for a model that came from elsewhere.

    Raises:
        ValueError: the file is no such record.
        OSError: it cannot be read.
    """
    path = record_path(model)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; remove it if the model is not of `lm2 train`") from error
    if not isinstance(record, dict) or (record.get("kind"), record.get("version")) != (_KIND, _VERSION):
        raise ValueError(f"{path} is no record of this lm2 (version {_VERSION}); remove it, or train again")
    return record


def describe_training(record: dict[str, Any]) -> str:
    """One line for tables, such as "from scratch on qa1, 1,200 steps, 8,412,000 tokens (recipe tiny, seed 0)"."""
    begin = "from scratch" if record["init"] is None else f"from {record['init']}"
    tasks = ", ".join(f"qa{task}" for task in record["tasks"]) or "no task"
    size = f"{record['steps']:,} steps, {record['tokens']:,} tokens"
    return f"{begin} on {tasks}, {size} (recipe {record['recipe']}, seed {record['seed']})"


def find_commit() -> str:
    """The commit of this package's source tree; "+changes" where files differ from it, "not recorded" outside git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package may lie in the folder of another repository, which does not have its files.
        git("ls-files", "--error-unmatch", __file__)
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "not recorded"


def describe_machine(device: str) -> str:
    """Processor or accelerator, cores that this process may use, and torch."""
    import torch

    from lm2.cli.jobs import available_cores

    if device == "cuda" and torch.cuda.is_available():
        place = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        place = f"{_processor()}, {available_cores()} cores"
    return f"{platform.system()} {platform.machine()}, {place}, torch {torch.__version__}"


def _processor() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor()])[0] or "processor not known"
