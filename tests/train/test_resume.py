"""A run that was stopped or killed within a step goes on as if nothing had been: real processes, real signals."""

import signal
from pathlib import Path

import pytest
import torch
from train.conftest import Reference
from train.toy_run import copy_run, log_of, run_toy, start_worker, toy_recipe

from lm2.train.checkpoint import list_checkpoints
from lm2.train.log import read_log


def assert_equals_reference(folder: Path, reference: Reference) -> None:
    result, model = run_toy(toy_recipe(), folder, resume=True)
    assert result.state.best == reference.result.state.best
    assert all(torch.equal(weight, reference.weights[name]) for name, weight in model.state_dict().items())
    assert log_of(folder, "train", "validation") == log_of(reference.folder, "train", "validation")


def steps_of(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(folder / "checkpoints")]


@pytest.mark.parametrize("step", [2, 4])
def test_resume_is_exact(reference: Reference, tmp_path: Path, step: int) -> None:
    assert_equals_reference(copy_run(reference.folder, tmp_path / "run", step), reference)


@pytest.mark.slow
def test_sigterm_saves_after_the_step(reference: Reference, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Four forward passes a step, so in the middle of step 3.
    stopped = start_worker([{"folder": str(folder), "signal": [signal.SIGTERM, 0, 10]}])
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert steps_of(folder) == [2, 3]
    assert read_log(folder / "log.jsonl")[-1]["event"] == "stopped"
    assert_equals_reference(folder, reference)


@pytest.mark.slow
def test_sigkill_loses_one_interval_at_most(reference: Reference, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # In the middle of step 4, two steps after the checkpoint.
    killed = start_worker([{"folder": str(folder), "signal": [signal.SIGKILL, 0, 14]}])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert steps_of(folder) == [2]
    assert [row["step"] for row in log_of(folder, "train")] == [1, 2, 3]
    assert_equals_reference(folder, reference)


def test_killed_before_the_first_checkpoint_starts_again(reference: Reference, tmp_path: Path) -> None:
    assert_equals_reference(copy_run(reference.folder, tmp_path / "run", step=0), reference)
