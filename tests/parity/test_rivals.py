"""RMT and ARMT against loops written from their papers' equations, values and gradients; see test_models.py."""

import pytest
import torch
from parity.checks import SHAPE, TOLERANCE, assert_model_is, assert_near, random_tokens, randomize
from parity.references import float64_weights
from parity.references_rivals import armt_model, dpfp, rmt_model

from lm2 import ARMTConfig, ARMTForCausalLM, RMTConfig, RMTForCausalLM
from lm2.models.armt.association_armt import dpfp as fast_dpfp

# Memory passes through whole blocks from segment to segment, so that rounding grows: few segments. ARMT's keys are wide
# enough for queries to meet what was written; where they do not, what is read is rounding divided by almost nothing.
RMT = SHAPE | {"segment_length": 3, "num_memory_tokens": 2}
ARMT = RMT | {"memory_key_size": 64, "dpfp_order": 2}


def make(model_class: type, config_class: type, attention: str = "sdpa", **fields):
    model = model_class(config_class(**fields)).eval()
    model.set_attn_implementation(attention)
    randomize(model, seed=0)
    return model


def make_rmt(attention: str = "sdpa", **fields) -> RMTForCausalLM:
    return make(RMTForCausalLM, RMTConfig, attention, **RMT | fields)


def make_armt(attention: str = "sdpa", **fields) -> ARMTForCausalLM:
    return make(ARMTForCausalLM, ARMTConfig, attention, **ARMT | fields)


def rmt_banks(cache) -> list[torch.Tensor]:
    return [cache.bank[0]]


def armt_banks(cache) -> list[torch.Tensor]:
    return [state.bank[0] for state in cache.states]


OPTIONS = [
    {},
    {"num_memory_tokens": 1},
    {"num_memory_tokens": 5},
    {"segment_length": 1},
    {"segment_length": 7},
    {"num_key_value_heads": 4},
    {"head_dim": 6},
    {"attention_bias": True, "mlp_bias": True},
    {"bptt_segments": 2},
]


def num_tokens_for(model) -> int:
    """Three full segments and, where they are longer than one token, a part of a fourth."""
    return 3 * model.config.segment_length + (model.config.segment_length > 1)


def name_of(fields: dict) -> str:
    return "-".join(f"{key}={value}" for key, value in fields.items()) or "plain"


@pytest.mark.parametrize("fields", OPTIONS, ids=name_of)
def test_rmt(fields):
    model = make_rmt(**fields)
    assert_model_is(rmt_model, model, num_tokens_for(model), rmt_banks)


@pytest.mark.parametrize("fields", [*OPTIONS, {"dpfp_order": 1}, {"dpfp_order": 3}], ids=name_of)
def test_armt(fields):
    model = make_armt(**fields)
    assert_model_is(armt_model, model, num_tokens_for(model), armt_banks)


def test_eager_attention():
    assert_model_is(rmt_model, make_rmt("eager"), 7, rmt_banks)
    assert_model_is(armt_model, make_armt("eager"), 7, armt_banks)


@pytest.mark.parametrize("num_tokens", [2, 3, 4, 6])
@pytest.mark.parametrize(
    ("reference", "make_one", "banks"), [(rmt_model, make_rmt, rmt_banks), (armt_model, make_armt, armt_banks)]
)
def test_around_a_boundary(reference, make_one, banks, num_tokens):
    # Within the first segment nothing was written, so that many parameters have no gradient.
    model = make_one()
    tokens = random_tokens(num_tokens)
    want_TV, want_banks = reference(float64_weights(model), model.config, tokens)
    output = model(torch.tensor([tokens]), use_cache=True)
    assert_near(output.logits[0], want_TV, TOLERANCE, "logits")
    if num_tokens >= 3:
        for got, want in zip(banks(output.cache), want_banks, strict=True):
            assert_near(got, want, TOLERANCE, "memory")


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpfp(order):
    x = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fast_dpfp(x, order), dpfp(x, order))


def test_dpfp_by_hand():
    # x' = (1, 0, 2, 0, 3, 0); each number times its left neighbour, then times the one after that.
    assert fast_dpfp(torch.tensor([1.0, -3.0, 2.0]), 2).tolist() == [0, 0, 0, 0, 0, 0, 3, 0, 2, 0, 6, 0]
