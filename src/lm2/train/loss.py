"""Losses and accuracy.

A step's loss is the mean over all its supervised tokens, in all micro-batches of all processes; so accumulation over
unequal micro-batches equals one large batch. For this every micro-batch gives the sum of its losses, and the loop:

    total = sum of supervised_weight(batch) over the step's micro-batches, summed over processes
    for each micro-batch:
        logits = supervised_logits(model, batch)
        loss_sum, _ = token_losses(logits, batch.labels, batch.weights)
        scale_loss(loss_sum, total, world_size).backward()
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lm2.data.stream import IGNORED_LABEL
from lm2.train.batches import Batch


def learned_places(labels: Tensor) -> Tensor:
    """Where a logit foretells something that is learned: bool [B, T], true at t where token t + 1 has a label.

    Args:
        labels: int64 [B, T], not shifted, -100 where nothing is learned. The first token cannot be.
    """
    is_learned = torch.zeros_like(labels, dtype=torch.bool)
    is_learned[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return is_learned


def supervised_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits that the loss needs: [K, V], row by row at the K learned places of the batch.

    Most tokens of a task are context. The output layer, which can cost more than all blocks of a small model, sees the
    hidden states of learned places only.

    Args:
        model: With transformers' signature; wrapped or not. A model that does not tell its output layer
            (`get_output_embeddings`) computes all logits.
        batch: On the model's device.
    """
    places = learned_places(batch.labels)
    output_layer = _output_layer(model)
    if output_layer is None:
        return _forward(model, batch)[places]

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = inputs
        return (hidden[places],)

    handle = output_layer.register_forward_pre_hook(pick)
    try:
        return _forward(model, batch)
    finally:
        handle.remove()


def _forward(model: nn.Module, batch: Batch) -> Tensor:
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits


def _output_layer(model: nn.Module) -> Any:
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    get_output_embeddings = getattr(inner, "get_output_embeddings", None)
    return get_output_embeddings() if get_output_embeddings else None


def token_losses(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The cross-entropies of the supervised tokens, summed, in float32.

    Args:
        logits: [K, V], from `supervised_logits`.
        labels: int64 [B, T] of the same batch.
        weights: float32 [B, T], how much each label counts; None for 1 each.

    Returns:
        The weighted sum of losses, and the sum of weights (without weights, the number of supervised tokens); both
        float32 scalars. The first has a gradient even where nothing is supervised, namely 0.
    """
    targets = labels[:, 1:]
    is_learned = targets != IGNORED_LABEL
    losses = cross_entropy(logits.float(), targets[is_learned], reduction="none")
    if weights is None:
        return losses.sum(), is_learned.sum().float()
    kept = weights[:, 1:][is_learned]
    return (losses * kept).sum(), kept.sum()


def supervised_weight(batch: Batch) -> float:
    """The sum of weights of a batch, known before its forward pass."""
    is_learned = batch.labels[:, 1:] != IGNORED_LABEL
    if batch.weights is None:
        return float(is_learned.sum())
    return float(batch.weights[:, 1:][is_learned].double().sum())


def scale_loss(loss_sum: Tensor, total_weight: float, world_size: int = 1) -> Tensor:
    """What a process calls `backward` on, so that gradients are those of the mean over all tokens of the step.

    Args:
        loss_sum: Of one micro-batch.
        total_weight: Of the step, over all micro-batches and processes; more than 0.
        world_size: Over how many processes gradients are averaged, as DDP and FSDP do.
    """
    return loss_sum * (world_size / total_weight)


@torch.no_grad()
def answer_accuracy(logits: Tensor, batch: Batch) -> dict[int | None, tuple[int, int]]:
    """How many questions are answered right, and how many there are, by task; None stands for primer and recall.

    Right is an answer of which every token, its end included, is the likeliest one after the true ones before it. That
    is an exact match of greedy decoding: up to the first wrong token both read the same.

    Args:
        logits: [K, V], from `supervised_logits`; a label is on every token of an answer.
        batch: With its answers; none begins at a row's first token.
    """
    spans = [(row, *span) for row, answers in enumerate(batch.answers) for span in answers]
    if not spans:
        return {}
    assert all(begin > 0 for _, begin, _ in spans), "an answer follows a question"
    numbers, rows, places = torch.tensor(
        [(number, row, place) for number, (row, begin, end) in enumerate(spans) for place in range(begin, end)],
        device=logits.device,
    ).unbind(1)
    is_learned = learned_places(batch.labels)
    assert is_learned[rows, places - 1].all(), "answers are learned"
    # Which row of `logits` foretells a token.
    order = is_learned.flatten().cumsum(0).view_as(is_learned) - 1
    is_wrong = logits[order[rows, places - 1]].argmax(-1) != batch.input_ids[rows, places]
    num_wrong = torch.zeros(len(spans), dtype=torch.long, device=logits.device).index_add_(0, numbers, is_wrong.long())
    counts: dict[int | None, tuple[int, int]] = {}
    for (row, *_), is_right in zip(spans, (num_wrong == 0).tolist(), strict=True):
        task = batch.tasks[row] if batch.tasks else None
        right, asked = counts.get(task, (0, 0))
        counts[task] = right + is_right, asked + 1
    return counts
