"""
Llama's decoder block on one segment of every row, with memory tokens before and after the segment's own.

Shapes: B rows, T tokens of a call (inside one segment of each row), X columns of a call (memory tokens that are read,
T tokens, memory tokens that are written), C cells of the segment, F of them filled before the call, R memory tokens
before a segment, J keys (R + C, and the memory tokens after the segment), H heads, U key-value heads, K head width, D
hidden size.

A segment has R + S + W places: its read tokens, its S cells, its write tokens. A column sees the places up to its own,
and rotary positions count places, so whatever a call holds, a token has the same position and sees the same others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from ..lm2.attention_lm2 import call_attention, rotate
from ..lm2.cache_lm2 import BlockState
from ..lm2.layout_lm2 import SegmentLayout

Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SegmentPlan:
    """
    What all blocks share in one call that stays inside one segment of each row.

    Attributes:
        layout: places of the call's tokens.
        num_read: read tokens among the columns: R if a row's segment begins in this call, else 0. Rows whose segment
            has begun before have columns for them too, which mean nothing.
        num_write: write tokens among the columns: all if a row's segment is completed, else 0. As above.
        mask: bool [B or 1, 1, X, J], True where a column sees a key; None where `causal` says it all.
        causal: whether column i sees keys 0..i (with `mask` None: if not, every column sees every key).
        query_rope, key_rope: (cos, sin), each [B or 1, X, 1, K] and [1, J, 1, K].
    """

    layout: SegmentLayout
    num_read: int
    num_write: int
    mask: Tensor | None
    causal: bool
    query_rope: Rope
    key_rope: Rope

    @property
    def completed_rows(self) -> Tensor:
        """Rows whose segment the call completes, bool [B or 1, 1, 1]."""
        return self.layout.full_BG[:, 0, None, None]

    def split(self, x_BX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read tokens, tokens and write tokens of the columns."""
        read, tokens, write = x_BX.split([self.num_read, self.layout.num_tokens, self.num_write], dim=1)
        return read, tokens, write


def plan_segment(
    layout: SegmentLayout, num_read: int, num_write: int, segment_length: int, rope: Rope, needs_mask: bool
) -> SegmentPlan:
    """
    Args:
        layout: of one segment per row.
        num_read: R, read tokens of a segment.
        num_write: write tokens, or 0 where this call's are not wanted.
        segment_length: S.
        rope: (cos, sin) [P, K] of all places of a segment.
        needs_mask: the attention implementation does not know `is_causal` (eager).
    """
    cos_PK, sin_PK = rope
    device, alike = cos_PK.device, layout.offset is not None
    num_write = num_write if layout.completes_any else 0
    assert num_write == 0 or layout.num_cells == segment_length, "write tokens follow a full segment"
    num_keys = num_read + layout.num_cells + num_write
    columns_read = num_read if bool(layout.begins.any()) else 0
    key_place = torch.arange(num_keys, device=device)
    if alike:
        query_place = torch.arange(0 if layout.offset == 0 else num_read + layout.offset, num_keys, device=device)[None]
    else:
        # Padding sees everything: its numbers mean nothing but must be finite.
        token_place = torch.where(layout.valid_BT, num_read + layout.cell_BT, num_keys - 1)
        num_rows = len(token_place)
        read_place, write_place = key_place[:columns_read], key_place[num_keys - num_write :]
        query_place = torch.cat([read_place.expand(num_rows, -1), token_place, write_place.expand(num_rows, -1)], dim=1)
    is_square, is_one_column = alike and layout.offset == 0, alike and query_place.shape[1] == 1
    mask = None
    if not is_one_column and (needs_mask or not is_square):
        mask = (key_place <= query_place.unsqueeze(-1)).unsqueeze(1)
    return SegmentPlan(
        layout=layout,
        num_read=columns_read,
        num_write=num_write,
        mask=mask,
        causal=mask is None and not is_one_column,
        query_rope=(cos_PK[query_place].unsqueeze(2), sin_PK[query_place].unsqueeze(2)),
        key_rope=(cos_PK[None, :num_keys, None], sin_PK[None, :num_keys, None]),
    )


def start_segment(memory: Tensor | None, initial: Tensor, layout: SegmentLayout, bptt_segments: int | None) -> Tensor:
    """
    The memory that a segment reads: a document starts with the initial one, and truncation cuts gradients.

    Args:
        memory: [B, ..., ...] after the segment before, or as it was when this segment began in an earlier call.
        initial: of a document that has not begun, same shape.
        layout: of one segment per row.
        bptt_segments: the gradient is cut every this many segments of a document; None for never.
    """
    if memory is None:
        return initial
    if layout.reset_BG is not None:
        memory = torch.where(layout.reset_BG[:, 0, None, None], initial, memory)
    if bptt_segments is not None and torch.is_grad_enabled():
        number_B = layout.number_BG[:, 0]
        is_cut_B = layout.begins & (number_B > 0) & (number_B % bptt_segments == 0)
        memory = torch.where(is_cut_B[:, None, None], memory.detach(), memory)
    return memory


class SegmentBlock(LlamaDecoderLayer):
    """Llama's decoder block, with its weights and no others; subclasses say what `forward` does with segments."""

    def run_segment(
        self, hidden_BXD: Tensor, state: BlockState, plan: SegmentPlan, keep_state: bool
    ) -> tuple[Tensor, BlockState]:
        """
        The block on one segment's columns.

        Args:
            hidden_BXD: read tokens, tokens, write tokens.
            state: keys and values of the open segment, and of its read tokens in `memory_keys`, `memory_values`.
            plan: of this call.
            keep_state: whether the next state is wanted; if not, an empty one is returned.
        """
        attention = self.self_attn
        x_BXD = self.input_layernorm(hidden_BXD)
        query, key, value = (
            proj(x_BXD).unflatten(-1, (-1, attention.head_dim))
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        key_JUK, memory_keys, key_cells = _join_keys(key, state.memory_keys, state.keys, plan)
        value_JUK, memory_values, value_cells = _join_keys(value, state.memory_values, state.values, plan)
        query, key_JUK = rotate(query, plan.query_rope), rotate(key_JUK, plan.key_rope)
        query, key_JUK, value_JUK = (x.transpose(1, 2) for x in (query, key_JUK, value_JUK))
        dropout = attention.attention_dropout if self.training else 0.0
        attended = call_attention(attention, query, key_JUK, value_JUK, plan.mask, plan.causal, dropout)
        hidden_BXD = hidden_BXD + attention.o_proj(attended.flatten(-2))
        hidden_BXD = hidden_BXD + self.mlp(self.post_attention_layernorm(hidden_BXD))
        if not keep_state:
            return hidden_BXD, BlockState()
        next_state = BlockState(
            keys=plan.layout.open_cells(key_cells),
            values=plan.layout.open_cells(value_cells),
            memory_keys=memory_keys,
            memory_values=memory_values,
        )
        return hidden_BXD, next_state


def _join_keys(
    new_BX: Tensor, memory_BR: Tensor | None, past_BF: Tensor | None, plan: SegmentPlan
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Keys (or values) of all places [B, J, U, K], of the read tokens, and of the segment's cells [B, 1, C, U, K]."""
    layout = plan.layout
    read, tokens, write = plan.split(new_BX)
    if plan.num_read and (memory_BR is None or layout.offset is not None):
        memory_BR = read.clone()
    elif plan.num_read:
        memory_BR = torch.where(layout.begins[:, None, None, None], read, memory_BR)
    cells = layout.to_cells(tokens, past_BF)
    parts = [cells.squeeze(1), write] if memory_BR is None else [memory_BR, cells.squeeze(1), write]
    return torch.cat(parts, dim=1), memory_BR, cells


__all__ = ["SegmentBlock", "SegmentPlan", "plan_segment", "start_segment"]
