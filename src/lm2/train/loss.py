"""Losses and accuracy.

A step's loss is the mean over all its supervised tokens, in all micro-batches of all processes; so accumulation over
unequal micro-batches equals one large batch. For this every micro-batch gives the sum of its losses, and the loop:

    total = sum of supervised_weight(batch) over the step's micro-batches, summed over processes
    for each micro-batch:
        loss_sum, _ = token_losses(logits, batch.labels, batch.weights)
        scale_loss(loss_sum, total, world_size).backward()
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lm2.data.stream import IGNORED_LABEL
from lm2.train.batches import Batch


def token_losses(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The cross-entropies of the supervised tokens, summed, in float32.

    Args:
        logits: [B, T, V]; position t foretells token t + 1.
        labels: int64 [B, T], not shifted, -100 where nothing is learned. The first token cannot be.
        weights: float32 [B, T], how much each label counts; None for 1 each.

    Returns:
        The weighted sum of losses, and the sum of weights (without weights, the number of supervised tokens); both
        float32 scalars. The first has a gradient even where nothing is supervised, namely 0.
    """
    targets = labels[:, 1:]
    is_learned = targets != IGNORED_LABEL
    # Picked first: converting the logits of all tokens would take the most memory of a step.
    losses = cross_entropy(logits[:, :-1][is_learned].float(), targets[is_learned], reduction="none")
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
def answer_accuracy(logits: Tensor, batch: Batch) -> tuple[int, int]:
    """How many questions are answered right, and how many there are.

    Right is an answer of which every token, its end included, is the likeliest one after the true ones before it. That
    is an exact match of greedy decoding: up to the first wrong token both read the same.

    Args:
        logits: [B, T, V], on the device of `batch`.
        batch: With its answers; none begins at a row's first token.
    """
    spans = [(row, *span) for row, answers in enumerate(batch.answers) for span in answers]
    if not spans:
        return 0, 0
    assert all(begin > 0 for _, begin, _ in spans), "an answer follows a question"
    places = [(number, row, place) for number, (row, begin, end) in enumerate(spans) for place in range(begin, end)]
    number, row, place = torch.tensor(places, device=logits.device).unbind(1)
    is_wrong = logits[row, place - 1].argmax(-1) != batch.input_ids[row, place]
    num_wrong = torch.zeros(len(spans), dtype=torch.long, device=logits.device).index_add_(0, number, is_wrong.long())
    return int((num_wrong == 0).sum()), len(spans)
