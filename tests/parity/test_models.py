"""
Whole models against loops written from the equations, values and gradients.

The model runs in float32 (its gates and banks are float32 in any dtype), the loop in float64 from the same weights.

Shapes: B rows, T tokens, V vocabulary, N slots, D hidden size.
"""

import itertools

import pytest
import torch
from parity.checks import (
    SHAPE,
    TOLERANCE,
    assert_model_is,
    assert_near,
    assert_same_gradients,
    probe_like,
    random_tokens,
    randomize,
)
from parity.references import float64_weights, paper_model, segment_model

from lm2 import LM2Config, LM2ForCausalLM

SEGMENT = SHAPE | {"num_memory_slots": 3, "num_memory_heads": 2, "segment_length": 4}
READ_LOGITS = ("memory.read.query.weight", "memory.read.key.weight")
ADDRESSES = ("memory.write.query.weight", "memory.write.address")
PAPER = SHAPE | {"memory_design": "paper", "num_hidden_layers": 3, "segment_length": 5}


def make_model(attention: str = "sdpa", seed: int = 0, **fields) -> LM2ForCausalLM:
    model = LM2ForCausalLM(LM2Config(**fields)).eval()
    model.set_attn_implementation(attention)
    randomize(model, seed)
    return model


def last_banks(cache) -> list[torch.Tensor]:
    """The banks of a cache of one row, [N, D] each, as the references return them."""
    if cache.bank is not None:
        return [cache.bank[0]]
    return [state.bank[0] for state in cache.states if state.bank is not None]


def assert_is(reference, model: LM2ForCausalLM, num_tokens: int, untouched: tuple[str, ...] = ()) -> None:
    assert_model_is(reference, model, num_tokens, last_banks, untouched)


@pytest.mark.parametrize(
    ("read", "write", "source", "window"),
    list(itertools.product(("joint", "separate"), ("address", "attend"), ("input", "attention"), (1, 2, None))),
)
def test_segment_model(read, write, source, window):
    fields = {"memory_read": read, "memory_write": write, "memory_write_source": source, "attention_window": window}
    # Three full segments and a part of a fourth: what the first wrote was kept twice before it is read last.
    assert_is(segment_model, make_model(**SEGMENT | fields), num_tokens=14)


@pytest.mark.parametrize(
    ("fields", "untouched"),
    [
        ({"memory_top_k": 2}, ()),
        # Where one slot is all that is read, what is asked does not matter.
        ({"memory_top_k": 1, "memory_read": "separate"}, READ_LOGITS),
        ({"memory_null_slot": True}, ()),
        ({"memory_null_slot": True, "memory_read": "separate"}, ()),
        ({"memory_null_slot": True, "memory_top_k": 2, "memory_write": "attend"}, ()),
        ({"memory_init": "identity", "num_memory_slots": 18}, ()),
        ({"memory_layers": [1]}, ()),
        ({"memory_layers": 1, "attention_window": 2}, ()),
        ({"segment_length": 3, "memory_read": "separate", "memory_write_source": "attention"}, ()),
        ({"segment_length": 6, "num_memory_slots": 1}, ADDRESSES),
        ({"num_key_value_heads": 1, "attention_window": 3}, ()),
        ({"num_key_value_heads": 4, "num_memory_heads": 1, "head_dim": 6}, ()),
        ({"attention_bias": True, "mlp_bias": True}, ()),
        ({"num_memory_heads": 16, "memory_read": "separate", "memory_write_source": "attention"}, ()),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_segment_model_options(fields, untouched):
    assert_is(segment_model, make_model(**SEGMENT | fields), num_tokens=9, untouched=untouched)


@pytest.mark.parametrize(
    "fields", [{}, {"attention_window": 2}, {"attention_window": None}, {"memory_read": "separate"}]
)
def test_segment_model_with_eager_attention(fields):
    assert_is(segment_model, make_model("eager", **SEGMENT | fields), num_tokens=10)


@pytest.mark.parametrize("num_tokens", [3, 4, 5, 8])
def test_segment_model_around_a_boundary(num_tokens):
    # Within the first segment nothing is written yet, so the write has no gradient but in the bank after the call.
    model = make_model(**SEGMENT)
    weights = float64_weights(model)
    tokens = random_tokens(num_tokens)
    want_TV, want_banks = segment_model(weights, model.config, tokens)
    output = model(torch.tensor([tokens]), use_cache=True)
    assert_near(output.logits[0], want_TV, TOLERANCE, "logits")
    for got_ND, want_ND in zip(last_banks(output.cache), want_banks, strict=True):
        assert_near(got_ND, want_ND, TOLERANCE, "bank")


@pytest.mark.parametrize(
    "fields",
    [
        {"memory_write": "address"},
        {"memory_write": "attend"},
        {"memory_write": "address", "memory_write_source": "attention"},
    ],
)
def test_truncated_gradients(fields):
    # Five full segments: the gradient of the bank is cut at the starts of segments 2 and 4, its value is not.
    assert_is(segment_model, make_model(**SEGMENT | {"segment_length": 2, "bptt_segments": 2} | fields), 11)


def test_segment_model_of_forty_segments_of_one_token():
    assert_is(segment_model, make_model(**SEGMENT | {"segment_length": 1}), num_tokens=40)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention_window": 2},
        {"attention_window": None},
        {"memory_top_k": 2},
        {"memory_top_k": 5},
        {"memory_layers": [0, 2]},
        {"segment_length": 16, "num_hidden_layers": 2},
        {"segment_length": 2},
        {"attention_bias": True, "num_key_value_heads": 4},
    ],
    ids=lambda fields: "-".join(f"{k}={v}" for k, v in fields.items()) or "plain",
)
def test_paper_model(fields):
    # Two whole segments and a shorter last one, which leaves the other slots as they are.
    config = PAPER | fields
    assert_is(paper_model, make_model(**config), num_tokens=2 * config["segment_length"] + 3)


def test_paper_model_with_eager_attention():
    assert_is(paper_model, make_model("eager", **PAPER), num_tokens=13)


def test_paper_model_with_truncated_gradients():
    assert_is(paper_model, make_model(**PAPER | {"bptt_segments": 2, "segment_length": 3}), num_tokens=14)


def test_a_fresh_paper_model_scales_nothing():
    model = LM2ForCausalLM(LM2Config(**PAPER))
    assert [block.memory.scale.item() for block in model.model.layers] == [1.0, 1.0, 1.0]


# Rows of documents with padding left and right of them, -1.
RAGGED_ROWS = [
    [-1, -1, [9], -1],
    [[3, 8], -1],
    [-1, [5, 1, 4]],
    [[13]],
]


@pytest.mark.parametrize(
    "fields",
    [
        SEGMENT,
        SEGMENT | {"attention_window": 2, "memory_write": "attend"},
        SEGMENT | {"attention_window": None, "memory_read": "separate"},
        SEGMENT | {"memory_write_source": "attention"},
        SEGMENT | {"memory_top_k": 2, "memory_null_slot": True},
        PAPER | {"segment_length": 4, "num_hidden_layers": 2},
        PAPER | {"segment_length": 4, "num_hidden_layers": 2, "memory_top_k": 2, "attention_window": 2},
    ],
    ids=lambda fields: "-".join(f"{k}={v}" for k, v in fields.items() if k not in SHAPE),
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ragged_rows_of_several_documents(fields, attention):
    """Every document of a padded, packed batch is what the loop makes of it alone."""
    model = make_model(attention, **fields)
    reference = paper_model if model.config.memory_design == "paper" else segment_model
    weights = float64_weights(model)
    input_ids_BT = torch.zeros(4, 13, dtype=torch.long)
    mask_BT = torch.zeros(4, 13, dtype=torch.long)
    reset_BT = torch.zeros(4, 13, dtype=torch.bool)
    documents = []
    for row, layout in enumerate(RAGGED_ROWS):
        column = 0
        for part in layout:
            if part == -1:
                column += 1
                continue
            for num_tokens in part:
                tokens = random_tokens(num_tokens, seed=len(documents))
                place = slice(column, column + num_tokens)
                input_ids_BT[row, place] = torch.tensor(tokens)
                mask_BT[row, place] = 1
                reset_BT[row, column] = True
                documents.append((row, place, tokens))
                column += num_tokens

    got_BTV = model(input_ids_BT, attention_mask=mask_BT, segment_reset=reset_BT, use_cache=False).logits
    assert bool(torch.isfinite(got_BTV).all())
    got, want = 0.0, 0.0
    for index, (row, place, tokens) in enumerate(documents):
        want_TV, _ = reference(weights, model.config, tokens)
        got_TV = got_BTV[row, place]
        assert_near(got_TV, want_TV, TOLERANCE, f"logits of document {index}")
        got = got + (got_TV * probe_like(got_TV, index)).sum()
        want = want + (want_TV * probe_like(want_TV, index)).sum()
    got.backward()
    want.backward()
    assert_same_gradients(model, weights)
