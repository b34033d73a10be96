"""Checkpoints are whole or not there, damaged ones are noticed, and the right ones are kept."""

import json
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train.conftest import Reference
from train.toy_run import copy_run, toy_model, toy_recipe

from lm2.train.checkpoint import (
    TrainState,
    check_same_run,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    seed_random,
)
from lm2.train.curriculum import Progress
from lm2.train.distributed import Processes
from lm2.train.optim import build_optimizer

ALONE = Processes(0, 1, torch.device("cpu"))
VOCAB_SIZE = 300


def parts(recipe: Any, vocab_size: int = VOCAB_SIZE) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = toy_model(recipe, vocab_size)
    return model, build_optimizer(model, recipe.optimizer)


def load_copy(reference: Reference, folder: Path) -> TrainState:
    recipe = toy_recipe()
    vocab_size = reference.model.config.vocab_size
    loaded = load_checkpoint(folder / "checkpoints", *parts(recipe, vocab_size), recipe, ALONE)
    assert loaded is not None
    return loaded[0]


def truncate(path: Path) -> None:
    (path / "__0_0.distcp").open("r+b").truncate(1000)


def flip_a_byte(path: Path) -> None:
    with (path / "__0_0.distcp").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))


def cut_manifest(path: Path) -> None:
    text = (path / "manifest.json").read_text(encoding="utf-8")
    (path / "manifest.json").write_text(text[:100], encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "__0_0.distcp has 1000 bytes, not"),
        (flip_a_byte, "__0_0.distcp has another SHA-256"),
        (lambda path: (path / "random_0.json").unlink(), "random_0.json is missing"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (cut_manifest, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    reference: Reference,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    folder = copy_run(reference.folder, tmp_path / "run", step=6)
    damage(folder / "checkpoints" / "step_00000006")
    assert load_copy(reference, folder).progress.step == 4
    assert message in capsys.readouterr().err
    # It is out of the way of the new one, and does not count as one that is kept.
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step_00000002", "step_00000004", "step_00000006.damaged"}


def test_no_undamaged_checkpoint_is_an_error(reference: Reference, tmp_path: Path) -> None:
    folder = copy_run(reference.folder, tmp_path / "run", step=2)
    truncate(folder / "checkpoints" / "step_00000002")
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged"):
        load_copy(reference, folder)


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    recipe = toy_recipe()
    model, optimizer = parts(recipe)
    # Three segments, so that every parameter has a gradient.
    model(input_ids=torch.arange(140).unsqueeze(0)).logits.square().sum().backward()
    optimizer.step()
    seed_random(11, 0)
    state = TrainState(Progress(1, 2, 5), 777, 1.5, 0.25, 1, (1, 0.75))
    save_checkpoint(tmp_path, model, optimizer, recipe, state, ALONE)
    drawn = random.random(), np.random.random(), torch.rand(3).tolist()

    other, other_optimizer = parts(replace(recipe, seed=99))
    loaded = load_checkpoint(tmp_path, other, other_optimizer, recipe, ALONE)
    assert loaded == (state, [])
    assert (random.random(), np.random.random(), torch.rand(3).tolist()) == drawn
    for (name, weight), (_, expected) in zip(other.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(weight, expected), name
        assert optimizer.state[expected]["exp_avg"].any(), name
        for key, value in optimizer.state[expected].items():
            assert torch.equal(other_optimizer.state[weight][key], value), (name, key)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """The system refuses to write larger files: what a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("num_bytes", [500, 100_000])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, num_bytes: int) -> None:
    recipe = toy_recipe()
    model, optimizer = parts(recipe)
    state = TrainState(Progress(0, 2, 2))
    save_checkpoint(tmp_path, model, optimizer, recipe, state, ALONE)
    with largest_file(num_bytes), pytest.raises(OSError, match="checkpoint of step 4 could not be written") as caught:
        save_checkpoint(tmp_path, model, optimizer, recipe, TrainState(Progress(1, 1, 4)), ALONE)
    assert "File too large" in str(caught.value)
    assert "the last good one is step_00000002" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]
    assert load_checkpoint(tmp_path, model, optimizer, recipe, ALONE) == (state, [])


def make_checkpoints(folder: Path, *accuracies: tuple[int, float | None]) -> None:
    """Checkpoints of steps 1, 2 and so on, as far as pruning looks at them."""
    for step, (stage, accuracy) in enumerate(accuracies, start=1):
        path = folder / f"step_{step:08d}"
        path.mkdir(parents=True)
        state = TrainState(Progress(stage, 0, step), accuracy=accuracy, validated_stage=stage)
        (path / "state.json").write_text(json.dumps(state.as_json()), encoding="utf-8")


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "kept"),
    [(1, False, [6]), (2, False, [5, 6]), (1, True, [4, 6]), (3, True, [4, 5, 6]), (9, False, [1, 2, 3, 4, 5, 6])],
)
def test_the_last_and_the_best_are_kept(tmp_path: Path, keep_last: int, keep_best: bool, kept: list[int]) -> None:
    # A later stage is better than an earlier one, and of equals the first is kept.
    make_checkpoints(tmp_path, (0, 0.9), (0, 1.0), (1, 0.2), (1, 0.8), (1, 0.8), (1, None))
    prune_checkpoints(tmp_path, toy_recipe(train={"keep_last": keep_last, "keep_best": keep_best}), ALONE)
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == kept
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_another_recipe_is_refused_and_its_keys_are_shown() -> None:
    other = toy_recipe(
        train={"batch_size": 16},
        curriculum=[{"name": "long", "tasks": {1: 1.0}, "segments": {"max": 3}}],
    )
    with pytest.raises(ValueError, match="another recipe") as caught:
        check_same_run(toy_recipe(), other)
    assert "train.batch_size: 8 != 16" in str(caught.value)
    assert "curriculum.1.name: up to three != (absent)" in str(caught.value)


def test_where_and_how_fast_may_differ() -> None:
    other = toy_recipe(name="other", train={"parallel": "ddp", "processes": 2, "log_every_steps": 5, "keep_last": 1})
    assert {line.split(":")[0] for line in check_same_run(toy_recipe(), other)} == {
        "name",
        "train.parallel",
        "train.processes",
        "train.log_every_steps",
        "train.keep_last",
    }


def test_what_was_being_written_is_no_checkpoint(reference: Reference, tmp_path: Path) -> None:
    folder = copy_run(reference.folder, tmp_path / "run", step=4)
    whole = folder / "checkpoints" / "step_00000004"
    shutil.move(whole, whole.with_name(".step_00000004.part"))
    assert load_copy(reference, folder).progress.step == 2
