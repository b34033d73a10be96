"""
No model predicts what cannot be predicted. A memory that leaks the future does, once it is trained: then its loss on
uniform random tokens falls below ln 4 = 1.3863, which no test of a fresh model would notice as clearly.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from contract.subjects import SEGMENT, SUBJECT
from torch import Tensor

LETTERS = 4
FLOOR = math.log(LETTERS)
NUM_TOKENS = 3 * SEGMENT
NUM_STEPS = 250
HALF = NUM_TOKENS // 2
designs = pytest.mark.parametrize("name", ["default", "paper"])


def uniform(num_rows: int) -> Tensor:
    return torch.randint(LETTERS, (num_rows, NUM_TOKENS))


def second_half_is_one_symbol(num_rows: int) -> Tensor:
    """Up to the boundary nothing can be predicted; behind it, everything: the floor is ln 4 there, and 0 here."""
    ids = uniform(num_rows)
    ids[:, HALF:] = ids[:, HALF : HALF + 1]
    return ids


def losses(model, ids: Tensor) -> Tensor:
    """[B, T - 1]: at position t, of predicting token t + 1."""
    logits = model(ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def trained(name: str, sample, batch_size: int):
    torch.manual_seed(0)
    # Large weights, as everywhere in this suite, so that a leak would show from the start; see the ablations there.
    model = SUBJECT[name].make(vocab_size=LETTERS).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, NUM_STEPS)
    for _ in range(NUM_STEPS):
        losses(model, sample(batch_size)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


@torch.no_grad()
def mean_losses(model, sample) -> Tensor:
    """[T - 1], over fresh data."""
    torch.manual_seed(1)
    return torch.cat([losses(model, sample(256)) for _ in range(8)]).mean(0)


@designs
def test_uniform_tokens_stay_unpredictable(name):
    model = trained(name, uniform, batch_size=16)
    fresh = mean_losses(model, uniform)
    assert fresh.mean().item() == pytest.approx(FLOOR, abs=0.01)
    assert fresh.min() > FLOOR - 0.01


@designs
def test_a_symbol_is_unpredictable_before_it_is_seen_and_known_afterwards(name):
    model = trained(name, second_half_is_one_symbol, batch_size=32)
    fresh = mean_losses(model, second_half_is_one_symbol)
    # Position HALF - 1 is the last that predicts a token of which nothing is known.
    assert fresh[:HALF].min() > FLOOR - 0.02
    assert fresh[:HALF].mean().item() == pytest.approx(FLOOR, abs=0.05)
    assert fresh[HALF:].mean() < 0.05
