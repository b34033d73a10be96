"""Invariant 6: nothing crosses from one document, row, batch or evaluation into another."""

import copy
from collections.abc import Mapping

import pytest
import torch
from contract.helpers import assert_close, assert_memory_matters, cut, logits_of, other_ids, random_ids
from contract.subjects import LONGEST, SEGMENT, subjects
from torch import Tensor, nn

# Documents of two packed rows of equal length; boundaries lie inside segments, at their ends, and one token apart.
PACKED = ((5, SEGMENT + 3, 2 * SEGMENT, 1, SEGMENT - 1), (2 * SEGMENT + 4, 1, SEGMENT, 2, SEGMENT + 1))
NUM_TOKENS = sum(PACKED[0])
assert sum(PACKED[1]) == NUM_TOKENS


def packed_positions() -> Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in PACKED])


def documents_of(packed: Tensor) -> list[Tensor]:
    """All documents, each [1, length, ...], in the order of rows."""
    return [part[None] for row, lengths in zip(packed, PACKED, strict=True) for part in row.split(lengths)]


@subjects("is_float32")
def test_packed_documents_equal_documents_alone(subject):
    model = subject.make()
    if subject.has_memory:
        assert_memory_matters(subject, model, random_ids(2, LONGEST))
    ids = random_ids(2, NUM_TOKENS)
    logits = logits_of(model, ids, position_ids=packed_positions(), use_cache=False)
    for document, of_document in zip(documents_of(ids), documents_of(logits), strict=True):
        assert_close(of_document, logits_of(model, document))


@subjects("has_memory")
def test_segment_reset_says_the_same_as_positions_that_start_over(subject):
    model = subject.make()
    ids, positions = random_ids(2, NUM_TOKENS), packed_positions()
    by_position = logits_of(model, ids, position_ids=positions)
    assert torch.equal(by_position, logits_of(model, ids, segment_reset=positions == 0))
    assert not torch.equal(by_position, logits_of(model, ids))


@pytest.mark.parametrize("sizes", [[1], [5, 11, 3]], ids=["tokens", "uneven"])
@subjects("is_float32", "has_memory")
def test_packed_documents_through_a_cache(subject, sizes):
    model = subject.make()
    ids, reset = random_ids(2, NUM_TOKENS), packed_positions() == 0
    cache, pieces = subject.new_cache(model), []
    for piece, piece_reset in zip(cut(ids, sizes), cut(reset, sizes), strict=True):
        pieces.append(logits_of(model, piece, cache=cache, segment_reset=piece_reset))
    assert_close(torch.cat(pieces, dim=1), logits_of(model, ids, segment_reset=reset, use_cache=False))
    assert cache.num_document_tokens.tolist() == [row[-1] for row in PACKED]


@subjects("is_float32", "has_memory")
def test_packed_documents_between_padding(subject):
    model = subject.make()
    packed = random_ids(2, NUM_TOKENS)
    ids = torch.cat([random_ids(2, 3, seed=2), packed, random_ids(2, 5, seed=3)], dim=1)
    is_packed = torch.zeros_like(ids)
    is_packed[:, 3 : 3 + NUM_TOKENS] = 1
    reset = torch.zeros_like(ids, dtype=torch.bool)
    reset[:, 3 : 3 + NUM_TOKENS] = packed_positions() == 0
    logits = logits_of(model, ids, attention_mask=is_packed, segment_reset=reset)[:, 3 : 3 + NUM_TOKENS]
    assert_close(logits, logits_of(model, packed, segment_reset=packed_positions() == 0))


@subjects()
def test_a_document_does_not_see_the_one_before_it(subject):
    model = subject.make()
    ids, positions = random_ids(2, NUM_TOKENS), packed_positions()
    before = logits_of(model, ids, position_ids=positions, use_cache=False)
    for changed in ((positions[:, 1:] == 0).nonzero().tolist(), [[0, 0], [1, 0], [1, 9]]):
        for row, column in changed:
            # Either the last token of a document, or one in the middle of the first.
            changed_ids = ids.clone()
            changed_ids[row, column] = other_ids(ids[row, column])
            after = logits_of(model, changed_ids, position_ids=positions, use_cache=False)
            next_document = column + 1 + int((positions[row, column + 1 :] == 0).nonzero()[0])
            assert torch.equal(after[row, next_document:], before[row, next_document:]), (row, column)
            assert torch.equal(after[1 - row], before[1 - row]), (row, column)
            assert not torch.equal(after[row, column], before[row, column]), (row, column)


@subjects()
def test_a_document_has_no_gradient_at_the_one_before_it(subject):
    model = subject.make()
    ids, positions = random_ids(2, NUM_TOKENS), packed_positions()
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, position_ids=positions, use_cache=False).logits
    first, second, third = PACKED[0][:3]
    logits[0, first + second : first + second + third].square().sum().backward()
    reach = embeddings.grad.abs().amax(-1)
    assert bool((reach[0, : first + second] == 0).all())
    assert bool((reach[0, first + second : first + second + third] > 0).all())
    assert bool((reach[0, first + second + third :] == 0).all())
    assert bool((reach[1] == 0).all())


@subjects("is_float32", "has_memory")
def test_reset_of_rows_makes_them_start_a_new_document(subject):
    model = subject.make()
    ids, rest = random_ids(3, SEGMENT + 3), random_ids(3, LONGEST, seed=2)
    cache = subject.new_cache(model)
    logits_of(model, ids, cache=cache)
    cache.reset([0, 2])
    logits = logits_of(model, rest, cache=cache)
    assert_close(logits[[0, 2]], logits_of(model, rest[[0, 2]]))
    assert_close(logits[1], logits_of(model, torch.cat([ids, rest], dim=1))[1, SEGMENT + 3 :])
    assert cache.num_tokens.tolist() == [LONGEST, LONGEST + SEGMENT + 3, LONGEST]


@subjects("has_memory")
def test_reset_of_a_whole_cache_makes_it_new(subject):
    model = subject.make()
    cache = subject.new_cache(model)
    logits_of(model, random_ids(3, LONGEST), cache=cache)
    cache.reset()
    ids = random_ids(2, LONGEST, seed=2)
    assert torch.equal(logits_of(model, ids, cache=cache), logits_of(model, ids))


def tensors_on(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that hangs on a module: parameters, buffers, and what plain attributes hold, also in containers."""
    found = {}

    def collect(name: str, value, depth: int) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, nn.Module) or depth == 0:
            return
        elif isinstance(value, Mapping):
            for key, item in value.items():
                collect(f"{name}.{key}", item, depth - 1)
        elif isinstance(value, (list, tuple, set)):
            for index, item in enumerate(value):
                collect(f"{name}.{index}", item, depth - 1)
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            collect(name, vars(value), depth - 1)

    for module_name, module in model.named_modules():
        collect(module_name, vars(module), depth=5)
    return found


@subjects()
def test_modules_hold_no_state(subject):
    model = subject.make()
    before = {name: tensor.clone() for name, tensor in tensors_on(model).items()}
    assert len(before) >= len(model.state_dict())
    ids = random_ids(2, LONGEST)
    model(ids)
    model.train()
    model(ids, use_cache=False, labels=ids).loss.backward()
    model.zero_grad()
    model.eval()
    logits_of(model, ids, cache=subject.new_cache(model))
    model.generate(ids, max_new_tokens=3, do_sample=False)
    after = tensors_on(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@subjects()
def test_what_ran_before_makes_no_difference(subject):
    model = subject.make()
    ids = random_ids(2, LONGEST)
    first = logits_of(model, ids)
    for other in (random_ids(2, LONGEST, seed=5), random_ids(3, 2 * SEGMENT, seed=6), ids):
        model.train()
        model(other, labels=other, use_cache=False).loss.backward()
        model.eval()
        logits_of(model, other, cache=subject.new_cache(model))
        assert torch.equal(logits_of(model, ids), first)


@subjects()
def test_two_caches_of_a_model_know_nothing_of_each_other(subject):
    model = subject.make()
    ids, others = random_ids(2, LONGEST), random_ids(2, LONGEST, seed=2)
    cache, other_cache = subject.new_cache(model), subject.new_cache(model)
    logits_of(model, ids, cache=cache)
    untouched = copy.deepcopy(cache)
    logits_of(model, others, cache=other_cache)
    rest = random_ids(2, SEGMENT, seed=3)
    assert torch.equal(logits_of(model, rest, cache=cache), logits_of(model, rest, cache=untouched))


@subjects("has_memory")
def test_a_refused_call_leaves_the_cache_as_it_was(subject):
    model = subject.make()
    ids, rest = random_ids(2, SEGMENT + 2), random_ids(2, SEGMENT, seed=2)
    cache = subject.new_cache(model)
    logits_of(model, ids, cache=cache)
    untouched = copy.deepcopy(cache)
    with pytest.raises(ValueError, match="attention_mask"):
        model(rest, attention_mask=torch.ones(2, 3), cache=cache)
    with pytest.raises(ValueError, match="vocabulary"):
        model(rest + 1000, cache=cache)
    with pytest.raises(ValueError, match="rows"):
        model(rest[:1], cache=cache)
    assert torch.equal(logits_of(model, rest, cache=cache), logits_of(model, rest, cache=untouched))
