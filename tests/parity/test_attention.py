"""
Self-attention in a window, and its joint softmax with the memory, against loops over queries and heads.

Shapes: B rows, T columns of a call, G segments, Q queries per segment, J keys of a window, H heads, U key-value heads,
K head width.
"""

from dataclasses import dataclass

import pytest
import torch
from parity import references
from parity.checks import TOLERANCE, assert_near, probe_like
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention

from lm2.models.lm2.attention_lm2 import (
    attend,
    attend_jointly,
    plan_attention,
    rotate,
    slide_window,
    window_cells,
)
from lm2.models.lm2.layout_lm2 import count_seen, lay_out

HEAD_DIM = 8
SEGMENT_LENGTH = 3


def llama_attention(num_heads: int, num_key_value_heads: int, implementation: str) -> nn.Module:
    """What the attention interface reads its scaling and grouping from; its own weights are not used."""
    config = LlamaConfig(
        hidden_size=num_heads * HEAD_DIM, num_attention_heads=num_heads, num_key_value_heads=num_key_value_heads
    )
    config._attn_implementation = implementation
    return LlamaAttention(config, layer_idx=0).eval()


def angles(num_positions: int, theta: float = 100.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary tables [P, K], as Llama's rotary embedding gives them."""
    frequency = theta ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angle = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1) * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().float(), angle.sin().float()


@dataclass
class Case:
    """Two calls on a batch: the first fills the open segment and the window, the second is looked at."""

    window: int
    implementation: str
    ragged: bool
    num_first: int = 7
    num_second: int = 8

    def masks(self) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """Of both calls: which columns are tokens, and which begin a document."""
        if not self.ragged:
            return [(None, None), (None, None)]
        first, second = (torch.ones(3, n, dtype=torch.bool) for n in (self.num_first, self.num_second))
        first[0, :2] = False
        first[1, 4:] = False
        second[1, :1] = False
        second[2, 1:] = False
        start = torch.zeros_like(second)
        start[0, 5] = True
        start[1, 1] = True
        return [(first, None), (second, start)]

    def visible(self) -> list[list[list[int]]]:
        """For every row and column of the second call: the columns of both calls, end to end, that it may see."""
        masks = self.masks()
        rows = []
        for row in range(3):
            valid, start = [], []
            for (is_valid, is_start), num in zip(masks, (self.num_first, self.num_second), strict=True):
                valid += [True] * num if is_valid is None else is_valid[row].tolist()
                start += [False] * num if is_start is None else is_start[row].tolist()
            document, position, placed = 0, 0, []
            for is_valid, is_start in zip(valid, start, strict=True):
                if is_start:
                    document, position = document + 1, 0
                placed.append((document, position // SEGMENT_LENGTH, position) if is_valid else None)
                position += is_valid
            rows.append(
                [
                    [
                        other
                        for other in range(column + 1)
                        if placed[column] is not None
                        and placed[other] is not None
                        and placed[other][0] == placed[column][0]
                        and placed[other][1] > placed[column][1] - self.window
                    ]
                    for column in range(self.num_first, self.num_first + self.num_second)
                ]
            )
        return rows

    def position(self, row: int, column: int) -> int:
        """A column's count among the row's tokens: only differences matter, so documents need not start at 0."""
        valid = []
        for (is_valid, _), num in zip(self.masks(), (self.num_first, self.num_second), strict=True):
            valid += [True] * num if is_valid is None else is_valid[row].tolist()
        return sum(valid[:column])

    def window_of_second_call(self, key_BTUK, value_BTUK):
        """Plan, keys and values of the second call after the first one, by the package."""
        rope = angles((self.window - 1) * SEGMENT_LENGTH + SEGMENT_LENGTH)
        seen = torch.zeros(3, dtype=torch.long)
        calls = zip(self.masks(), key_BTUK, value_BTUK, strict=True)
        past = [None, None]
        open_cells = [None, None]
        for (valid, start), key, value in calls:
            layout = lay_out(key.shape[1], seen, SEGMENT_LENGTH, valid, start)
            plan = plan_attention(layout, self.window, SEGMENT_LENGTH, rope, self.implementation == "eager")
            cells = [layout.to_cells(x, kept) for x, kept in zip((key, value), open_cells, strict=True)]
            windows = [window_cells(x, kept, plan) for x, kept in zip(cells, past, strict=True)]
            past = [slide_window(x, kept, plan) for x, kept in zip(cells, past, strict=True)]
            open_cells = [layout.open_cells(x) for x in cells]
            seen = count_seen(seen, key.shape[1], valid, start)
        return plan, rotate(windows[0], plan.key_rope), windows[1]


def case_name(case: Case) -> str:
    return f"W={case.window}-{case.implementation}-{'ragged' if case.ragged else 'alike'}"


CASES = [
    Case(window, implementation, ragged)
    for window in (1, 2, 3)
    for implementation in ("sdpa", "eager")
    for ragged in (False, True)
]


def random_inputs(num_heads: int, num_kv_heads: int, case: Case, seed: int = 0) -> dict[str, torch.Tensor]:
    """Queries of the second call, keys and values of both, and what a read of the memory returned."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    num_tokens = case.num_first + case.num_second
    return {
        "query": 1.5 * normal(3, case.num_second, num_heads, HEAD_DIM),
        "key": 1.5 * normal(3, num_tokens, num_kv_heads, HEAD_DIM),
        "value": normal(3, num_tokens, num_kv_heads, HEAD_DIM),
        "logit": 1 + 2 * normal(3, case.num_second, num_heads),
        "read": normal(3, case.num_second, num_heads, HEAD_DIM),
        "gate": torch.rand(3, case.num_second, num_heads, generator=generator),
        "scale": torch.tensor([0.7, -0.5, 0.0, 1.0])[:num_heads],
    }


def in_turn(x: dict[str, torch.Tensor], case: Case, jointly: bool) -> torch.Tensor:
    """Outputs [B, T, H, K] of the second call, query by query and head by head; zero at padding."""
    num_heads, num_kv_heads = x["query"].shape[2], x["key"].shape[2]
    rows = []
    for row, of_row in enumerate(case.visible()):
        for t, visible in enumerate(of_row):
            for h in range(num_heads):
                if not visible:
                    rows.append(torch.zeros(HEAD_DIM, dtype=torch.float64))
                    continue
                u = h // (num_heads // num_kv_heads)
                query = references.rotate(x["query"][row, t, h], case.position(row, case.num_first + t), 100.0)
                logits = []
                for other in visible:
                    key = references.rotate(x["key"][row, other, u], case.position(row, other), 100.0)
                    logits.append(query @ key / HEAD_DIM**0.5)
                values = [x["value"][row, other, u] for other in visible]
                if jointly:
                    mass = torch.exp(x["logit"][row, t, h])
                    rest = x["read"][row, t, h], x["gate"][row, t, h], x["scale"][h]
                    rows.append(references.joint_softmax(logits, values, mass, *rest))
                else:
                    rows.append(references.softmax_average(logits, values)[0])
    return torch.stack(rows).view(3, case.num_second, num_heads, HEAD_DIM)


def at_once(x: dict[str, torch.Tensor], case: Case, jointly: bool) -> torch.Tensor:
    module = llama_attention(x["query"].shape[2], x["key"].shape[2], case.implementation)
    sizes = [case.num_first, case.num_second]
    plan, key, value = case.window_of_second_call(x["key"].split(sizes, 1), x["value"].split(sizes, 1))
    layout = plan.layout
    query = rotate(layout.to_queries(x["query"]), plan.query_rope)
    dtype = x["query"].dtype
    query, key = query.to(dtype), key.to(dtype)
    if not jointly:
        return layout.to_tokens(attend(module, query, key, value, plan, dropout=0.0))
    logit = layout.to_queries(x["logit"]).transpose(2, 3)
    read, gate = layout.to_queries(x["read"]), layout.to_queries(x["gate"])
    return layout.to_tokens(attend_jointly(module, query, key, value, plan, 0.0, logit, read, gate, x["scale"]))


def valid_columns(case: Case) -> torch.Tensor:
    return torch.tensor([[bool(visible) for visible in of_row] for of_row in case.visible()])


@pytest.mark.parametrize(
    ("case", "num_kv_heads", "jointly"),
    [(case, 2, jointly) for case in CASES for jointly in (False, True)] + [(CASES[5], 1, True), (CASES[1], 4, True)],
    ids=lambda value: case_name(value) if isinstance(value, Case) else str(value),
)
def test_attention_after_an_earlier_call(case, num_kv_heads, jointly):
    """
    Positions count inside the window in the package, along the row in the loop; f is positive, negative and zero.
    """
    x = random_inputs(4, num_kv_heads, case)
    single = {name: tensor.clone().requires_grad_() for name, tensor in x.items()}
    double = {name: tensor.double().requires_grad_() for name, tensor in x.items()}
    valid = valid_columns(case)
    out, want = at_once(single, case, jointly), in_turn(double, case, jointly)
    assert bool(torch.isfinite(out).all())
    out, want = out[valid], want[valid]
    assert_near(out, want, TOLERANCE, "output")
    (out * probe_like(out, 0)).sum().backward()
    (want * probe_like(want, 0)).sum().backward()
    for name in x:
        if jointly or name in ("query", "key", "value"):
            assert_near(single[name].grad, double[name].grad, TOLERANCE, f"gradient of {name}")


@pytest.mark.parametrize("case", CASES[:4], ids=case_name)
def test_one_token_after_an_earlier_call(case):
    case = Case(case.window, case.implementation, False, num_first=7, num_second=1)
    x = random_inputs(4, 2, case)
    want = in_turn({name: tensor.double() for name, tensor in x.items()}, case, jointly=True)
    assert_near(at_once(x, case, jointly=True), want, TOLERANCE, "output")


@pytest.mark.parametrize("logit", [-60.0, -30.0, 0.0, 30.0, 60.0])
@pytest.mark.parametrize("case", CASES[:4], ids=case_name)
def test_a_scale_of_zero_leaves_the_tokens_alone(case, logit):
    # However strongly the memory answers; its gradient is there all the same.
    x = random_inputs(4, 2, case)
    x["scale"] = torch.zeros(4, requires_grad=True)
    x["logit"] = torch.full_like(x["logit"], logit)
    valid = valid_columns(case)
    alone, jointly = at_once(x, case, jointly=False)[valid], at_once(x, case, jointly=True)[valid]
    assert_near(jointly, alone.double(), TOLERANCE, "output")
    if logit <= 30:
        # Proportional to the memory's mass over the tokens': beyond float32 some time after.
        double = {name: tensor.detach().double() for name, tensor in x.items()} | {"scale": torch.zeros(4).double()}
        double["scale"].requires_grad_()
        want = in_turn(double, case, jointly=True)[valid]
        (want * probe_like(want, 0)).sum().backward()
        (gradient,) = torch.autograd.grad((jointly * probe_like(jointly, 0)).sum(), x["scale"])
        assert_near(gradient, double["scale"].grad, TOLERANCE, "gradient of the scale")


@pytest.mark.parametrize("case", CASES[:4], ids=case_name)
def test_a_closed_gate_still_takes_the_memory_into_the_softmax(case):
    # g_out = 0: the memory adds nothing, but its match still draws attention from the tokens.
    x = random_inputs(4, 2, case) | {"scale": torch.ones(4)}
    x["gate"] = torch.zeros_like(x["gate"])
    valid = valid_columns(case)
    double = {name: tensor.double() for name, tensor in x.items()}
    got = at_once(x, case, jointly=True)[valid]
    assert_near(got, in_turn(double, case, jointly=True)[valid], TOLERANCE, "output")
    alone = at_once(x, case, jointly=False)[valid]
    assert bool((got.norm(dim=-1) < alone.norm(dim=-1)).all())


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_joint_softmax_in_bfloat16(case):
    x = random_inputs(4, 2, case)
    low = {name: x[name].bfloat16() if name in ("query", "key", "value", "read") else x[name] for name in x}
    want = in_turn({name: tensor.double() for name, tensor in low.items()}, case, jointly=True)
    got = at_once(low, case, jointly=True)
    valid = valid_columns(case)
    assert got.dtype == torch.bfloat16
    # Rotated queries and keys are rounded too, to half of 2^-8 of logits up to about 10.
    assert_near(got[valid], want[valid], 2**-5, "output")


def one_segment(dtype: torch.dtype, level: float, needs_mask: bool):
    """Four tokens without rotation, whose logits are near a level and exact in low precision."""
    generator = torch.Generator().manual_seed(0)
    plan = plan_attention(lay_out(4, torch.zeros(1, dtype=torch.long), 4), 1, 4, angles(4), needs_mask)
    query = torch.zeros(1, 1, 4, 4, HEAD_DIM)
    key = torch.zeros(1, 1, 4, 2, HEAD_DIM)
    query[..., 0] = 16.0
    key[..., 0] = level * HEAD_DIM**0.5 / 16 + 0.125 * torch.randint(0, 4, (1, 1, 4, 2), generator=generator)
    value, read = (torch.randn(shape, generator=generator) for shape in (key.shape, query.shape))
    logit = level + 0.3 + torch.randn(1, 1, 4, 4, generator=generator)
    gate = torch.rand(1, 1, 4, 4, generator=generator)
    return plan, [x.to(dtype) for x in (query, key, value)], logit, read.to(dtype), gate


@pytest.mark.parametrize(
    ("implementation", "level"),
    # Eager attention rounds every logit to the model's precision before its softmax, Llama's and ours alike.
    [("sdpa", 100.0), ("sdpa", 1.0), ("eager", 1.0)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_memorys_logit_passes_through_low_precision(dtype, implementation, level):
    """At 100, the nearest bfloat16 is up to 0.25 away: a logit that went through it would be a wrong share."""
    inputs = one_segment(dtype, level, needs_mask=implementation == "eager")
    plan, (query, key, value), logit, read, gate = inputs
    scale = torch.tensor([1.0, -0.5, 0.0, 0.8])
    module = llama_attention(4, 2, implementation)
    got = attend_jointly(module, query, key, value, plan, 0.0, logit, read, gate, scale)
    assert got.dtype == dtype
    want = torch.zeros(4, 4, HEAD_DIM, dtype=torch.float64)
    for t in range(4):
        for h in range(4):
            keys, values = key[0, 0, : t + 1, h // 2].double(), value[0, 0, : t + 1, h // 2].double()
            logits = [query[0, 0, t, h].double() @ one / HEAD_DIM**0.5 for one in keys]
            mass = torch.exp(logit[0, 0, h, t].double())
            rest = read[0, 0, t, h].double(), gate[0, 0, t, h].double(), scale[h].double()
            want[t, h] = references.joint_softmax(logits, list(values), mass, *rest)
    assert_near(got[0, 0], want, 4 * torch.finfo(dtype).eps, "output")


@pytest.mark.parametrize("window", [1, 2, 3])
def test_positions_in_the_window_are_positions_in_the_row(window):
    """Scores of rotated queries and keys depend on their distance alone, in whichever segment they lie."""
    generator = torch.Generator().manual_seed(0)
    num_segments, length = 4, SEGMENT_LENGTH
    query, key = (torch.randn(1, num_segments * length, 2, HEAD_DIM, generator=generator) for _ in range(2))
    layout = lay_out(num_segments * length, torch.zeros(1, dtype=torch.long), length)
    plan = plan_attention(layout, window, length, angles(window * length), needs_mask=False)
    rotated_query = rotate(layout.to_queries(query), plan.query_rope)
    rotated_key = rotate(window_cells(layout.to_cells(key), None, plan), plan.key_rope)
    for g in range(num_segments):
        first = (g - window + 1) * length
        for i in range(length):
            for j in range(max(0, -first), (window - 1) * length + i + 1):
                got = rotated_query[0, g, i, 0] @ rotated_key[0, g, j, 0]
                at_query, at_key = g * length + i, first + j
                one = references.rotate(query[0, at_query, 0].double(), at_query, 100.0)
                other = references.rotate(key[0, at_key, 0].double(), at_key, 100.0)
                assert_near(got.view(1), (one @ other).view(1), 1e-4, f"score of {at_query} and {at_key}")
