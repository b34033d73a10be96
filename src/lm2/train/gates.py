"""How far a model's gates are open: known by their names, so that any model with gates is seen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lm2.train.distributed import Processes

_GATE_SUFFIX = "_gate"


class GateMeans:
    """Sums over the calls of each gate."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}

    def add(self, name: str, mean: Tensor) -> None:
        self._sums[name] = self._sums[name] + mean if name in self._sums else mean
        self._calls[name] = self._calls.get(name, 0) + 1

    def means(self, processes: Processes) -> dict[str, float]:
        """Of each gate, over the calls in all processes."""
        own = {name: (float(total), self._calls[name]) for name, total in self._sums.items()}
        everywhere = processes.gather(own)
        names = sorted({name for of_process in everywhere for name in of_process})
        means = {}
        for name in names:
            found = [of_process[name] for of_process in everywhere if name in of_process]
            means[name] = sum(total for total, _ in found) / sum(calls for _, calls in found)
        return means


@contextmanager
def record_gates(model: nn.Module) -> Iterator[GateMeans]:
    """Records gates while the model runs: linear layers named `..._gate`, whose sigmoid is the gate.

    Padding is counted like tokens. Not for compiled blocks, which hooks would have compiled again and again.
    """
    recorded = GateMeans()
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(_GATE_SUFFIX):

            def hook(module: nn.Module, arguments: Any, output: Tensor, name: str = name) -> None:
                recorded.add(name, output.detach().float().sigmoid().mean())

            handles.append(module.register_forward_hook(hook))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
