"""Optimizers and the learning rate.

Weight decay is decoupled (Loshchilov and Hutter 2019) and of matrices only: `weight`s of two or more dimensions that
multiply activations. Not decayed are
- biases, norms and scales: one number for each channel, where zero is not "simpler";
- embeddings, also when the output layer shares them: rows of rare tokens would shrink without ever being trained;
- parameters of their own, such as LM2's initial slots and slot addresses: vectors of unit width by design, whose
  direction counts (docs/log.md on the width of slots).
"""

from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lm2.train.sections import OptimizerRecipe, ScheduleRecipe


@dataclass(frozen=True)
class ParameterGroups:
    """The trained parameters of a model, by what optimizers do with them, in the model's order."""

    hidden_matrices: list[nn.Parameter]
    output_matrices: list[nn.Parameter]
    others: list[nn.Parameter]


def group_parameters(model: nn.Module) -> ParameterGroups:
    """Sorts parameters: matrices inside, the matrix of the output layer, and what is not decayed.

    Args:
        model: As built or sharded in place, but not inside a wrapper such as DDP. Frozen parameters are left out.

    Raises:
        ValueError: nothing is to be trained.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head else None
    at_output = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    groups = ParameterGroups([], [], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embedded or parameter.ndim < 2 or name.rpartition(".")[2] != "weight":
            groups.others.append(parameter)
        elif id(parameter) in at_output:
            groups.output_matrices.append(parameter)
        else:
            groups.hidden_matrices.append(parameter)
    if not any((groups.hidden_matrices, groups.output_matrices, groups.others)):
        raise ValueError("the model has no parameter that is trained; all are frozen")
    return groups


class KeepFloat32OnCPU(TorchFunctionMode):
    """Where `Tensor.bfloat16` gives a float32 copy of a tensor on the CPU.

    Muon makes its updates orthogonal by products in bfloat16, whatever the weights are. Processors without arithmetic
    of that type take 10 to 14 times as long for them as for float32 (docs/log.md), which is also the more exact one.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.bfloat16 and args[0].device.type == "cpu":
            # A copy, as bfloat16 would be one: the caller may write to it.
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for some groups of parameters and AdamW for the others, if any, as one optimizer with one state."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer | None) -> None:
        self._muon, self._adamw = muon, adamw
        self._num_muon_groups = len(muon.param_groups)
        super().__init__([*muon.param_groups, *(adamw.param_groups if adamw else ())], {})
        self._share()

    def _share(self) -> None:
        """Both work on this object's groups and state, which loading replaces."""
        self._muon.param_groups = self.param_groups[: self._num_muon_groups]
        self._muon.state = self.state
        if self._adamw:
            self._adamw.param_groups = self.param_groups[self._num_muon_groups :]
            self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "no optimizer here evaluates the loss again"
        with KeepFloat32OnCPU():
            self._muon.step()
        if self._adamw:
            self._adamw.step()


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """The recipe's optimizer for a model (see `group_parameters`). Each group has a `name`.

    Muon (Jordan et al. 2024) is for hidden matrices of two dimensions, with updates as large as AdamW's
    (Liu et al. 2025, "match_rms_adamw"), so that one learning rate and one weight decay can serve both.

    Raises:
        ValueError: nothing to train, nothing for Muon to train, or a torch without Muon.
    """
    groups = group_parameters(model)
    if recipe.name == "adamw":
        return _adamw(recipe, recipe.learning_rate, groups.hidden_matrices + groups.output_matrices, groups.others)
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer.name is 'muon', which needs torch 2.9, but this is {torch.__version__}; use adamw")
    flat = [parameter for parameter in groups.hidden_matrices if parameter.ndim == 2]
    if not flat:
        raise ValueError("optimizer.name is 'muon', but the model has no hidden matrix to train; use adamw")
    deep = [parameter for parameter in groups.hidden_matrices if parameter.ndim > 2]
    assert recipe.momentum is not None, "checked with the recipe"
    muon = torch.optim.Muon(
        [{"params": flat, "name": "hidden matrices", "peak_lr": recipe.learning_rate}],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    if not (deep or groups.output_matrices or groups.others):
        return MuonWithAdamW(muon, None)
    rate = recipe.learning_rate if recipe.adamw_learning_rate is None else recipe.adamw_learning_rate
    return MuonWithAdamW(muon, _adamw(recipe, rate, deep + groups.output_matrices, groups.others))


def set_learning_rate(optimizer: torch.optim.Optimizer, fraction: float) -> None:
    """Sets the learning rate of each group to a fraction of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * fraction


def learning_rate_at(schedule: ScheduleRecipe, step: int, tokens: int) -> float:
    """The learning rate of a step as a fraction of its peak, 0 to 1.

    Args:
        schedule: "cosine": down to `final_fraction` at the end, along half a period. "wsd": level, then linear.
        step: Steps done before it.
        tokens: Read in them.
    """
    if step < schedule.warmup_steps:
        # Step 0 learns, too.
        return (step + 1) / schedule.warmup_steps
    left = schedule.total - schedule.done(step, tokens)
    if schedule.decay is None:
        height = 0.5 - 0.5 * cos(pi * left / (schedule.total - schedule.warmup_steps))
    else:
        height = min(1.0, left / schedule.decay)
    return schedule.final_fraction + (1 - schedule.final_fraction) * height


def _adamw(
    recipe: OptimizerRecipe, peak: float, decayed: list[nn.Parameter], others: list[nn.Parameter]
) -> torch.optim.Optimizer:
    groups = [
        {"params": decayed, "name": "matrices", "weight_decay": recipe.weight_decay, "peak_lr": peak},
        {"params": others, "name": "others", "weight_decay": 0.0, "peak_lr": peak},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=peak, betas=recipe.betas, eps=recipe.epsilon
    )
