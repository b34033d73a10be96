"""
One decoder block of LM2: Llama's block, with a memory that it reads before it writes.

Shapes: B rows, T tokens, G segments, Q queries per segment, C cells, J keys a query may see, H heads, U key-value
heads, K head width, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from .attention_lm2 import AttentionPlan, attend, attend_jointly, rotate, slide_window, window_cells
from .cache_lm2 import BlockState
from .configuration_lm2 import LM2Config
from .layout_lm2 import SegmentLayout
from .memory_lm2 import SegmentMemory
from .paper_lm2 import PaperMemory


@dataclass(frozen=True)
class CallPlan:
    """Where a call's tokens lie, the same for all blocks: in segments of the memory, and in the attention's window."""

    segments: SegmentLayout
    attention: AttentionPlan
    inside_segment: AttentionPlan | None


class LM2DecoderLayer(LlamaDecoderLayer):
    """Llama's decoder block; `memory` is None in blocks without one."""

    def __init__(self, config: LM2Config, layer_idx: int):
        super().__init__(config, layer_idx)
        has_memory = layer_idx in config.memory_block_indices
        # Asked of the configuration, not of the module: PEFT puts a wrapper in its place.
        self.design = config.memory_design if has_memory else None
        self.reads_jointly = self.design == "segment" and config.memory_read == "joint"
        self.writes_from_input = config.memory_write_source != "attention"
        self.memory: Any = None
        if has_memory:
            self.memory = SegmentMemory(config) if self.design == "segment" else PaperMemory(config, layer_idx)

    def forward(
        self, hidden_BTD: Tensor, slot_BTD: Tensor | None, state: BlockState, plan: CallPlan, keep_state: bool
    ) -> tuple[Tensor, Tensor | None, BlockState | None]:
        """
        One block on one call.

        Args:
            hidden_BTD: token states.
            slot_BTD: design "paper": the slots paired with the tokens, float32; else None.
            state: what this block returned from the call before, or an empty state.
            plan: places of the tokens; inside one segment for design "paper" and for writes from the attention.
            keep_state: whether the next state is wanted.

        Returns:
            Token states, slots, and the next state (None if not wanted).
        """
        residual = hidden_BTD
        x_BTD = self.input_layernorm(hidden_BTD)
        attention, layout = self.self_attn, plan.attention.layout
        query, key, value = (
            proj(x_BTD).unflatten(-1, (-1, attention.head_dim))
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        key_cells, value_cells = layout.to_cells(key, state.keys), layout.to_cells(value, state.values)
        query_QHK = rotate(layout.to_queries(query), plan.attention.query_rope)
        key_JUK = rotate(window_cells(key_cells, state.window_keys, plan.attention), plan.attention.key_rope)
        value_JUK = window_cells(value_cells, state.window_values, plan.attention)
        attend_arguments = (attention, query_QHK, key_JUK, value_JUK, plan.attention, self._dropout())

        gated_BTD, memory_state = None, {}
        if self.design == "segment":
            read_keys, memory_state = self._pass_bank(x_BTD, state, plan, keep_state)
        if self.reads_jointly:
            attended = attend_jointly(*attend_arguments, *self._read_jointly(query, read_keys, plan))
        else:
            attended = attend(*attend_arguments)
        if self.design == "segment" and not self.reads_jointly:
            gated_BTD = plan.segments.to_tokens(self.memory.read(plan.segments.to_queries(x_BTD), *read_keys))
        elif self.design == "paper":
            gated_BTD, slot_BTD, slot_key, slot_value = self.memory(
                x_BTD, slot_BTD, state.memory_keys, state.memory_values, plan.inside_segment
            )
            memory_state = {"memory_keys": slot_key, "memory_values": slot_value}

        hidden_BTD = residual + attention.o_proj(layout.to_tokens(attended).flatten(-2))
        if gated_BTD is not None:
            hidden_BTD = hidden_BTD + gated_BTD
        x_BTD = self.post_attention_layernorm(hidden_BTD)
        if self.design == "segment" and not self.writes_from_input and keep_state:
            memory_state = self._write_bank(x_BTD, state, memory_state, plan)
        next_state = None
        if keep_state:
            next_state = BlockState(
                keys=layout.open_cells(key_cells),
                values=layout.open_cells(value_cells),
                window_keys=slide_window(key_cells, state.window_keys, plan.attention),
                window_values=slide_window(value_cells, state.window_values, plan.attention),
                **memory_state,
            )
        return hidden_BTD + self.mlp(x_BTD), slot_BTD, next_state

    def _pass_bank(self, x_BTD: Tensor, state: BlockState, plan: CallPlan, keep_state: bool):
        """
        The keys and values of the slots that each segment reads, and the memory's part of the next state (of its next
        state before the write, where writes come from the attention).
        """
        memory, layout = self.memory, plan.segments
        bank = state.bank
        if bank is None:
            bank = memory.initial_bank(x_BTD.shape[0], x_BTD.device)
        if self.writes_from_input:
            source = layout.to_cells(x_BTD, state.source)
            banks, bank = memory.write_segments(
                bank,
                source,
                layout.full_BG,
                layout.reset_BG,
                layout.number_BG,
                last=keep_state and layout.completes_any,
            )
            memory_state = {"source": layout.open_cells(source)} if keep_state else {}
        else:
            reset = None if layout.reset_BG is None else layout.reset_BG[:, 0]
            bank = memory.start_segment(bank, reset, layout.number_BG[:, 0])
            banks = bank.unsqueeze(1)
            memory_state = {}
        # A truncated gradient must also be cut in the slots' keys and values, which earlier segments made.
        may_cut = memory.bptt_segments is not None and torch.is_grad_enabled()
        same_bank = layout.num_segments == 1 and layout.reset_BG is None and not may_cut
        if same_bank and state.memory_keys is not None:
            keys, values = state.memory_keys, state.memory_values
            read_keys = keys.unsqueeze(1), values.unsqueeze(1)
        else:
            read_keys = memory.read.keys_values(banks, self.self_attn)
            keys, values = (x[:, -1] for x in read_keys)
        if keep_state and self.writes_from_input and layout.completes_any:
            keys, values = memory.read.keys_values(bank, self.self_attn)
        if keep_state:
            memory_state |= {"bank": bank, "memory_keys": keys, "memory_values": values}
        return read_keys, memory_state

    def _write_bank(self, source_BTD: Tensor, state: BlockState, memory_state: dict, plan: CallPlan) -> dict:
        """The memory's part of the next state after a write from the attention; the call is inside one segment."""
        layout = plan.segments
        source = layout.to_cells(source_BTD, state.source)
        memory_state |= {"source": layout.open_cells(source)}
        if layout.completes_any:
            full_B = layout.full_BG[:, 0].expand(source.shape[0])
            bank = self.memory.write_segment(memory_state["bank"], source[:, 0], full_B)
            keys, values = self.memory.read.keys_values(bank, self.self_attn)
            memory_state |= {"bank": bank, "memory_keys": keys, "memory_values": values}
        return memory_state

    def _read_jointly(self, query_BTHK: Tensor, read_keys: tuple[Tensor, Tensor], plan: CallPlan):
        """Logit, value, gate and scale of the memory for `attend_jointly`, in the places of the attention's queries."""
        segments, layout = plan.segments, plan.attention.layout
        value, logit, gate = self.memory.read(segments.to_queries(query_BTHK), *read_keys, self.self_attn)
        logit = logit.transpose(2, 3)
        if segments is not layout:
            value, logit, gate = (layout.to_queries(segments.to_tokens(x)) for x in (value, logit, gate))
        return logit.transpose(2, 3), value, gate, self.memory.read.scale.float()

    def _dropout(self) -> float:
        return self.self_attn.attention_dropout if self.training else 0.0
