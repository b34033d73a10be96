"""
Self-attention inside a window of segments, and its joint softmax with the memory's slots.

Shapes: B rows, G segments, C cells, W window in segments, Q queries per segment, J keys a query may see (the window's
cells), H heads, U key-value heads, K head width, R = B * G rows of one attention call.

All attention runs through transformers' attention interface (sdpa, eager, flash). The joint softmax needs no kernel of
its own: softmax over [slots, tokens] equals softmax over [one extra key, tokens] when the extra key's logit is the
log-sum-exp of the slots' logits, and what the slots contribute is that key's probability times the slots' own average.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward, rotate_half

from .layout_lm2 import SegmentLayout, _take

# A `LlamaAttention`, or any module with the attributes that transformers' attention interface reads.
AttentionModule: TypeAlias = Any

# Head widths stay multiples of this when columns are added, as fast kernels ask for it.
WIDTH_STEP = 8


@dataclass(frozen=True)
class AttentionPlan:
    """
    What the self-attention of all blocks shares in one call.

    Attributes:
        layout: places of the tokens; one endless segment per document where the window is the whole past.
        window: W, segments that a query sees, its own included.
        num_past: (W - 1) * S, cells of the window before the query's own segment.
        mask: bool [B or 1, G or 1, Q, J], True where a query sees a key; None where `causal` says it all.
        causal: whether query i sees keys 0..i (with `mask` None: if not, every query sees every key).
        query_rope, key_rope: (cos, sin), each [B or 1, 1, Q, 1, K] and [1, 1, J, 1, K]. Positions count inside the
            window, so that they stay small, and exact in float32, at any length.
    """

    layout: SegmentLayout
    window: int
    num_past: int
    mask: Tensor | None
    causal: bool
    query_rope: tuple[Tensor, Tensor]
    key_rope: tuple[Tensor, Tensor]


def plan_attention(
    layout: SegmentLayout, window: int, segment_length: int | None, rope: tuple[Tensor, Tensor], needs_mask: bool
) -> AttentionPlan:
    """
    Args:
        layout: of the segments that attention is cut into.
        window: W >= 1.
        segment_length: S, or None for endless segments (then W = 1).
        rope: (cos, sin) [P, K] for positions 0 .. P - 1 of a window.
        needs_mask: the attention implementation does not know `is_causal` (eager).
    """
    cos_PK, sin_PK = rope
    device = cos_PK.device
    num_past = (window - 1) * (segment_length or 0)
    cell_C = torch.arange(layout.num_cells, device=device)
    one_segment = layout.num_segments == 1
    alike = layout.offset is not None
    if one_segment and not alike:
        query_cell = layout.cell_BT.unsqueeze(1)
    elif one_segment:
        query_cell = torch.arange(layout.offset, layout.num_cells, device=device)[None, None]
    else:
        query_cell = cell_C[None, None]

    square = not one_segment or (alike and layout.offset == 0)
    sees_all = one_segment and alike and layout.num_tokens == 1
    if window == 1 and (square or sees_all) and not (needs_mask and not sees_all):
        mask, causal = None, not sees_all
    else:
        mask, causal = cell_C <= query_cell.unsqueeze(-1), False
        if one_segment and not alike:
            # A padded query sees everything: its numbers mean nothing but must be finite.
            mask = mask | ~layout.valid_BT[:, None, :, None]
        if window > 1:
            distance = torch.arange(window - 1, 0, -1, device=device).repeat_interleave(segment_length)
            past = (distance <= layout.number_BG.unsqueeze(-1)).unsqueeze(2)
            shape = torch.broadcast_shapes(mask.shape[:3], (*past.shape[:2], mask.shape[2]))
            mask = torch.cat([past.expand(*shape, -1), mask.expand(*shape, -1)], dim=-1)
    query_index, num_keys = query_cell + num_past, num_past + layout.num_cells
    return AttentionPlan(
        layout=layout,
        window=window,
        num_past=num_past,
        mask=mask,
        causal=causal,
        query_rope=(cos_PK[query_index].unsqueeze(3), sin_PK[query_index].unsqueeze(3)),
        key_rope=(cos_PK[None, None, :num_keys, None], sin_PK[None, None, :num_keys, None]),
    )


def window_cells(x_BGC: Tensor, past_BJ: Tensor | None, plan: AttentionPlan) -> Tensor:
    """
    The cells that each segment's window holds, [B, G, J, ...], oldest first.

    Args:
        x_BGC: cells of the call's segments, [B, G, C, ...].
        past_BJ: the `num_past` cells before the first segment; None stands for none seen.
    """
    if plan.window == 1:
        return x_BGC
    num_segments = x_BGC.shape[1]
    past = _past_segments(x_BGC, past_BJ, plan)
    earlier = torch.cat([past, x_BGC[:, :-1]], dim=1) if num_segments > 1 else past
    slices = [earlier[:, i : i + num_segments] for i in range(plan.window - 1)]
    return torch.cat([*slices, x_BGC], dim=2)


def slide_window(x_BGC: Tensor, past_BJ: Tensor | None, plan: AttentionPlan) -> Tensor | None:
    """The `num_past` cells before each row's open segment after the call, [B, num_past, ...]; None for W = 1."""
    layout, num_kept = plan.layout, plan.window - 1
    if num_kept == 0 or not layout.completes_any:
        return past_BJ
    segments = torch.cat([_past_segments(x_BGC, past_BJ, plan), x_BGC], dim=1)
    if layout.offset is not None:
        first = layout.num_segments - 1 + int(layout.num_open == 0)
        return segments[:, first : first + num_kept].flatten(1, 2).clone()
    rows = torch.arange(x_BGC.shape[0], device=x_BGC.device)
    first_B = layout.last_segment_B + layout.full_BG[rows, layout.last_segment_B].long()
    index = first_B.unsqueeze(1) + torch.arange(num_kept, device=x_BGC.device)
    return _take(segments, index).flatten(1, 2)


def _past_segments(x_BGC: Tensor, past_BJ: Tensor | None, plan: AttentionPlan) -> Tensor:
    if past_BJ is None:
        past_BJ = x_BGC.new_zeros(x_BGC.shape[0], plan.num_past, *x_BGC.shape[3:])
    return past_BJ.unflatten(1, (plan.window - 1, -1))


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Applies rotary positions to [B, G, Q or J, heads, K]."""
    cos, sin = rope
    return x * cos + rotate_half(x) * sin


def attend(
    module: AttentionModule,
    query_BGQHK: Tensor,
    key_BGJUK: Tensor,
    value_BGJUK: Tensor,
    plan: AttentionPlan,
    dropout: float,
) -> Tensor:
    """Attention of each segment's queries over its window, [B, G, Q, H, K]."""
    rows = query_BGQHK.shape[:2]
    query, key, value = (x.flatten(0, 1).transpose(1, 2) for x in (query_BGQHK, key_BGJUK, value_BGJUK))
    return call_attention(module, query, key, value, _flat_mask(plan.mask, rows), plan.causal, dropout).unflatten(
        0, rows
    )


def attend_jointly(
    module: AttentionModule,
    query_BGQHK: Tensor,
    key_BGJUK: Tensor,
    value_BGJUK: Tensor,
    plan: AttentionPlan,
    dropout: float,
    memory_logit_BGHQ: Tensor,
    memory_value_BGQHK: Tensor,
    gate_BGQH: Tensor,
    scale_H: Tensor,
) -> Tensor:
    """
    One softmax over slots and tokens in which the output gate scales the memory's share (ours: Eq. 1-3 with a softmax
    that lets a token match compete with a slot match; a separate softmax always returns something).

        out = (Z_tokens * o_tokens + f * g_out * Z_memory * o_memory) / (Z_tokens + |f| * Z_memory)

    with Z the sums of exponentiated logits and o the averages. At f = 1 this is the joint softmax with the memory's
    part gated; at f = 0 it is the block's attention over tokens alone, with a gradient for f.

    Args:
        memory_logit_BGHQ: float32, log-sum-exp of each query's logits over the slots.
        memory_value_BGQHK: o_memory, the slots' softmax average.
        gate_BGQH: float32 output gate g_out in [0, 1].
        scale_H: float32 f, one a head.

    Returns:
        [B, G, Q, H, K] in the dtype of the query (under autocast, in its dtype).
    """
    rows = query_BGQHK.shape[:2]
    dtype = kernel_dtype(query_BGQHK)
    query, key, value = (x.to(dtype).flatten(0, 1).transpose(1, 2) for x in (query_BGQHK, key_BGJUK, value_BGJUK))
    num_rows, num_kv_heads, num_keys, head_dim = key.shape

    logit_parts = _split_exactly(memory_logit_BGHQ.flatten(0, 1) / module.scaling, dtype)
    extra = -(-max(len(logit_parts), 2) // WIDTH_STEP) * WIDTH_STEP
    query = torch.cat([query, *(part.unsqueeze(-1) for part in logit_parts)], dim=-1)
    # Under a causal kernel the extra key comes first, so a first query that nobody uses keeps the diagonal in place.
    query = F.pad(query, (0, extra - len(logit_parts), int(plan.causal), 0))

    memory_key = torch.zeros(head_dim + extra, dtype=dtype, device=key.device)
    memory_key[head_dim : head_dim + len(logit_parts)] = 1
    key = torch.cat([memory_key.expand(num_rows, num_kv_heads, 1, -1), F.pad(key, (0, extra))], dim=2)

    # Two indicator columns in the values return the probability mass of tokens and of the memory.
    indicator = torch.zeros(2, extra, dtype=dtype, device=key.device)
    indicator[0, 0] = indicator[1, 1] = 1
    token_value = torch.cat([value, indicator[0].expand(num_rows, num_kv_heads, num_keys, -1)], dim=-1)
    memory_value = F.pad(indicator[1], (head_dim, 0)).expand(num_rows, num_kv_heads, 1, -1)
    value = torch.cat([memory_value, token_value], dim=2)

    mask = plan.mask if plan.mask is None else F.pad(plan.mask, (1, 0), value=True)
    out = call_attention(module, query, key, value, _flat_mask(mask, rows), plan.causal, dropout)
    out = out[:, int(plan.causal) :].unflatten(0, rows)
    from_tokens, token_mass, memory_mass = out.split([head_dim, 1, extra - 1], dim=-1)
    token_mass, memory_mass = token_mass.float(), memory_mass[..., :1].float()

    scale_H1 = scale_H.unsqueeze(-1)
    total = (token_mass + scale_H1.abs() * memory_mass).clamp(min=torch.finfo(torch.float32).tiny)
    memory_share = scale_H1 * gate_BGQH.unsqueeze(-1) * memory_mass / total
    # Divisions, as the gradient of a reciprocal overflows where the memory's mass dwarfs the tokens'.
    return (from_tokens / total).to(dtype) + memory_share.to(dtype) * memory_value_BGQHK.to(dtype)


def kernel_dtype(query: Tensor) -> torch.dtype:
    """The dtype that an attention kernel computes in."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _split_exactly(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Float32 numbers as a sum of numbers in `dtype`, so that a logit passes through low-precision queries intact."""
    if dtype == torch.float32 or dtype == torch.float64:
        return [x.to(dtype)]
    parts = []
    for _ in range(3):
        parts.append(x.to(dtype))
        x = x - parts[-1].float()
    return parts


def _flat_mask(mask_BGQJ: Tensor | None, rows: Sequence[int]) -> Tensor | None:
    """[B or 1, G or 1, Q, J] -> [R or 1, 1, Q, J], in the order of flattened rows."""
    if mask_BGQJ is None:
        return None
    if mask_BGQJ.shape[:2] != (1, 1):
        mask_BGQJ = mask_BGQJ.expand(*rows, -1, -1)
    return mask_BGQJ.flatten(0, 1).unsqueeze(1)


def call_attention(
    module: AttentionModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    """transformers' attention interface on [R, heads, length, width] -> [R, Q, H, width]; bool masks."""
    name = module.config._attn_implementation
    if mask is not None and "flash" in name:
        # Flash kernels take no free masks; rows that differ (padding, resets, wider windows) go through sdpa.
        name = "sdpa"
    if mask is not None and name == "eager":
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
    out, _ = interface(module, query, key, value, mask, dropout=dropout, scaling=module.scaling, is_causal=causal)
    return out
