"""The training loop: plain PyTorch, the same for one process, for DDP and for FSDP2.

A run is a folder:

    recipe.yaml     the resolved recipe
    log.jsonl       see lm2.train.log
    checkpoints/    see lm2.train.checkpoint

What a step computes depends on the recipe and on the steps before it alone, not on the number of processes nor on the
size of micro-batches, up to the rounding of sums. On one CPU setup it is repeated bit for bit.
"""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lm2.data.files import write_whole
from lm2.train.batches import Batch, BatchSource
from lm2.train.checkpoint import (
    TrainState,
    check_same_run,
    first_state,
    load_checkpoint,
    prune_checkpoints,
    remove_unfinished,
    save_checkpoint,
    seed_random,
)
from lm2.train.config import Recipe, dump_recipe, load_recipe
from lm2.train.curriculum import advance, gave_up, is_finished
from lm2.train.distributed import Processes, parallelize, unwrap
from lm2.train.gates import GateMeans, record_gates
from lm2.train.guard import catch_signals, check_finite
from lm2.train.log import RunLog, memory_bytes
from lm2.train.loss import answer_accuracy, scale_loss, supervised_logits, supervised_weight, token_losses
from lm2.train.optim import build_optimizer, learning_rate_at, set_learning_rate


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes:
        loss: Mean over the step's supervised tokens, all processes.
        gradient_norm: Before clipping.
        learning_rate: The step's (`optimizer.learning_rate`).
        tokens: Read, without padding, all processes.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        state: After the last step.
        signal: Number of the signal that stopped the run; None if it is finished.
    """

    state: TrainState
    signal: int | None


def train(
    model: nn.Module, recipe: Recipe, batches: BatchSource, folder: Path, processes: Processes, resume: bool = False
) -> TrainingResult:
    """Trains a model as a recipe says; all processes call it together.

    Args:
        model: Called as transformers' causal models are: `model(input_ids=..., attention_mask=..., use_cache=False)`
            returns an object with `logits`. Equal in all processes; trained in place.
        recipe: The run's.
        batches: Of this process.
        folder: The run's; made if missing.
        processes: From `join_processes`.
        resume: Go on from the last undamaged checkpoint of the folder, from the start if it has none.

    Returns:
        How the run ended. SIGTERM and SIGINT end it with a checkpoint, after the step that is running.

    Raises:
        ValueError: a checkpoint of another recipe, or no undamaged one; before the first step.
        OSError: a checkpoint or the log could not be written; earlier checkpoints are as they were.
        NotFiniteError: a loss or gradient is NaN or infinite; nothing of that step was kept.
    """
    processes.together(lambda: check_folder(folder, recipe, resume))
    checkpoints = folder / "checkpoints"
    seed_random(recipe.seed, processes.rank)
    module = parallelize(model, recipe.train, processes)
    optimizer = build_optimizer(model, recipe.optimizer)
    state = first_state()
    start: dict[str, Any] = {"event": "start"}
    if resume and (loaded := load_checkpoint(checkpoints, model, optimizer, recipe, processes)):
        state, start = loaded[0], {"event": "resume", "recipe_differs": loaded[1]}
    processes.together(lambda: _prepare_folder(folder, recipe) if processes.is_first else None)
    log = processes.together(lambda: RunLog(folder, recipe, state.progress.step, state.tokens, processes.is_first))
    began = time.perf_counter() - state.seconds
    with log, catch_signals() as stop:
        log.write("event", state.progress.step, processes=processes.world_size, **start)
        signal = None
        while signal is None and not is_finished(recipe.schedule, state.progress, state.tokens):
            before, step = state, state.progress.step + 1
            report = take_step(module, optimizer, recipe, batches.micro_batches(before.progress), before, processes)
            _log_step(log, recipe, before, report, time.perf_counter() - began, processes)
            accuracy = None
            if _validates_after(before, recipe, report.tokens):
                accuracy = validate(module, recipe, batches, before, processes, log)
            progress = advance(recipe.curriculum, before.progress, accuracy)
            state = before.after_step(progress, report.tokens, time.perf_counter() - began, accuracy)
            _log_stage(log, recipe, before, state)
            signal = next((number for number in processes.gather(stop.signal) if number is not None), None)
            is_new_best = recipe.train.keep_best and state.best != before.best
            ends = is_finished(recipe.schedule, progress, state.tokens)
            is_due = step % recipe.train.checkpoint_every_steps == 0 or ends
            if is_due or is_new_best or signal is not None:
                save_checkpoint(checkpoints, model, optimizer, recipe, state, processes)
                prune_checkpoints(checkpoints, recipe, processes)
        log.write("event", state.progress.step, event="end" if signal is None else "stopped", signal=signal)
    return TrainingResult(state, signal)


def check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Refuses to overwrite a run, to go on with none, and to go on with another recipe.

    Raises:
        ValueError: says which, and what to do.
    """
    has_run = (folder / "recipe.yaml").exists()
    if resume and not has_run:
        raise ValueError(f"{folder} has no run to go on with (no recipe.yaml); leave --resume out to start one")
    if not resume and folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} exists already; "
            + ("give --resume to go on with it, or --out for another folder" if has_run else "give --out for another")
        )
    if resume:
        check_same_run(load_recipe(folder / "recipe.yaml"), recipe)


def take_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    batches: Sequence[Batch],
    state: TrainState,
    processes: Processes,
) -> StepReport:
    """One optimizer step: its gradients are those of the mean loss over all supervised tokens of all its batches.

    Args:
        module: From `parallelize`.
        optimizer: Of the model's parameters.
        recipe: The run's.
        batches: This process's micro-batches; equally many in each.
        state: Before the step.
        processes: All that train.

    Raises:
        NotFiniteError: a loss or gradient is NaN or infinite; weights and optimizer are as they were.
    """
    weight = sum(supervised_weight(batch) for batch in batches)
    num_tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    total_weight, total_tokens, total_batches = processes.sum(weight, num_tokens, len(batches))
    assert total_batches == len(batches) * processes.world_size, "processes take equally many micro-batches"
    assert total_weight > 0, "a step has something to learn"

    module.train()
    optimizer.zero_grad()
    loss_sums = []
    for number, batch in enumerate(batches):
        # DDP adds up gradients over processes once, with the last micro-batch. FSDP does it with each, so that
        # processes hold their shard of the gradients only.
        is_last = number == len(batches) - 1
        waits = isinstance(module, DistributedDataParallel) and not is_last
        with module.no_sync() if waits else nullcontext():  # type: ignore[operator]
            moved = batch.to(processes.device)
            logits = _logits(module, moved, recipe)
            loss_sum, _ = token_losses(logits, moved.labels, moved.weights)
            scale_loss(loss_sum, total_weight, processes.world_size).backward()
        loss_sums.append(loss_sum.detach())

    model = unwrap(module)
    norm = _gradient_norm(model)
    check_finite(state.progress.step + 1, loss_sums, float(norm), batches, model, processes)
    if recipe.train.clip_norm is not None:
        clip_grads_with_norm_(model.parameters(), recipe.train.clip_norm, norm)
    fraction = learning_rate_at(recipe.schedule, state.progress.step, state.tokens)
    set_learning_rate(optimizer, fraction)
    optimizer.step()
    (loss_total,) = processes.sum(float(torch.stack(loss_sums).sum()))
    return StepReport(
        loss_total / total_weight, float(norm), recipe.optimizer.learning_rate * fraction, int(total_tokens)
    )


@torch.no_grad()
def validate(
    module: nn.Module, recipe: Recipe, batches: BatchSource, state: TrainState, processes: Processes, log: RunLog
) -> float | None:
    """Accuracy on the samples that the stage of `state` is validated on, which goes to the log with loss and gates.

    Args:
        module: From `parallelize`.
        recipe: The run's.
        batches: Of this process.
        state: Before the step after which this is.
        processes: All that train.
        log: The run's.

    Returns:
        The share of questions answered right.
    """
    # DDP has nothing to add here; a sharded model gathers its weights by itself.
    model = unwrap(module)
    model.eval()
    tasks = sorted(recipe.curriculum[state.progress.stage].tasks or {})
    counts: Counter[tuple[int | None, str]] = Counter()
    loss_sum, weight = 0.0, 0.0
    with nullcontext(GateMeans()) if recipe.train.compile else record_gates(model) as gates:
        for batch in batches.validation(state.progress, recipe.train.validation_samples):
            moved = batch.to(processes.device)
            logits = _logits(model, moved, recipe)
            for task, (right, asked) in answer_accuracy(logits, moved).items():
                counts.update({(task, "right"): right, (task, "asked"): asked})
            loss_of_batch, weight_of_batch = token_losses(logits, moved.labels, moved.weights)
            loss_sum, weight = loss_sum + float(loss_of_batch), weight + float(weight_of_batch)
    kinds: list[int | None] = [*tasks] or [None]
    total_loss, total_weight, *totals = processes.sum(
        loss_sum, weight, *(counts[kind, what] for what in ("right", "asked") for kind in kinds)
    )
    right_of, asked_of = (dict(zip(kinds, part, strict=True)) for part in (totals[: len(kinds)], totals[len(kinds) :]))
    total_asked = sum(asked_of.values())
    assert total_asked > 0, "validation asks questions"
    accuracy = sum(right_of.values()) / total_asked
    log.write(
        "validation",
        state.progress.step + 1,
        stage=recipe.curriculum[state.progress.stage].name,
        accuracy=accuracy,
        accuracy_by_task={str(task): right_of[task] / asked_of[task] for task in tasks if asked_of[task]},
        questions=int(total_asked),
        loss=total_loss / total_weight,
        gates=gates.means(processes),
    )
    return accuracy


def _logits(module: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
    is_autocast = recipe.train.precision == "bfloat16"
    with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16, enabled=is_autocast):
        return supervised_logits(module, batch)


def _gradient_norm(model: nn.Module) -> Tensor:
    """Over all parameters and shards. What the step's tokens did not use has a gradient of zero, in every mode."""
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    norm = get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _validates_after(state: TrainState, recipe: Recipe, tokens: int) -> bool:
    """Whether the step after `state` is validated: every so many, and where a stage or the run ends.

    The step has read `tokens`.
    """
    if recipe.train.validate_every_steps is None:
        return False
    progress = advance(recipe.curriculum, state.progress, None)
    ends = progress.stage != state.progress.stage or is_finished(recipe.schedule, progress, state.tokens + tokens)
    return ends or progress.step % recipe.train.validate_every_steps == 0


def _log_step(
    log: RunLog, recipe: Recipe, before: TrainState, report: StepReport, seconds: float, processes: Processes
) -> None:
    step = before.progress.step + 1
    log.count_tokens(report.tokens)
    if step % recipe.train.log_every_steps == 0:
        log.write(
            "train",
            step,
            stage=recipe.curriculum[before.progress.stage].name,
            loss=report.loss,
            gradient_norm=report.gradient_norm,
            learning_rate=report.learning_rate,
            tokens=before.tokens + report.tokens,
            seconds=seconds,
            tokens_per_second=log.tokens_per_second(),
            memory_bytes=memory_bytes(processes.device),
        )


def _log_stage(log: RunLog, recipe: Recipe, before: TrainState, state: TrainState) -> None:
    step, stage = state.progress.step, recipe.curriculum[before.progress.stage].name
    if gave_up(recipe.curriculum, before.progress, state.accuracy):
        log.write("event", step, event="gave up", stage=stage, accuracy=state.accuracy)
    if state.progress.stage != before.progress.stage:
        log.write("event", step, event="stage", stage=recipe.curriculum[state.progress.stage].name)
    log.show(step, state.tokens, stage)


def _prepare_folder(folder: Path, recipe: Recipe) -> None:
    remove_unfinished(folder / "checkpoints")
    with write_whole(folder / "recipe.yaml") as file:
        file.write(dump_recipe(recipe))
