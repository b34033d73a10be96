"""Runs of `toy_run`, one after the other, in a process that torchrun or a test started: `toy_worker.py JSON`.

JSON: a list of
    {"folder": ..., "sections": {...}, "resume": ..., "from": [folder, step], "signal": [number, rank, forward]}
With "from", the folder begins as a copy of another run's, cut off after a step. With "signal", that process sends
itself a signal in the middle of a step: before its forward pass of that number, counted from 1.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from train.toy_run import copy_run, toy_model, toy_recipe

from lm2.train.batches import BatchSource
from lm2.train.config import Recipe
from lm2.train.distributed import Processes, join_processes, whole_weights
from lm2.train.loop import train


def send_signal_at(model: nn.Module, number: int, forward: int) -> None:
    count = 0

    def hook(module: nn.Module, arguments: Any) -> None:
        nonlocal count
        count += module.training
        if count == forward:
            os.kill(os.getpid(), number)

    model.register_forward_pre_hook(hook)


def run(task: dict[str, Any], recipe: Recipe, processes: Processes) -> int:
    folder = Path(task["folder"])
    if "from" in task:
        source, step = task["from"]
        processes.together(lambda: copy_run(Path(source), folder, step) if processes.is_first else None)
    batches = BatchSource(recipe, processes.rank, processes.world_size)
    model = toy_model(recipe, batches.vocab_size)
    if "signal" in task and task["signal"][1] == processes.rank:
        send_signal_at(model, task["signal"][0], task["signal"][2])
    result = train(model, recipe, batches, folder, processes, task.get("resume", False))
    weights = whole_weights(model)
    if processes.is_first:
        torch.save(weights, folder / "weights.pt")
    return 0 if result.signal is None else 128 + result.signal


def main() -> None:
    tasks = json.loads(sys.argv[1])
    recipes = [toy_recipe(**task.get("sections", {})) for task in tasks]
    # torchrun lets its processes meet once.
    with join_processes(recipes[0].train) as processes:
        codes = [run(task, recipe, processes) for task, recipe in zip(tasks, recipes, strict=True)]
    print(f"codes {codes}")
    sys.exit(codes[-1])


if __name__ == "__main__":
    main()
