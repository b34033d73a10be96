"""Invariant 3: a row of a batch is what it would be alone, whatever its neighbors and its padding are."""

import pytest
import torch
from contract.helpers import assert_close, assert_memory_matters, gradients, logits_of, pad, random_ids
from contract.subjects import LONGEST, SEGMENT, subjects

ROW_LENGTHS = (3, SEGMENT, 2 * SEGMENT + 3, LONGEST, 1)
NUM_COLUMNS = LONGEST + 2
# Columns of padding before each row.
SIDES = {
    "left": [NUM_COLUMNS - length for length in ROW_LENGTHS],
    "right": [0] * len(ROW_LENGTHS),
    "both": [(NUM_COLUMNS - length) // 2 for length in ROW_LENGTHS],
}
all_sides = pytest.mark.parametrize("side", SIDES)


def ragged_rows(seed: int = 1) -> list[torch.Tensor]:
    return [random_ids(1, length, seed=seed + length)[0] for length in ROW_LENGTHS]


def real_logits(logits, mask):
    """One [length, V] per row, without padding."""
    return [row[real.bool()] for row, real in zip(logits, mask, strict=True)]


@all_sides
@subjects("is_float32")
def test_rows_of_a_ragged_batch_equal_rows_alone(subject, side):
    model = subject.make()
    if subject.has_memory:
        assert_memory_matters(subject, model, random_ids(2, LONGEST))
    rows = ragged_rows()
    ids, mask = pad(rows, SIDES[side], NUM_COLUMNS)
    logits = logits_of(model, ids, attention_mask=mask, use_cache=False)
    for row, of_row in zip(rows, real_logits(logits, mask), strict=True):
        assert_close(of_row, logits_of(model, row[None])[0])


@all_sides
@subjects("is_float32", "has_memory")
def test_rows_of_a_ragged_batch_continue_from_the_cache_as_rows_alone(subject, side):
    model = subject.make()
    cache = subject.new_cache(model)
    texts = [torch.empty(0, dtype=torch.long)] * len(ROW_LENGTHS)
    # Three calls, so that rows continue at all places of a segment, with padding at either end.
    for call, call_side in enumerate((side, "left", "right")):
        rows = ragged_rows(seed=10 * call)[call:] + ragged_rows(seed=10 * call)[:call]
        width = max(ROW_LENGTHS)
        left = [width - len(row) if call_side == "left" else 0 for row in rows]
        if call_side == "both":
            left = [(width - len(row)) // 2 for row in rows]
        ids, mask = pad(rows, left, width)
        logits = logits_of(model, ids, attention_mask=mask, cache=cache)
        texts = [torch.cat(pair) for pair in zip(texts, rows, strict=True)]
        for text, row, of_row in zip(texts, rows, real_logits(logits, mask), strict=True):
            assert_close(of_row, logits_of(model, text[None])[0, -len(row) :])
    assert cache.num_tokens.tolist() == [len(text) for text in texts]


@subjects("is_float32", "has_memory")
def test_rows_that_are_not_padded_but_have_seen_different_numbers_of_tokens(subject):
    model = subject.make()
    rows = ragged_rows()
    ids, mask = pad(rows, SIDES["right"], NUM_COLUMNS)
    cache = subject.new_cache(model)
    logits_of(model, ids, attention_mask=mask, cache=cache)
    texts = rows
    for step in range(SEGMENT + 2):
        token = random_ids(len(rows), 1, seed=step)
        texts = [torch.cat(pair) for pair in zip(texts, token, strict=True)]
        logits = logits_of(model, token, cache=cache)
    for text, of_row in zip(texts, logits, strict=True):
        assert_close(of_row[-1], logits_of(model, text[None])[0, -1])


@subjects("has_bank")
def test_a_row_that_is_all_padding_keeps_its_bank_and_gives_finite_numbers(subject):
    model = subject.make()
    ids = random_ids(2, LONGEST)
    cache = subject.new_cache(model)
    first = SEGMENT + 2
    logits_of(model, ids[:, :first], cache=cache)
    before = [bank.clone() for bank in subject.banks(cache)]
    # Row 1 is only padded while row 0 fills whole segments.
    mask = torch.tensor([[1], [0]]).expand(2, 2 * SEGMENT + 1)
    middle = random_ids(2, 2 * SEGMENT + 1, seed=2)
    logits = logits_of(model, middle, attention_mask=mask, cache=cache)
    assert bool(torch.isfinite(logits).all())
    after = subject.banks(cache)
    assert all(torch.equal(new[1], old[1]) for new, old in zip(after, before, strict=True))
    assert not any(torch.equal(new[0], old[0]) for new, old in zip(after, before, strict=True))
    assert cache.num_tokens.tolist() == [first + 2 * SEGMENT + 1, first]
    if subject.is_float32:
        rest = logits_of(model, ids[:, first:], cache=cache)[1]
        assert_close(rest, logits_of(model, ids)[1, first:])


@subjects("is_float32", "has_memory")
def test_a_row_that_begins_with_calls_of_padding_only(subject):
    model = subject.make()
    ids = random_ids(2, LONGEST)
    cache = subject.new_cache(model)
    mask = torch.tensor([[1], [0]]).expand(2, SEGMENT + 3)
    logits = logits_of(model, random_ids(2, SEGMENT + 3, seed=3), attention_mask=mask, cache=cache)
    assert bool(torch.isfinite(logits).all())
    assert_close(logits_of(model, ids, cache=cache)[1], logits_of(model, ids)[1])


@all_sides
@subjects("has_memory")
def test_what_padding_contains_makes_no_difference(subject, side):
    model = subject.make()
    rows = ragged_rows()
    caches, real = [], []
    for filler in (0, 7):
        caches.append(subject.new_cache(model))
        ids, mask = pad(rows, SIDES[side], NUM_COLUMNS, filler)
        logits = logits_of(model, ids, attention_mask=mask, cache=caches[-1])
        assert bool(torch.isfinite(logits).all())
        real.append(torch.cat(real_logits(logits, mask)))
    assert torch.equal(*real)
    rest = random_ids(len(rows), SEGMENT + 1, seed=2)
    assert torch.equal(*(logits_of(model, rest, cache=cache) for cache in caches))


@subjects("has_memory")
def test_padding_gets_no_gradient_and_gives_none(subject):
    model = subject.make()
    ids, mask = pad(ragged_rows(), SIDES["both"], NUM_COLUMNS)
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits
    logits[mask.bool()].square().sum().backward()
    assert bool((embeddings.grad[mask == 0] == 0).all())
    assert bool((embeddings.grad[mask == 1].abs().amax(-1) > 0).all())
    for name, gradient in gradients(model).items():
        assert bool(torch.isfinite(gradient).all()), name
