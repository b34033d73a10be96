"""Processes that train together, started by torchrun: joining them, and wrapping a model so that they do.

What was asked for is checked against what runs, because frameworks are known to go on in silence with one process, or
with copies that never meet. Modes: "single"; "ddp", a copy of the model in each process; "fsdp", FSDP2, a shard of each
parameter in each process.
"""

import functools
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lm2.train.sections import TrainRecipe

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: Its number, from 0.
        world_size: How many there are.
        device: Where its model is.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over all processes, in float64; on the CPU, so that no accelerator is waited for."""
        total = torch.tensor(values, dtype=torch.float64)
        if dist.is_initialized():
            dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        if not dist.is_initialized():
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def together(self, action: Callable[[], T]) -> T:
        """Runs `action` everywhere and waits for all. An error in one process is an error in all of them.

        Raises:
            ValueError, OSError: what `action` raised, here or in another process.
        """
        result, problem = None, None
        try:
            result = action()
        except (ValueError, OSError) as error:
            problem = error
        problems = self.gather(None if problem is None else (isinstance(problem, OSError), str(problem)))
        if problem is not None:
            raise problem
        for found in problems:
            if found is not None:
                raise (OSError if found[0] else ValueError)(found[1])
        return result  # type: ignore[return-value]


def check_launch(train: TrainRecipe, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses a recipe that the started processes or this machine cannot run.

    Args:
        train: The recipe's section.
        environment: Where torchrun tells about processes.

    Raises:
        ValueError: another number of processes than was started, or a device that is not there; says what to do.
    """
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != train.processes:
        if train.processes == 1:
            raise ValueError(
                f"train.processes is 1, but {started} were started; start it without torchrun, or give "
                f"--set train.processes={started} --set train.parallel=ddp"
            )
        raise ValueError(
            f"train.processes is {train.processes}, but {started} {'was' if started == 1 else 'were'} started; start "
            f"it by: torchrun --standalone --nproc_per_node={train.processes} -m lm2.cli.main train RECIPE "
            "(docs/training.md has several machines)"
        )
    if train.device == "cuda":
        local_rank, found = int(environment.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= found:
            raise ValueError(
                f"train.device is 'cuda', but process {local_rank} of this machine has no device: torch finds {found}; "
                "start at most one process per device, or give --set train.device=cpu"
            )


@contextmanager
def join_processes(train: TrainRecipe) -> Iterator[Processes]:
    """Joins the processes that torchrun started, and sets torch up for a run that can be repeated; undone at the end.

    Raises:
        ValueError: see `check_launch`.
    """
    check_launch(train)
    with _settings(train):
        if train.parallel == "single":
            yield Processes(0, 1, torch.device(train.device))
            return
        device = torch.device(train.device)
        if train.device == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        # Counts and checkpoints' plans travel between CPUs in either case.
        backend = "cpu:gloo,cuda:nccl" if train.device == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        try:
            if dist.get_world_size() != train.processes:
                raise RuntimeError(f"{dist.get_world_size()} processes joined, not {train.processes}")
            yield Processes(dist.get_rank(), dist.get_world_size(), device)
        finally:
            dist.destroy_process_group()


@contextmanager
def _settings(train: TrainRecipe) -> Iterator[None]:
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    if train.device == "cpu":
        # Some gradients are otherwise added up by several threads in any order.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """A model's blocks: the entries of the list of modules that holds the most parameters.

    Raises:
        ValueError: there is no list of modules with parameters.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(parameter.numel() for parameter in blocks.parameters()) for blocks in lists]
    if not any(sizes):
        raise ValueError(
            f"a {type(model).__name__} has no torch.nn.ModuleList of blocks, which processes, checkpointing and "
            "compilation work on; put its blocks in one"
        )
    # The first of equal ones is the outermost.
    return list(lists[sizes.index(max(sizes))])


def parallelize(model: nn.Module, train: TrainRecipe, processes: Processes) -> nn.Module:
    """Moves a model to its device and wraps it: blocks checkpointed, then compiled, then sharded or copied.

    The model is changed in place; names of parameters stay as they are.

    Args:
        model: With equal weights in all processes.
        train: The recipe's section.
        processes: All that train.

    Returns:
        What to call: the model itself, or DistributedDataParallel around it.

    Raises:
        ValueError: the model has no blocks to work on.
        RuntimeError: processes have different weights, or the wrapping did not take place.
    """
    if len(set(processes.gather(_checksum(model)))) > 1:
        raise RuntimeError("processes started from different weights; is the software the same on all machines?")
    model.to(processes.device)
    is_plain = train.parallel == "single" and not (train.activation_checkpointing or train.compile)
    blocks = [] if is_plain else find_blocks(model)
    for block in blocks:
        forward: Callable[..., Any] = block.forward
        if train.activation_checkpointing:
            forward = functools.wraps(forward)(functools.partial(checkpoint, forward, use_reentrant=False))
        if train.compile:
            forward = torch.compile(forward)
        if train.parallel != "single":
            forward = _use_all_parameters(block, forward)
        block.forward = forward
    if train.parallel == "single":
        return model
    if train.parallel == "ddp":
        return DistributedDataParallel(model, device_ids=[processes.device] if train.device == "cuda" else None)
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=train.reshard_after_forward)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    _check_sharded(model, len(blocks), processes.world_size)
    return model


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside what `parallelize` returned."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The whole weights of a model, on the CPU; all processes call it together, and the first one gets them.

    Args:
        model: As given to `parallelize`.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def _checksum(model: nn.Module) -> int:
    checksum = 0
    for parameter in model.parameters():
        numbers: Any = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(numbers, checksum)
    return checksum


def _check_sharded(model: nn.Module, num_blocks: int, world_size: int) -> None:
    """FSDP is known to be left out in silence, hence a look at the parameters themselves."""
    wrapped = sum(isinstance(module, FSDPModule) for module in model.modules())
    if wrapped != num_blocks + 1:
        raise RuntimeError(f"FSDP has wrapped {wrapped} modules, not {num_blocks} blocks and the model")
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor) or not all(place.is_shard() for place in parameter.placements):
            raise RuntimeError(f"FSDP has not sharded {name}")
    held = sum(parameter.to_local().numel() for parameter in model.parameters() if isinstance(parameter, DTensor))
    total = sum(parameter.numel() for parameter in model.parameters())
    if world_size > 1 and held >= total:
        raise RuntimeError(f"FSDP keeps all {total} numbers in one of {world_size} processes")


class _Zero(torch.autograd.Function):
    """The number 0; going backward, every parameter gets a gradient of zero from it."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.like = [(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters]
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.like)


def _use_all_parameters(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward after which each of its parameters has a gradient, zero for those that nothing needed.

    A memory writes nothing in a text of one segment, so what is used differs from batch to batch and from process to
    process. DDP would wait for the missing gradients, and FSDP2 would add up gradients of different parameters.

    Args:
        block: Whose parameters are meant.
        forward: Returns a tensor, or a tuple with one in front.
    """

    @functools.wraps(forward)
    def forward_with_all(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        # Looked up in each call: FSDP puts whole parameters in place of the shards while a block runs.
        parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
        if not parameters or not torch.is_grad_enabled():
            return output
        zero = _Zero.apply(*parameters)
        return output + zero if isinstance(output, Tensor) else (output[0] + zero, *output[1:])

    return forward_with_all
