"""Two processes compute what one does, and what was asked for is what runs."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from train.conftest import Reference
from train.toy_run import copy_run, log_of, run_toy, start_worker, toy_model, toy_recipe

from lm2.train import distributed
from lm2.train.distributed import Processes, check_launch, find_blocks, join_processes, parallelize
from lm2.train.log import read_log

# Sums in another order: float32 rounding of gradients, which six steps of Adam multiply by at most 3 each.
TOLERANCE = {"rtol": 0.0, "atol": 5e-7}
# torch's float32 norm of one large tensor is off by 1.2e-5 itself (against float64); of its shards by less.
NORM_TOLERANCE = 3e-5

DDP = {"train": {"parallel": "ddp", "processes": 2}}
FSDP = {"train": {"parallel": "fsdp", "processes": 2, "activation_checkpointing": True}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs under two processes, by one torchrun."""
    base = tmp_path_factory.mktemp("two")
    folders = {name: base / name for name in ("ddp", "ddp stopped", "fsdp", "fsdp resumed")}
    stopped = str(folders["ddp stopped"])
    tasks: list[dict[str, Any]] = [
        {"folder": str(folders["ddp"]), "sections": DDP},
        # Two forward passes a step, so in the middle of step 3, and in one of the processes only.
        {"folder": stopped, "sections": DDP, "signal": [signal.SIGTERM, 1, 6]},
        {"folder": stopped, "sections": DDP, "resume": True},
        {"folder": str(folders["fsdp"]), "sections": FSDP},
        {
            "folder": str(folders["fsdp resumed"]),
            "sections": FSDP,
            "from": [str(folders["fsdp"]), 2],
            "resume": True,
        },
    ]
    done = start_worker(tasks, processes=2)
    assert done.returncode == 0, done.stderr
    assert f"codes [0, {128 + signal.SIGTERM}, 0, 0, 0]" in done.stdout
    return folders


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_equal_one(runs: dict[str, Path], reference: Reference, mode: str) -> None:
    weights = weights_of(runs[mode])
    assert set(weights) == set(reference.weights)
    for name, weight in reference.weights.items():
        torch.testing.assert_close(weights[name], weight, **TOLERANCE)
    rows, expected = (log_of(folder, "train", "validation") for folder in (runs[mode], reference.folder))
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=5e-7)
        assert row.get("accuracy") == wanted.get("accuracy")
        assert row.get("tokens") == wanted.get("tokens")
        if row["kind"] == "train":
            assert row["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=NORM_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("whole", "resumed"), [("ddp", "ddp stopped"), ("fsdp", "fsdp resumed")])
def test_resume_under_two_processes_is_exact(runs: dict[str, Path], whole: str, resumed: str) -> None:
    expected, weights = weights_of(runs[whole]), weights_of(runs[resumed])
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert log_of(runs[resumed], "train", "validation") == log_of(runs[whole], "train", "validation")
    assert any(row.get("event") == "resume" for row in read_log(runs[resumed] / "log.jsonl"))


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(runs: dict[str, Path], reference: Reference, tmp_path: Path) -> None:
    folder = copy_run(runs["fsdp"], tmp_path / "run", step=4)
    _, model = run_toy(toy_recipe(), folder, resume=True)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, reference.weights[name], **TOLERANCE)
    (event,) = [row for row in read_log(folder / "log.jsonl") if row.get("event") == "resume"]
    assert "train.processes: 2 != 1" in event["recipe_differs"]


@pytest.mark.parametrize(("parallel", "expected"), [("ddp", DistributedDataParallel), ("fsdp", torch.nn.Module)])
def test_modes_really_wrap(parallel: str, expected: type) -> None:
    recipe = toy_recipe(train={"parallel": parallel})
    with join_processes(recipe.train) as processes:
        model = toy_model(recipe, 300)
        module = parallelize(model, recipe.train, processes)
        assert isinstance(module, expected)
        is_sharded = [isinstance(parameter, DTensor) for parameter in model.parameters()]
        assert all(is_sharded) if parallel == "fsdp" else not any(is_sharded)


def test_fsdp_left_out_in_silence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe(train={"parallel": "fsdp"})
    monkeypatch.setattr(distributed, "fully_shard", lambda module, **options: module)
    with join_processes(recipe.train) as processes, pytest.raises(RuntimeError, match="FSDP has wrapped 0 modules"):
        parallelize(toy_model(recipe, 300), recipe.train, processes)


def test_different_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe()
    processes = Processes(0, 1, torch.device("cpu"))
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, value + 1])
    with pytest.raises(RuntimeError, match="different weights"):
        parallelize(toy_model(recipe, 300), recipe.train, processes)


def test_every_parameter_gets_a_gradient_whatever_the_batch_uses() -> None:
    """A text of one segment writes nothing; what it does not use must still meet in all processes."""
    recipe = toy_recipe(train={"parallel": "ddp"})
    input_ids = torch.arange(2, 12).unsqueeze(0)
    gradients = {}
    for mode in ("single", "ddp"):
        with join_processes(toy_recipe(train={"parallel": mode}).train) as processes:
            model = toy_model(recipe, 300)
            module = parallelize(model, toy_recipe(train={"parallel": mode}).train, processes)
            module(input_ids=input_ids, use_cache=False).logits.sum().backward()
            gradients[mode] = {name: parameter.grad for name, parameter in model.named_parameters()}
    unused = {name for name, gradient in gradients["single"].items() if gradient is None}
    assert any("memory.write" in name for name in unused)
    for name, gradient in gradients["ddp"].items():
        assert gradient is not None
        if name in unused:
            assert not gradient.any()
        else:
            torch.testing.assert_close(gradient, gradients["single"][name])


@pytest.mark.parametrize(
    ("train", "environment", "message"),
    [
        ({"parallel": "ddp", "processes": 4}, {}, "1 was started; start it by: torchrun .*--nproc_per_node=4"),
        ({"parallel": "fsdp", "processes": 4}, {"WORLD_SIZE": "2"}, "train.processes is 4, but 2 were started"),
        ({}, {"WORLD_SIZE": "2"}, "train.processes is 1, but 2 were started.*--set train.processes=2"),
    ],
)
def test_another_number_of_processes_is_refused(train: dict, environment: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_launch(toy_recipe(train=train).train, environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.device is 'cuda', but process 0 .* torch finds 0"):
        check_launch(toy_recipe(train={"device": "cuda"}).train, {})


def test_blocks_are_the_largest_list_of_modules() -> None:
    model = toy_model(toy_recipe(), 300)
    assert find_blocks(model) == list(model.model.layers)
    with pytest.raises(ValueError, match=r"a Linear has no torch\.nn\.ModuleList of blocks"):
        find_blocks(torch.nn.Linear(2, 2))
