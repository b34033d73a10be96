"""Invariant 2: one forward = token by token = pieces of any size, in values and in gradients."""

import pytest
import torch
import torch.nn.functional as F
from contract.helpers import (
    assert_close,
    assert_memory_matters,
    assert_same_gradients,
    gradients,
    logits_of,
    random_ids,
    stream,
)
from contract.subjects import LENGTHS, LONGEST, SEGMENT, SUBJECT, VOCAB, subjects

SIZES = {
    "token by token": [1],
    "segment by segment": [SEGMENT],
    "uneven": [3, 1, 7, 2 * SEGMENT + 1, 2],
    "two segments and a bit": [2 * SEGMENT + 3],
}
ROPE_TYPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
    "longrope": {
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 4,
    },
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@subjects("is_float32")
@torch.no_grad()
def test_pieces_equal_one_forward(subject, sizes):
    model = subject.make()
    if subject.has_memory:
        assert_memory_matters(subject, model, random_ids(2, LONGEST))
    for length in LENGTHS:
        ids = random_ids(2, length, seed=length)
        assert_close(stream(model, ids, sizes, subject.new_cache(model)), logits_of(model, ids, use_cache=False))


@subjects("is_float32")
@torch.no_grad()
def test_the_state_after_one_forward_equals_the_state_after_pieces(subject):
    model = subject.make()
    ids = random_ids(2, LONGEST)
    for length in LENGTHS:
        at_once, in_pieces = subject.new_cache(model), subject.new_cache(model)
        model(ids[:, :length], cache=at_once)
        stream(model, ids[:, :length], [5, 1], in_pieces)
        rest = random_ids(2, 2 * SEGMENT, seed=2)
        continued = logits_of(model, rest, cache=at_once)
        assert_close(continued, logits_of(model, rest, cache=in_pieces))
        # What the state is good for: the rest alone has other logits.
        assert (continued - logits_of(model, rest)).abs().max() > 0.1


# Of the rest, the writes feed back into what is written: a rounding error there grows like any other change of input.
@subjects(only=("default", "separate", "top-k"))
@torch.no_grad()
def test_200_segments(subject):
    model = subject.make()
    ids = random_ids(1, 200 * SEGMENT + 3)
    full = logits_of(model, ids, use_cache=False)
    assert_close(stream(model, ids, [SEGMENT], subject.new_cache(model)), full)
    assert_close(stream(model, ids, [37, 1], subject.new_cache(model)), full)


@pytest.mark.parametrize("gate_bias", [-15.0, 15.0])
@torch.no_grad()
def test_200_segments_with_gates_near_0_and_1(gate_bias):
    model = SUBJECT["default"].make(memory_input_gate_bias=gate_bias, memory_write_floor=0.0)
    for block in model.model.layers:
        # Tokens pick one slot each, so that a slot is either kept almost whole or overwritten almost whole.
        block.memory.write.address *= 100
    ids = random_ids(1, 200 * SEGMENT + 3)
    full = logits_of(model, ids, use_cache=False)
    assert bool(torch.isfinite(full).all())
    assert_close(stream(model, ids, [SEGMENT], SUBJECT["default"].new_cache(model)), full)


@subjects(only=("bf16",))
def test_banks_are_float32_in_any_dtype(subject):
    model = subject.make()
    cache = subject.new_cache(model)
    logits_of(model, random_ids(2, LONGEST), cache=cache)
    for bank in subject.banks(cache):
        assert bank.dtype == torch.float32
        assert not torch.equal(bank, bank.to(torch.bfloat16).float())


@subjects("is_float32")
def test_gradients_through_a_cache_equal_those_of_one_forward(subject):
    model = subject.make()
    ids = random_ids(2, LONGEST)
    targets = random_ids(2, LONGEST, seed=2)

    def loss_of(logits):
        return F.cross_entropy(logits.reshape(-1, VOCAB), targets.reshape(-1))

    loss_of(model(ids, use_cache=False).logits).backward()
    expected = gradients(model)
    for sizes in ([SEGMENT], [5, 1]):
        loss_of(stream(model, ids, sizes, subject.new_cache(model))).backward()
        assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("attention_window", [1, 2])
@pytest.mark.parametrize("rope_type", ROPE_TYPES)
@torch.no_grad()
def test_rope_types(rope_type, attention_window):
    rope = {"rope_type": rope_type, "rope_theta": 100.0} | ROPE_TYPES[rope_type]
    model = SUBJECT["default"].make(
        attention_window=attention_window, max_position_embeddings=SEGMENT, rope_parameters=rope
    )
    plain = SUBJECT["default"].make(attention_window=attention_window, max_position_embeddings=SEGMENT)
    ids = random_ids(2, LONGEST)
    # In pieces first: transformers' "dynamic" frequencies remember the longest call so far.
    in_pieces = stream(model, ids, [3, 1, 7], SUBJECT["default"].new_cache(model))
    full = logits_of(model, ids, use_cache=False)
    assert_close(in_pieces, full)
    assert torch.equal(stream(model, ids, [3, 1, 7], SUBJECT["default"].new_cache(model)), in_pieces)
    assert (full - logits_of(plain, ids)).abs().max() > 1e-2
