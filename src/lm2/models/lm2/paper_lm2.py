"""
Memory design "paper": Eq. 1-6 of LM2 (arXiv 2502.06049) to the letter, with token i of a segment paired with slot i.

Shapes: B rows, T tokens, C cells of the segment, F of them filled before the call, D hidden size = number of slots N.

The pairing makes the bank a second stream beside the hidden states: block t gets, for every token, the slot M_t[i] that
is paired with it, and hands on M_{t+1}[i]. Token i sees slots j <= i, so Eq. 1 is causal attention inside the segment
whose keys and values come from the slot stream. Slots that no token of the segment is paired with stay in the bank.
"""

import torch
from torch import Tensor, nn

from .attention_lm2 import AttentionPlan, attend
from .configuration_lm2 import LM2Config
from .slots_lm2 import attend_to_slots


class PaperMemory(nn.Module):
    """
    One block's projections and gates; `scale` multiplies Eq. 3's gated memory and is 1 (ours: it starts at 0 where a
    pretrained Llama is given a memory, which otherwise would not keep its logits).
    """

    # What transformers' attention interface reads from the calling module.
    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: LM2Config, layer_idx: int):
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.layer_idx = layer_idx
        self.scaling = size**-0.5
        self.top_k = config.memory_top_k
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.output_gate = nn.Linear(size, size, bias=False)
        self.input_gate = nn.Linear(size, size, bias=False)
        self.forget_gate = nn.Linear(size, size, bias=False)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(
        self,
        x_BTD: Tensor,
        slot_BTD: Tensor,
        past_key_BFD: Tensor | None,
        past_value_BFD: Tensor | None,
        plan: AttentionPlan,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """
        Args:
            x_BTD: E_t, the block's normed input.
            slot_BTD: M_t[i] for every token i, float32.
            past_key_BFD, past_value_BFD: of the segment's earlier slots in this block, from earlier calls.
            plan: attention inside the segment; the call stays inside one segment.

        Returns:
            E_gated [B, T, D], M_{t+1}[i] float32 [B, T, D], and the keys and values of the open segment's slots.
        """
        layout = plan.layout
        slot = slot_BTD.to(x_BTD.dtype)
        key = layout.to_cells(self.key(slot), past_key_BFD)
        value = layout.to_cells(self.value(slot), past_value_BFD)
        query = layout.to_queries(self.query(x_BTD))
        read = layout.to_tokens(self._read(query, key, value, plan))
        g_out = self.output_gate(read).float().sigmoid()
        g_in = self.input_gate(x_BTD).float().sigmoid()
        g_forget = self.forget_gate(read).float().sigmoid()
        gated = (self.scale * g_out * slot_BTD).to(x_BTD.dtype)
        next_slot = g_in * read.float().tanh() + g_forget * slot_BTD
        return gated, next_slot, layout.open_cells(key), layout.open_cells(value)

    def _read(self, query_BGQD: Tensor, key_BGCD: Tensor, value_BGCD: Tensor, plan: AttentionPlan) -> Tensor:
        if self.top_k is None:
            query, key, value = (x.unsqueeze(3) for x in (query_BGQD, key_BGCD, value_BGCD))
            return attend(self, query, key, value, plan, dropout=0.0).squeeze(3)
        visible = plan.mask
        if visible is None:
            visible = torch.ones(query_BGQD.shape[2], key_BGCD.shape[2], dtype=torch.bool, device=key_BGCD.device)
            visible = visible.tril() if plan.causal else visible
        read, _ = attend_to_slots(query_BGQD, key_BGCD, value_BGCD, self.scaling, self.top_k, visible)
        return read
