"""Checkpoints from which a run goes on exactly: written whole or not at all, and checked before they are used.

    checkpoints/step_00000100/
        __0_0.distcp, .metadata     model and optimizer (torch.distributed.checkpoint), for any number of processes
        random_0.json               random states of process 0, one file for each process
        state.json                  progress, and what else the loop keeps
        recipe.yaml                 the recipe that it belongs to
        manifest.json               size and SHA-256 of every other file, written last

A checkpoint is written under a temporary name, then renamed. The optimizer's and model's files are unpickled when
read, so use checkpoints of people you trust only.
"""

import hashlib
import json
import os
import random
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lm2.train.config import Recipe, differing_keys, dump_recipe, load_recipe
from lm2.train.curriculum import Progress, first_progress
from lm2.train.distributed import Processes

FORMAT_VERSION = 1

# What may change when a run goes on: where and how fast it runs, and what it reports. All other keys decide what is
# computed, and a run with other ones is another run.
CHANGEABLE = (
    "name",
    "train.checkpoint_every_steps",
    "train.keep_last",
    "train.keep_best",
    "train.log_every_steps",
    "train.activation_checkpointing",
    "train.compile",
    "train.micro_batch_size",
    "train.parallel",
    "train.processes",
    "train.reshard_after_forward",
    "train.device",
    "train.threads",
    "train.tensorboard",
    "train.wandb",
    "evaluation",
)
_CHANGEABLE_PREFIXES = tuple(f"{key}." for key in CHANGEABLE)


@dataclass(frozen=True)
class TrainState:
    """What the loop keeps from step to step, besides model, optimizer and random states.

    Attributes:
        progress: Steps done; also the place in the data.
        tokens: Read so far, without padding.
        seconds: Spent so far.
        accuracy: Of the validation after the last step; None if there was none.
        validated_stage: Which stage that validation was of.
        best: Stage and accuracy of the best validation so far; later stages are better.
    """

    progress: Progress
    tokens: int = 0
    seconds: float = 0.0
    accuracy: float | None = None
    validated_stage: int | None = None
    best: tuple[int, float] | None = None

    def after_step(self, progress: Progress, tokens: int, seconds: float, accuracy: float | None) -> "TrainState":
        """The state after one more step.

        Args:
            progress: After the step.
            tokens: Read in the step.
            seconds: Spent in all.
            accuracy: Of a validation after the step, if there was one.
        """
        score = None if accuracy is None else (self.progress.stage, accuracy)
        return TrainState(
            progress,
            self.tokens + tokens,
            seconds,
            accuracy,
            None if score is None else score[0],
            score if score is not None and (self.best is None or score > self.best) else self.best,
        )

    def as_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        fields = {name: value for name, value in values.items() if name != "format_version"}
        best = fields["best"]
        return cls(**{**fields, "progress": Progress(**fields["progress"]), "best": best and (best[0], best[1])})


def first_state() -> TrainState:
    """Before the first step."""
    return TrainState(first_progress())


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in a folder, the oldest first. That they are undamaged is not checked."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step_")))


def remove_unfinished(folder: Path) -> None:
    """Deletes what processes that were killed left of checkpoints that they were writing or deleting."""
    for path in folder.glob(".step_*.part"):
        shutil.rmtree(path)


def check_same_run(saved: Recipe, given: Recipe) -> list[str]:
    """Refuses to go on with another recipe.

    Returns:
        What differs and may.

    Raises:
        ValueError: names the keys that must not differ, with both values.
    """
    differing = differing_keys(saved, given)
    refused = [line for line in differing if not f"{line.partition(':')[0]}.".startswith(_CHANGEABLE_PREFIXES)]
    if refused:
        raise ValueError(
            f"the run was made by another recipe (saved != given): {'; '.join(refused)}. Go on with the same recipe, "
            "or start a new run; model.init can start it from this run's model"
        )
    return differing


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    state: TrainState,
    processes: Processes,
) -> Path:
    """Writes a checkpoint; all processes call it together.

    Returns:
        Its folder.

    Raises:
        OSError: it could not be written; earlier ones are as they were, and nothing of this one is left.
    """
    path = folder / f"step_{state.progress.step:08d}"
    part = folder / f".{path.name}.part"
    try:
        processes.together(lambda: _make_empty(part) if processes.is_first else None)
        _write_tensors(part, model, optimizer)
        processes.together(lambda: _write_state(part, recipe, state, processes))
        digests = processes.together(lambda: _digest_share(part, processes))
        manifest = {name: entry for share in processes.gather(digests) for name, entry in share.items()}
        processes.together(lambda: _finish(part, path, manifest) if processes.is_first else None)
    except OSError as error:
        if processes.is_first:
            shutil.rmtree(part, ignore_errors=True)
        good = list_checkpoints(folder)
        raise OSError(
            f"the checkpoint of step {state.progress.step} could not be written to {folder}: {error}; "
            + (f"the last good one is {good[-1].name}" if good else "there is none yet")
            + "; make room, then go on with --resume"
        ) from error
    return path


def prune_checkpoints(folder: Path, recipe: Recipe, processes: Processes) -> None:
    """Deletes all but the last `train.keep_last` checkpoints and, with `train.keep_best`, the one that validated best.

    Raises:
        OSError: one could not be deleted.
    """
    processes.together(lambda: _prune(folder, recipe) if processes.is_first else None)


def _prune(folder: Path, recipe: Recipe) -> None:
    checkpoints = list_checkpoints(folder)
    kept = set(checkpoints[-recipe.train.keep_last :])
    if recipe.train.keep_best:
        states = {path: _read_state(path) for path in checkpoints}
        validated = [path for path in checkpoints if states[path].accuracy is not None]
        if validated:
            # Later stages are better; of equally good ones the first is kept.
            kept.add(max(validated, key=lambda path: (states[path].validated_stage, states[path].accuracy)))
    for path in checkpoints:
        if path not in kept:
            # Renamed first, so that no half-deleted one is found.
            doomed = path.with_name(f".{path.name}.part")
            path.rename(doomed)
            shutil.rmtree(doomed)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, processes: Processes
) -> tuple[TrainState, list[str]] | None:
    """Goes on from the last undamaged checkpoint; all processes call it together.

    Damaged ones are reported on stderr, and renamed to end in ".damaged".

    Returns:
        The loop's state, and which keys of the recipe differ; None if there is no checkpoint yet.

    Raises:
        ValueError: another recipe's checkpoint (see `check_same_run`), or all are damaged.
    """
    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        shares = processes.gather(_find_damage(path, processes))
        damage = [problem for share in shares for problem in share]
        if not damage:
            return _restore(path, model, optimizer, recipe, processes)
        if processes.is_first:
            print(f"{path} is damaged ({'; '.join(damage)}); trying the one before it", file=sys.stderr)
            shutil.rmtree(path.with_name(f"{path.name}.damaged"), ignore_errors=True)
            path.rename(path.with_name(f"{path.name}.damaged"))
        processes.gather(None)
    if checkpoints:
        raise ValueError(f"all checkpoints in {folder} are damaged; start a new run in another folder")
    return None


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, processes: Processes
) -> tuple[TrainState, list[str]]:
    differing = check_same_run(load_recipe(path / "recipe.yaml"), recipe)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    tensors: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    with _alone():
        load(tensors, checkpoint_id=path, no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=tensors["model"], optim_state_dict=tensors["optimizer"])
    state = _read_state(path)
    if len(list(path.glob("random_*.json"))) == processes.world_size:
        _set_random_state(json.loads((path / f"random_{processes.rank}.json").read_text(encoding="utf-8")))
    else:
        seed_random(recipe.seed + state.progress.step, processes.rank)
    return state, differing


def seed_random(seed: int, rank: int) -> None:
    """Starts the random states of this process; batches do not depend on them, dropout does."""
    start = np.random.SeedSequence([seed, rank]).generate_state(3)
    random.seed(int(start[0]))
    np.random.seed(int(start[1]))
    torch.manual_seed(int(start[2]))


def _make_empty(part: Path) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)


def _write_tensors(part: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    tensors = {"model": model_state, "optimizer": optimizer_state}
    try:
        with _alone():
            save(tensors, checkpoint_id=part, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        # Raised in all processes when one fails. torch's writer reports a refused write as an error of its own.
        failure: BaseException | None = next(iter(error.failures.values()))[0]
        reason = failure
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__cause__ or reason.__context__
        free = shutil.disk_usage(part).free
        raise OSError(f"{reason or failure} ({free:,} bytes are free there)") from error


@contextmanager
def _alone() -> Iterator[None]:
    """Silences what torch says about a single process, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _write_state(part: Path, recipe: Recipe, state: TrainState, processes: Processes) -> None:
    _write_synced(part / f"random_{processes.rank}.json", json.dumps(_random_state(processes.device)))
    if processes.is_first:
        _write_synced(part / "state.json", json.dumps(state.as_json(), indent=2))
        _write_synced(part / "recipe.yaml", dump_recipe(recipe))


def _finish(part: Path, path: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({"format_version": FORMAT_VERSION, "files": manifest}, indent=2, sort_keys=True)
    _write_synced(part / "manifest.json", text)
    _sync_folder(part)
    part.rename(path)
    _sync_folder(path.parent)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest_share(part: Path, processes: Processes) -> dict[str, dict[str, Any]]:
    """Sizes and checksums of this process's share of the files."""
    files = sorted(path for path in part.iterdir() if path.is_file())
    return {path.name: _digest(path) for path in files[processes.rank :: processes.world_size]}


def _digest(path: Path) -> dict[str, Any]:
    checksum, num_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(2**20):
            checksum.update(data)
            num_bytes += len(data)
    return {"bytes": num_bytes, "sha256": checksum.hexdigest()}


def _find_damage(path: Path, processes: Processes) -> list[str]:
    """What is wrong with this process's share of the files."""
    try:
        files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return ["manifest.json is missing"] if processes.is_first else []
    except (ValueError, KeyError, TypeError):
        return ["manifest.json cannot be read"] if processes.is_first else []
    problems = []
    for name in sorted(files)[processes.rank :: processes.world_size]:
        if not (path / name).is_file():
            problems.append(f"{name} is missing")
            continue
        found = _digest(path / name)
        if found["bytes"] != files[name]["bytes"]:
            problems.append(f"{name} has {found['bytes']} bytes, not {files[name]['bytes']}")
        elif found["sha256"] != files[name]["sha256"]:
            problems.append(f"{name} has another SHA-256 than when it was written")
    return problems


def _read_state(path: Path) -> TrainState:
    return TrainState.from_json(json.loads((path / "state.json").read_text(encoding="utf-8")))


def _random_state(device: torch.device) -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": torch.cuda.get_rng_state(device).numpy().tobytes().hex() if device.type == "cuda" else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    key = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
