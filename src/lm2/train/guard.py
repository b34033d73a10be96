"""What stops a run before its end: numbers that are not finite, and signals."""

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lm2.train.batches import Batch
from lm2.train.distributed import Processes


class NotFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite. The weights are still those of the step before."""


def check_finite(
    step: int,
    loss_sums: Sequence[Tensor],
    norm: float,
    batches: Sequence[Batch],
    model: nn.Module,
    processes: Processes,
) -> None:
    """Stops all processes if any has a number that is not finite; to be called before the optimizer's step.

    Args:
        step: The step, counted from 1.
        loss_sums: Of each micro-batch of this process.
        norm: Of the gradients, the same in all processes.
        batches: The micro-batches of this process.
        model: With its gradients.
        processes: All that train.

    Raises:
        NotFiniteError: names the step, the batches and the first parameter concerned.
    """
    finite = torch.isfinite(torch.stack(list(loss_sums))).tolist()
    (num_bad,) = processes.sum(float(not all(finite) or not math.isfinite(norm)))
    if not num_bad:
        return
    own = [batch.seed for batch, is_finite in zip(batches, finite, strict=True) if not is_finite]
    seeds = [seed for of_process in processes.gather(own) for seed in of_process]
    what = "the loss"
    if not seeds:
        what = "a gradient"
        seeds = [seed for of_process in processes.gather([batch.seed for batch in batches]) for seed in of_process]
    raise NotFiniteError(
        f"step {step}: {what} is not finite (gradient norm {norm}); first concerned: "
        f"{_first_not_finite(model, processes)}; batch: {'; or '.join(seeds)}. Nothing of this step was kept. Look at "
        "the learning rate, clip_norm and precision, then go on from the last checkpoint"
    )


def _first_not_finite(model: nn.Module, processes: Processes) -> str:
    """In the model's order: a weight that is not finite itself, or else a gradient."""
    own = []
    for what, number in (("weight", 0), ("gradient of", 1)):
        for place, (name, parameter) in enumerate(model.named_parameters()):
            tensor = parameter if number == 0 else parameter.grad
            # Of a sharded parameter, the part that is here.
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if local is not None and not bool(torch.isfinite(local).all()):
                own.append((number, place, f"{what} {name}"))
    found = [entry for of_process in processes.gather(own) for entry in of_process]
    return min(found)[2] if found else "no single parameter, but the norm of all"


class StopRequest:
    """Whether the run was asked to stop; `signal` is the number of the signal, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Notes the signal; a second Ctrl-C ends the process at once."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Makes SIGTERM and SIGINT (Ctrl-C) a request to stop after the step that is running."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        # Python allows handlers in the main thread only; elsewhere signals do what they did before.
        yield request
        return
    previous = {number: signal.signal(number, request.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
