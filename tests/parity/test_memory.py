"""
The memory's closed forms against loops: the scan over segments, erase-and-add over tokens, attention to slots.

Shapes: G steps, S tokens of a segment, N slots, Q queries, E or K width.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import references
from parity.checks import TOLERANCE, assert_near, probe_like
from transformers import LlamaConfig

from lm2 import LM2Config, LM2ForCausalLM
from lm2.models.lm2.attention_lm2 import _split_exactly
from lm2.models.lm2.memory_lm2 import above_floor, erase_and_add, linear_scan
from lm2.models.lm2.slots_lm2 import attend_to_all, attend_to_slots, attend_with_mass

# Gates that are hard in float32: exactly closed and open, hardly open, and as good as open.
HARD_GATES = (0.0, 1.0, 1e-12, 1 - 1e-7)


def mixed_gates(shape: tuple[int, ...], seed: int, values=HARD_GATES) -> torch.Tensor:
    """Half of them uniform, half of them from the hard ones."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.tensor(values)[torch.randint(len(values), shape, generator=generator)]
    uniform = torch.rand(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, hard, uniform)


def leaves(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Twice the same numbers as leaves of a graph: as they are, and in float64."""
    single = [tensor.clone().requires_grad_() for tensor in tensors]
    double = [tensor.double().requires_grad_() for tensor in tensors]
    return single, double


def probed(*tensors: torch.Tensor) -> torch.Tensor:
    return sum((tensor * probe_like(tensor, seed)).sum() for seed, tensor in enumerate(tensors))


# --- the scan over segments ---


@pytest.mark.parametrize("gates", ["mixed", "hard", "open", "closed", "near"])
@pytest.mark.parametrize("num_steps", [*range(1, 10), 16, 17, 200])
def test_linear_scan(num_steps, gates):
    shape = (2, num_steps, 3, 2)
    keep = {
        "mixed": mixed_gates(shape, num_steps),
        "hard": mixed_gates(shape, num_steps).round(),
        "open": torch.ones(shape),
        "closed": torch.zeros(shape),
        "near": torch.full(shape, 1 - 1e-7),
    }[gates]
    new = torch.randn(shape, generator=torch.Generator().manual_seed(num_steps))
    (keep, new), (keep_64, new_64) = leaves(keep, new)
    got = linear_scan(keep, new)
    want = torch.stack([torch.stack(references.scan(keep_64[row], new_64[row])) for row in range(2)])
    assert_near(got, want, TOLERANCE, "states")
    probed(got).backward()
    probed(want).backward()
    assert_near(new.grad, new_64.grad, TOLERANCE, "gradient of new")
    if num_steps == 1:
        # What the first step keeps is zero.
        assert keep.grad is None or bool((keep.grad == 0).all())
    else:
        assert_near(keep.grad, keep_64.grad, TOLERANCE, "gradient of keep")


def test_linear_scan_keeps_a_state_exactly():
    # 199 segments that do nothing: the state is what it was, to the last bit, and so is its gradient.
    keep = torch.ones(1, 200, 4)
    new = torch.zeros(1, 200, 4)
    new[:, 0] = torch.randn(4, generator=torch.Generator().manual_seed(0))
    new.requires_grad_()
    states = linear_scan(keep, new)
    assert torch.equal(states, new[:, :1].expand_as(states))
    (gradient,) = torch.autograd.grad(states[:, -1].sum(), new)
    assert torch.equal(gradient, torch.ones_like(new))


@pytest.mark.parametrize("cut", [1, 2, 7, 100, 199])
def test_linear_scan_forgets_exactly_where_nothing_is_kept(cut):
    keep, new = mixed_gates((1, 200, 3), seed=cut), torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(cut))
    keep[:, cut] = 0
    changed = new.clone()
    changed[:, :cut] = 1e6
    assert torch.equal(linear_scan(keep, new)[:, cut:], linear_scan(keep, changed)[:, cut:])
    new.requires_grad_()
    (gradient,) = torch.autograd.grad(linear_scan(keep, new)[:, cut:].sum(), new)
    assert bool((gradient[:, :cut] == 0).all())


def test_linear_scan_broadcasts_keep():
    keep, new = mixed_gates((2, 9, 3, 1), seed=0), torch.randn(2, 9, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(linear_scan(keep, new), linear_scan(keep.expand_as(new).contiguous(), new))


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([*HARD_GATES, 0.3]), st.floats(-4, 4, width=32, allow_subnormal=False)),
        min_size=1,
        max_size=40,
    )
)
def test_linear_scan_of_any_gates(steps):
    keep, new = (torch.tensor(column).view(1, -1) for column in zip(*steps, strict=True))
    want = torch.stack(references.scan(keep[0].double(), new[0].double()))
    largest = torch.stack(references.scan(keep[0].double(), new[0].double().abs()))
    difference = (linear_scan(keep, new)[0].double() - want).abs()
    # Relative to the sum of what went in, as sums may cancel; and products may fall below the smallest float32.
    assert bool((difference <= 1e-6 * largest + 1e-37).all())


# --- erase and add ---


def erase_and_add_in_turn(gate_SN: torch.Tensor, content_SE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the token loop keeps of a slot of ones, and what it adds to a slot of zeros."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    num_slots = gate_SN.shape[1]
    kept = references.erase_and_add([one] * num_slots, gate_SN, torch.zeros_like(content_SE[:, :1]))
    added = references.erase_and_add([zero.expand(content_SE.shape[1])] * num_slots, gate_SN, content_SE)
    return torch.cat(kept), torch.stack(added)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 8, 33, 512])
@pytest.mark.parametrize("strength", ["tiny", "small", "soft", "strong", "near one"])
def test_erase_and_add(num_tokens, strength):
    generator = torch.Generator().manual_seed(num_tokens)
    uniform = torch.rand(num_tokens, 3, generator=generator)
    gate = {
        "tiny": 1e-12 * uniform,
        # Less than half a step below 1 in float32, yet 512 of them are many steps.
        "small": torch.full_like(uniform, 2.5e-8),
        "soft": 0.1 * uniform,
        "strong": uniform.sqrt(),
        "near one": torch.where(uniform < 0.1, torch.tensor(1 - 1e-6), 0.05 * uniform),
    }[strength]
    content = torch.randn(num_tokens, 2, generator=generator)
    (gate, content), (gate_64, content_64) = leaves(gate, content)
    keep, new = erase_and_add(gate, content)
    want_keep, want_new = erase_and_add_in_turn(gate_64, content_64)
    for n in range(3):
        assert_near(new[n], want_new[n], TOLERANCE, f"new of slot {n}")
    # What is kept multiplies a bank of ordinary size, so it has to be right beside 1.
    assert bool(((keep.double() - want_keep).abs() <= 1e-6).all())
    probed(keep, new).backward()
    probed(want_keep, want_new).backward()
    assert_near(gate.grad, gate_64.grad, TOLERANCE, "gradient of the gates")
    assert_near(content.grad, content_64.grad, TOLERANCE, "gradient of the content")


@pytest.mark.parametrize("num_tokens", [1, 7, 64])
def test_erase_and_add_with_gates_of_zero_and_one(num_tokens):
    gate = mixed_gates((num_tokens, 4), seed=num_tokens)
    content = torch.randn(num_tokens, 3, generator=torch.Generator().manual_seed(num_tokens))
    (gate, content), (gate_64, content_64) = leaves(gate, content)
    keep, new = erase_and_add(gate, content)
    want_keep, want_new = erase_and_add_in_turn(gate_64, content_64)
    assert bool(((keep.double() - want_keep).abs() <= 1e-6).all())
    assert_near(new, want_new, TOLERANCE, "new")
    probed(keep, new).backward()
    probed(want_keep, want_new).backward()
    assert_near(content.grad, content_64.grad, TOLERANCE, "gradient of the content")
    # A gate at 1 is an end of the range, where a gradient has to be finite; elsewhere it is the loop's.
    assert bool(torch.isfinite(gate.grad).all())
    inside = gate.detach() < 1
    assert_near(gate.grad[inside], gate_64.grad[inside], TOLERANCE, "gradient of the gates below 1")


def test_a_slot_that_no_token_addresses_stays_exactly():
    gate = torch.rand(512, 3, generator=torch.Generator().manual_seed(0))
    gate[:, 1] = 0
    content = torch.randn(512, 2, generator=torch.Generator().manual_seed(1))
    keep, new = erase_and_add(gate, content)
    assert float(keep[1]) == 1.0
    assert bool((new[1] == 0).all())
    assert bool((keep[[0, 2]] < 1).all())


@pytest.mark.parametrize("floor", [0.03, 0.9])
def test_what_is_below_the_floor_is_exactly_zero(floor):
    gate = torch.tensor([0.0, 0.5 * floor, 0.999 * floor, floor + 0.1 * (1 - floor), 1.0], requires_grad=True)
    left = above_floor(gate, floor)
    assert bool((left[:3] == 0).all())
    assert_near(left[3:], torch.tensor([0.1, 1.0], dtype=torch.float64), TOLERANCE, "above")
    left.sum().backward()
    assert bool((gate.grad[:3] == 0).all())
    assert_near(gate.grad[3:], torch.full([2], 1 / (1 - floor), dtype=torch.float64), TOLERANCE, "gradient")


def test_a_floor_of_zero_changes_no_gate():
    gate = mixed_gates((7, 4), seed=0)
    assert torch.equal(above_floor(gate, 0.0), gate)


def test_segments_that_hardly_address_a_slot_keep_it_to_the_bit():
    config = LM2Config(hidden_size=16, num_attention_heads=2, num_memory_slots=8, num_memory_heads=2, segment_length=4)
    torch.manual_seed(0)
    memory = LM2ForCausalLM(config).model.layers[0].memory.eval()
    x_BSD = torch.randn(3, 4, 16)
    bank = start = torch.randn(3, 8, 16)
    all_full = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        # The gate opens to 0.018, and the addresses prefer no slot much.
        memory.write.input_gate.bias.fill_(-4.0)
        memory.write.input_gate.weight.zero_()
        for _ in range(1000):
            bank = memory.write_segment(bank, x_BSD, all_full)
        assert torch.equal(bank, start)
        # Training must feel them.
        assert not torch.equal(memory.train().write_segment(bank, x_BSD, all_full), start)


def test_tokens_with_gates_of_zero_leave_no_trace():
    # In the same segment, what such tokens hold must not matter at all, whether they come before, between or behind.
    gate = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    content = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    silent = [0, 4, 8]
    gate[silent] = 0
    changed = content.clone()
    changed[silent] = 1e6
    for got, want in zip(erase_and_add(gate, changed), erase_and_add(gate, content), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("num_tokens", [1, 3, 512])
def test_gates_fully_open_overwrite(num_tokens):
    gate = torch.ones(num_tokens, 2, requires_grad=True)
    content = torch.randn(num_tokens, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    keep, new = erase_and_add(gate, content)
    assert bool((keep <= 1e-7).all())
    assert_near(new, content[-1].expand(2, -1), 1e-6, "new, the last token's content")
    probed(keep, new).backward()
    assert bool(torch.isfinite(gate.grad).all())
    assert bool(torch.isfinite(content.grad).all())


def test_erase_and_add_of_many_segments_and_heads_is_that_of_each():
    gate = mixed_gates((2, 3, 4, 5, 6), seed=0)
    content = torch.randn(2, 3, 4, 5, 2, generator=torch.Generator().manual_seed(0))
    keep, new = erase_and_add(gate, content)
    for index in ((0, 0, 0), (1, 2, 3), (0, 2, 1)):
        alone_keep, alone_new = erase_and_add(gate[index], content[index])
        assert_near(keep[index], alone_keep, 1e-6, "keep")
        assert_near(new[index], alone_new, 1e-6, "new")


def test_erase_and_add_takes_content_of_low_precision():
    gate = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    content = torch.randn(8, 2, generator=torch.Generator().manual_seed(1)).bfloat16()
    keep, new = erase_and_add(gate, content)
    assert keep.dtype == new.dtype == torch.float32
    assert_near(new, erase_and_add_in_turn(gate.double(), content.double())[1], TOLERANCE, "new")


# --- attention to slots ---


def attend_in_turn(query_QK, key_NK, value_NE, scaling, top_k, visible_QN):
    """Averages and log-sum-exps, query by query."""
    reads, masses = [], []
    for query, visible_N in zip(query_QK, visible_QN, strict=True):
        seen = [n for n in range(len(key_NK)) if visible_N[n]]
        logits = [query @ key_NK[n] * scaling for n in seen]
        read, mass = references.softmax_average(logits, [value_NE[n] for n in seen], top_k)
        reads.append(read)
        masses.append(torch.log(mass))
    return torch.stack(reads), torch.stack(masses)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("top_k", [None, 1, 3, 7])
def test_attend_to_slots(top_k, masked):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(shape, generator=generator) for shape in ((5, 4), (7, 4), (7, 3)))
    visible = torch.ones(5, 7, dtype=torch.bool)
    if masked:
        # From one visible slot, fewer than k, to all.
        visible = visible.tril(2) & (torch.arange(7) >= torch.tensor([2, 1, 0, 0, 0]).unsqueeze(1))
    single, double = leaves(query, key, value)
    read, log_mass = attend_to_slots(*single, 0.7, top_k, visible if masked else None)
    want_read, want_log_mass = attend_in_turn(*double, 0.7, top_k, visible)
    assert_near(read, want_read, TOLERANCE, "average")
    assert_near(log_mass, want_log_mass, TOLERANCE, "log-sum-exp")
    probed(read, log_mass).backward()
    probed(want_read, want_log_mass).backward()
    for name, got, want in zip(("query", "key", "value"), single, double, strict=True):
        assert_near(got.grad, want.grad, TOLERANCE, f"gradient of the {name}")


def test_attend_to_slots_with_large_logits():
    query = torch.tensor([[300.0], [-300.0]])
    key = torch.tensor([[1.0], [0.999], [-1.0]])
    value = torch.tensor([[1.0], [2.0], [3.0]])
    read, log_mass = attend_to_slots(query, key, value, 1.0, None)
    share = 1 / (1 + math.exp(-(300 - 300 * key[1].item())))
    assert_near(read[0], torch.tensor([share + 2 * (1 - share)]), TOLERANCE, "average")
    assert_near(log_mass, torch.tensor([300 - math.log(share), 300.0]), 1e-6, "log-sum-exp")
    assert float(read[1]) == 3.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attend_to_slots_in_low_precision_keeps_logits_in_float32(dtype):
    # Logits up to 20 and up to 300: the log-sum-exp enters another softmax and must not be rounded on the way.
    for size in (1.0, 4.0):
        generator = torch.Generator().manual_seed(0)
        query, key, value = (size * torch.randn(shape, generator=generator) for shape in ((5, 8), (7, 8), (7, 3)))
        query, key, value = (x.to(dtype) for x in (query, key, value))
        read, log_mass = attend_to_slots(query, key, value, 1.0, None)
        assert (read.dtype, log_mass.dtype) == (dtype, torch.float32)
        visible = torch.ones(5, 7, dtype=torch.bool)
        want_read, want_log_mass = attend_in_turn(query.double(), key.double(), value.double(), 1.0, None, visible)
        assert_near(read, want_read, 2 * torch.finfo(dtype).eps, "average")
        assert_near(log_mass, want_log_mass, 1e-6, "log-sum-exp")


class Caller:
    """What transformers' attention interface reads from the module that calls it."""

    is_causal = False
    training = False

    def __init__(self, implementation: str, scaling: float, groups: int):
        self.config = LlamaConfig(attn_implementation=implementation)
        self.scaling = scaling
        self.num_key_value_groups = groups


def slot_tensors(num_slots: int, groups: int, size: float = 1.0, dtype: torch.dtype = torch.float32):
    """Queries [B, G, Q, H, K] and keys and values [B, G, U, N, K]."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 2 * groups, 8), (2, 3, 2, num_slots, 8), (2, 3, 2, num_slots, 8)
    return [(size * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


def attend_with_explicit_mass(query_BGQHK, key_BGUNK, value_BGUNK, scaling):
    """The slow twin, in the layout of the kernel's."""
    groups = query_BGQHK.shape[3] // key_BGUNK.shape[2]
    key, value = (x.repeat_interleave(groups, dim=2) for x in (key_BGUNK, value_BGUNK))
    read, log_mass = attend_to_slots(query_BGQHK.transpose(2, 3), key, value, scaling, None)
    return read.transpose(2, 3), log_mass


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("num_slots", [1, 2, 9])
def test_the_kernel_reads_slots_as_explicit_weights_do(num_slots, groups, implementation):
    module = Caller(implementation, scaling=0.4, groups=groups)
    fast, slow = ([x.requires_grad_() for x in slot_tensors(num_slots, groups)] for _ in range(2))
    read, log_mass = attend_with_mass(module, *fast, top_k=None)
    want_read, want_log_mass = attend_with_explicit_mass(*slow, module.scaling)
    assert_near(read, want_read, TOLERANCE, "average")
    assert_near(log_mass, want_log_mass, TOLERANCE, "log-sum-exp")
    assert_near(attend_to_all(module, *fast, top_k=None), want_read, TOLERANCE, "average without log-sum-exp")
    probed(read, log_mass).backward()
    probed(want_read, want_log_mass).backward()
    for name, got, want in zip(("query", "key", "value"), fast, slow, strict=True):
        assert_near(got.grad, want.grad, TOLERANCE, f"gradient of the {name}")


def test_the_kernel_reads_slots_with_far_apart_logits():
    # Shares of the mean key down to exp(-80), near the least that float32 knows.
    query = torch.tensor([110.0, -70.0, 80.0, 3.0]).reshape(1, 1, 4, 1, 1).repeat(1, 1, 1, 1, 8) / 8
    key = torch.tensor([1.0, 0.9, 0.0, -0.8]).reshape(1, 1, 1, 4, 1).repeat(1, 1, 1, 1, 8)
    module = Caller("sdpa", scaling=1.0, groups=1)
    fast, slow = ([x.clone().requires_grad_() for x in (query, key, key)] for _ in range(2))
    read, log_mass = attend_with_mass(module, *fast, top_k=None)
    want_read, want_log_mass = attend_with_explicit_mass(*slow, 1.0)
    assert_near(read, want_read, TOLERANCE, "average")
    assert_near(log_mass, want_log_mass, TOLERANCE, "log-sum-exp")
    log_mass.sum().backward()
    want_log_mass.sum().backward()
    assert_near(fast[0].grad, slow[0].grad, TOLERANCE, "gradient of the query")
    assert_near(fast[1].grad, slow[1].grad, TOLERANCE, "gradient of the key")


def test_a_log_sum_exp_too_far_above_the_mean_key_is_cut_and_finite():
    query = torch.full((1, 1, 1, 1, 8), 500.0).requires_grad_()
    key = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2, 1).expand(1, 1, 1, 2, 8) / 8
    read, log_mass = attend_with_mass(Caller("sdpa", 1.0, 1), query, key, key, top_k=None)
    assert 87 < log_mass.item() < 88
    assert torch.equal(read[0, 0, 0, 0], key[0, 0, 0, 0])
    (read.sum() + log_mass.sum()).backward()
    assert bool(torch.isfinite(query.grad).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_reads_slots_in_low_precision(dtype):
    tensors = slot_tensors(9, 3, size=2.0, dtype=dtype)
    read, log_mass = attend_with_mass(Caller("sdpa", 0.4, 3), *tensors, top_k=None)
    assert (read.dtype, log_mass.dtype) == (dtype, torch.float32)
    want_read, want_log_mass = attend_with_explicit_mass(*(x.float() for x in tensors), 0.4)
    assert_near(read, want_read, 4 * torch.finfo(dtype).eps, "average")
    # A share with the kernel's rounding; absolute, as it adds to logits.
    assert (log_mass - want_log_mass).abs().max() < torch.finfo(dtype).eps


# --- logits in several numbers of low precision ---


@settings(max_examples=300, deadline=None)
@given(st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-80))
def test_three_bfloat16_numbers_hold_a_float32_exactly(number):
    x = torch.tensor([number])
    parts = _split_exactly(x, torch.bfloat16)
    assert all(part.dtype == torch.bfloat16 for part in parts)
    assert torch.equal(sum(part.float() for part in parts), x)


@settings(max_examples=300, deadline=None)
@given(st.floats(-60000, 60000, width=32))
def test_float16_numbers_hold_a_logit_to_their_smallest_step(number):
    x = torch.tensor([number])
    parts = _split_exactly(x, torch.float16)
    assert all(part.dtype == torch.float16 for part in parts)
    assert abs(sum(part.double() for part in parts) - x.double()) <= 2**-25


def test_float32_needs_one_part():
    x = torch.tensor([1 / 3, -1e-30, 1e30])
    (part,) = _split_exactly(x, torch.float32)
    assert torch.equal(part, x)
