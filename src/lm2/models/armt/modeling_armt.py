"""
ARMT: a Llama whose blocks each keep an associative memory of earlier segments (Rodkin et al. 2024, arXiv 2407.04841;
its published code settles what the paper leaves open).

Behind every segment stand the same M learned memory tokens. Block l, with association A^l (see `association_armt.py`):

    h <- h + read(A^l_{s-1}, h)              all columns of segment s, the memory tokens included
    h <- Llama's block (h)                   causal attention inside [tokens of segment s; memory tokens]
    A^l_s = write(A^l_{s-1}, h at the memory tokens)

A token sees the tokens before it in its segment, and what earlier segments left. The memory tokens come after the
segment's end, and are run when its last token has come.

By its nature:
- inside a block, segments follow one another: what a segment reads is what the block itself made of the segment
  before, so no two segments of a block can run at once. Blocks do not wait for one another's memory, so that a block
  can run all segments before the next block begins, which is what `ARMTModel` does (one call of each block, as in a
  Llama);
- a fresh ARMT has associations that are empty and stay so, as values start at zero: `from_llama` keeps the Llama's
  logits inside a segment, and keys, queries and memory tokens have a gradient from the second optimizer step on.

Shapes: B rows, T tokens, X columns of a call, M memory tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import initialization

from ..common.cache import MemoryTokenCache
from ..common.modeling import MemoryTokenForCausalLM, MemoryTokenModel, MemoryTokenPreTrainedModel
from ..common.segment import SegmentBlock, SegmentPlan, start_segment
from ..lm2.cache_lm2 import BlockState
from .association_armt import Association
from .configuration_armt import ARMTConfig


class ARMTCache(MemoryTokenCache):
    """
    State of [`ARMTModel`]: every block's association (`BlockState.bank`, float32 [B, K, D + 1]), and the keys and
    values of its open segment so far. The size is bounded for a given batch.
    """

    config_class = ARMTConfig


class ARMTDecoderLayer(SegmentBlock):
    """Llama's decoder block, between a read and a write of its association."""

    def __init__(self, config: ARMTConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.bptt_segments = config.bptt_segments
        self.memory = Association(config)

    def forward(
        self, pieces_BXD: list[Tensor], state: BlockState, plans: list[SegmentPlan], keep_state: bool
    ) -> tuple[list[Tensor], BlockState]:
        """
        One block on one call.

        Args:
            pieces_BXD: tokens and memory tokens of the call, segment by segment.
            state: what this block returned from the call before, or an empty state.
            plans: one for each piece.
            keep_state: whether the next state is wanted; if not, it means nothing.
        """
        empty = self.memory.empty(pieces_BXD[0].shape[0], pieces_BXD[0].device)
        outputs, association = [], state.bank
        for index, (hidden, plan) in enumerate(zip(pieces_BXD, plans, strict=True)):
            association = start_segment(association, empty, plan.layout, self.bptt_segments)
            hidden = hidden + self.memory.read(hidden, association)
            hidden, state = self.run_segment(hidden, state, plan, keep_state or index < len(plans) - 1)
            if plan.num_write:
                _, _, written = plan.split(hidden)
                association = torch.where(plan.completed_rows, self.memory.write(association, written), association)
            outputs.append(hidden)
        return outputs, replace(state, bank=association)


class ARMTPreTrainedModel(MemoryTokenPreTrainedModel):
    """Loading, saving and initialization."""

    config: ARMTConfig
    config_class = ARMTConfig
    cache_class = ARMTCache
    _no_split_modules = ["ARMTDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Association):
            initialization.zeros_(module.value.weight)


class ARMTModel(ARMTPreTrainedModel, MemoryTokenModel):
    """The decoder without its head: token ids to hidden states; arguments and results as [`LM2Model`]'s."""

    block_class = ARMTDecoderLayer
    reads_memory_tokens = 0

    def _run_segments(
        self,
        pieces_BTD: list[Tensor],
        plans: list[SegmentPlan],
        states: Sequence[BlockState],
        bank: Tensor | None,
        keep_state: bool,
        records: list | None,
    ) -> tuple[list[Tensor], Sequence[BlockState], Tensor | None]:
        """Block by block, each through all segments."""
        memory_tokens = self.memory(pieces_BTD[0].shape[0])
        hiddens = [
            torch.cat([tokens, memory_tokens[:, : plan.num_write]], dim=1)
            for tokens, plan in zip(pieces_BTD, plans, strict=True)
        ]
        next_states = []
        for block, state in zip(self.layers, states, strict=True):
            if records is not None:
                records.append(_tokens_of(hiddens, plans))
            hiddens, next_state = block(hiddens, state, plans, keep_state)
            next_states.append(next_state)
        return _tokens_of(hiddens, plans), next_states, None


class ARMTForCausalLM(ARMTPreTrainedModel, MemoryTokenForCausalLM):
    """[`ARMTModel`] with a language-modelling head; takes and returns what `LlamaForCausalLM` does, and generates."""

    model_class = ARMTModel


def _tokens_of(hiddens_BXD: list[Tensor], plans: list[SegmentPlan]) -> list[Tensor]:
    return [plan.split(hidden)[1] for hidden, plan in zip(hiddens_BXD, plans, strict=True)]


__all__ = ["ARMTCache", "ARMTForCausalLM", "ARMTModel", "ARMTPreTrainedModel"]
