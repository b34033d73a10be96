"""
RMT: a Llama that hands a few vectors from segment to segment (Bulatov et al. 2022, arXiv 2207.06881; for decoders and
long inputs Bulatov et al. 2024, arXiv 2304.11062, whose published code settles what the papers leave open).

Segment s with memory m_{s-1} [M, D] runs through the Llama as one sequence, with causal attention:

    [m_{s-1}; tokens of segment s; m_{s-1}]  ->  [read; logits; m_s]

The same vectors stand before the segment, where its tokens read them, and behind it, where their last hidden states
(behind the final norm) become m_s. m_0 is learned. A token sees what was read and the tokens before it: the write
tokens come after the segment's end, and are run when its last token has come.

By its nature:
- segments follow one another: m_s is an output of the last block and an input of the first;
- the read tokens change the logits of a pretrained Llama from the first token on, also of a fresh one: `from_llama`
  keeps weights, not logits.

Shapes: B rows, T tokens, X columns of a call, M memory tokens, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.cache import MemoryTokenCache
from ..common.modeling import MemoryTokenForCausalLM, MemoryTokenModel, MemoryTokenPreTrainedModel
from ..common.segment import SegmentBlock, SegmentPlan, start_segment
from ..lm2.cache_lm2 import BlockState
from .configuration_rmt import RMTConfig


class RMTCache(MemoryTokenCache):
    """
    State of [`RMTModel`]: `bank` holds the memory that the open segment reads, [B, M, D]; every block the keys and
    values of that segment so far, its read tokens included. The size is bounded for a given batch.
    """

    config_class = RMTConfig


class RMTDecoderLayer(SegmentBlock):
    """Llama's decoder block; it knows nothing of memory but that some of its tokens are."""

    def forward(
        self, hidden_BXD: Tensor, state: BlockState, plan: SegmentPlan, keep_state: bool
    ) -> tuple[Tensor, BlockState]:
        """See [`SegmentBlock.run_segment`]."""
        return self.run_segment(hidden_BXD, state, plan, keep_state)


class RMTPreTrainedModel(MemoryTokenPreTrainedModel):
    """Loading, saving and initialization."""

    config: RMTConfig
    config_class = RMTConfig
    cache_class = RMTCache
    _no_split_modules = ["RMTDecoderLayer"]


class RMTModel(RMTPreTrainedModel, MemoryTokenModel):
    """The decoder without its head: token ids to hidden states; arguments and results as [`LM2Model`]'s."""

    block_class = RMTDecoderLayer
    reads_memory_tokens = 1

    def _run_segments(
        self,
        pieces_BTD: list[Tensor],
        plans: list[SegmentPlan],
        states: Sequence[BlockState],
        bank: Tensor | None,
        keep_state: bool,
        records: list | None,
    ) -> tuple[list[Tensor], Sequence[BlockState], Tensor | None]:
        """Segment by segment, each through all blocks."""
        initial = self.memory(pieces_BTD[0].shape[0])
        outputs: list[Tensor] = []
        inputs_of_blocks: list[list[Tensor]] = [[] for _ in self.layers]
        for index, (tokens, plan) in enumerate(zip(pieces_BTD, plans, strict=True)):
            bank = start_segment(bank, initial, plan.layout, self.config.bptt_segments)
            hidden = torch.cat([bank[:, : plan.num_read], tokens, bank[:, : plan.num_write]], dim=1)
            next_states = []
            for block, state, inputs in zip(self.layers, states, inputs_of_blocks, strict=True):
                inputs.append(plan.split(hidden)[1])
                hidden, next_state = block(hidden, state, plan, keep_state or index < len(plans) - 1)
                next_states.append(next_state)
            states = next_states
            _, tokens, written = plan.split(hidden)
            outputs.append(tokens)
            if plan.num_write:
                bank = torch.where(plan.completed_rows, self.norm(written), bank)
        if records is not None:
            records.extend(inputs_of_blocks)
        return outputs, states, bank


class RMTForCausalLM(RMTPreTrainedModel, MemoryTokenForCausalLM):
    """[`RMTModel`] with a language-modelling head; takes and returns what `LlamaForCausalLM` does, and generates."""

    model_class = RMTModel


__all__ = ["RMTCache", "RMTForCausalLM", "RMTModel", "RMTPreTrainedModel"]
