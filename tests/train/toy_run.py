"""A run of seconds: a recipe, a model of two blocks with memory, and training in this process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lm2 import LM2Config, LM2ForCausalLM
from lm2.train.batches import BatchSource
from lm2.train.checking import build
from lm2.train.checkpoint import list_checkpoints
from lm2.train.config import Recipe
from lm2.train.distributed import join_processes
from lm2.train.log import read_log
from lm2.train.loop import TrainingResult, train

TESTS = Path(__file__).resolve().parent.parent

# What a log says about time and machine, not about the run.
MEASURED = {"seconds", "tokens_per_second", "memory_bytes"}


def toy_recipe(**sections: Any) -> Recipe:
    """A recipe; sections given are merged into it, such as `train={"batch_size": 8}`."""
    values: dict[str, Any] = {
        "name": "toy",
        "seed": 3,
        "model": {
            "architecture": "lm2",
            "config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "num_memory_slots": 8,
                "num_memory_heads": 2,
                "segment_length": 64,
            },
        },
        "data": {"background": "builtin", "segment_length_tokens": 64},
        "curriculum": [
            {
                "name": "one segment",
                "tasks": {1: 1.0},
                "segments": {"max": 1},
                "until": {"steps": 3},
            },
            {"name": "up to three", "tasks": {1: 1.0, 2: 1.0}, "segments": {"max": 3}},
        ],
        # With the usual epsilon Adam makes a full step of a gradient that is nothing but rounding, and runs that differ
        # in the order of sums could not be compared.
        "optimizer": {"name": "adamw", "learning_rate": 3e-3, "epsilon": 1e-3},
        "schedule": {"name": "cosine", "total_steps": 6, "warmup_steps": 2},
        "train": {
            "batch_size": 8,
            "micro_batch_size": 2,
            "validate_every_steps": 3,
            "validation_samples": 8,
            "checkpoint_every_steps": 2,
            "keep_last": 10,
            "log_every_steps": 1,
            "threads": 1,
        },
        "evaluation": {"tasks": [1], "lengths": ["0k"]},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(section, dict) else section
    return build(Recipe, values)


def toy_model(recipe: Recipe, vocab_size: int) -> LM2ForCausalLM:
    torch.manual_seed(recipe.seed)
    return LM2ForCausalLM(LM2Config(vocab_size=vocab_size, **recipe.model.config))


def run_toy(recipe: Recipe, folder: Path, resume: bool = False) -> tuple[TrainingResult, LM2ForCausalLM]:
    """Trains in this process, or in this one of those that torchrun started."""
    with join_processes(recipe.train) as processes:
        batches = BatchSource(recipe, processes.rank, processes.world_size)
        model = toy_model(recipe, batches.vocab_size)
        result = train(model, recipe, batches, folder, processes, resume)
        return result, model


def copy_run(source: Path, folder: Path, step: int) -> Path:
    """A run as it would be if it had been killed after the checkpoint of `step`, but before the next."""
    shutil.copytree(source, folder)
    for path in list_checkpoints(folder / "checkpoints"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    return folder


def start_worker(tasks: list[dict[str, Any]], processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs `toy_worker.py`, by torchrun for several processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(TESTS / "train" / "toy_worker.py")]
    paths = [str(TESTS.parent / "src"), str(TESTS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command.append(json.dumps(tasks))
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def log_of(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """The lines of a run's log without what depends on the machine."""
    rows = read_log(folder / "log.jsonl")
    return [{key: row[key] for key in row if key not in MEASURED} for row in rows if row["kind"] in (kinds or row)]
