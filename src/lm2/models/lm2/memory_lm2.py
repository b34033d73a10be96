"""
The memory of LM2: banks of slots, read by tokens through an output gate, written through input and forget gates.

Shapes: B rows, G segments, S tokens of a segment (C cells when some are empty), Q queries, N slots, D hidden size,
M memory heads, E = D / M width of a memory head, A width of an address, H attention heads, K their width.

Banks are float32 in any model dtype: a slot must survive thousands of segments that leave it almost alone. Gates are
float32 as well. State goes in and comes out: nothing here remembers anything. What a padded cell holds is never read.

Equations 1-6 are those of LM2, arXiv 2502.06049, section 2.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

from .configuration_lm2 import LM2Config
from .slots_lm2 import attend_to_all, attend_with_mass, in_float32


def linear_scan(keep: Tensor, new: Tensor) -> Tensor:
    """
    All states of the recurrence x_g = keep_g * x_{g-1} + new_g with x_{-1} = 0, elementwise along dimension 1.

    Pairs of steps are merged until one is left, then expanded again: O(G) work in log2(G) rounds, by multiplications
    and additions of the given numbers alone, so that gates at 0 and 1 and any number of steps are exact.

    Args:
        keep, new: [B, G, ...], same shape up to broadcasting of the trailing dimensions.
    """
    num_steps = new.shape[1]
    if num_steps == 1:
        return new
    first_keep, first_new = keep[:, 0:-1:2], new[:, 0:-1:2]
    second_keep, second_new = keep[:, 1::2], new[:, 1::2]
    odd = linear_scan(first_keep * second_keep, second_keep * first_new + second_new)
    later_even = keep[:, 2::2] * odd[:, : (num_steps - 1) // 2] + new[:, 2::2]
    even = torch.cat([new[:, :1], later_even], dim=1)
    if num_steps % 2:
        paired = torch.stack([even[:, :-1], odd], dim=2).flatten(1, 2)
        return torch.cat([paired, even[:, -1:]], dim=1)
    return torch.stack([even, odd], dim=2).flatten(1, 2)


def erase_and_add(gate_SN: Tensor, content_SE: Tensor) -> tuple[Tensor, Tensor]:
    """
    What the tokens of a segment, one after the other, do to the slots: slot_n <- (1 - a_tn) * slot_n + a_tn * c_t.

    In closed form slot' = keep * slot + new with keep_n = prod_t (1 - a_tn), new_n = sum_t w_tn c_t and
    w_tn = a_tn * prod_{u > t} (1 - a_un). A slot with a_tn = 0 for all t has keep exactly 1 and new exactly 0.

    Args:
        gate_SN: a, float32 in [0, 1], [..., S, N]: input gate times address; 1 - a is the forget gate.
        content_SE: c, [..., S, E].

    Returns:
        keep [..., N] and new [..., N, E], float32.
    """
    # The largest float32 below 1 keeps log and gradient finite; it erases to 6e-8.
    gate = gate_SN.clamp(max=1 - 2**-24)
    later_log_keep = torch.log1p(-gate).flip(-2).cumsum(-2).flip(-2)
    keep_N = later_log_keep[..., 0, :].exp()
    weight = gate * F.pad(later_log_keep[..., 1:, :], (0, 0, 0, 1)).exp()
    with in_float32(gate):
        return keep_N, weight.transpose(-1, -2) @ content_SE.float()


def above_floor(gate: Tensor, floor: float) -> Tensor:
    """Gates without what is below the floor: exactly 0 there, and 1 at 1 (ours, see `memory_write_floor`)."""
    return (gate - floor).relu() / (1 - floor)


def recompute(function: Callable, *tensors: Tensor):
    """Calls a cheap function whose inner tensors are computed again for the backward pass instead of being kept."""
    if not torch.is_grad_enabled():
        return function(*tensors)
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


class AddressWrite(nn.Module):
    """
    Every token picks slots and overwrites them there (ours: Eq. 4-6 with an alignment of tokens and slots).

    Per head m: address softmax_n(q_t . address_n), input gate g_in(t) = sigmoid(w_in x_t) (Eq. 4), content
    c_t = tanh(W_c x_t) (the tanh of Eq. 6), forget gate 1 - g_in * address (the complement stands for Eq. 5: a slot is
    forgotten exactly as far as it is overwritten). In evaluation mode only what `above_floor` leaves of g_in * address
    is done, so that a slot that no token means stays as it is.
    """

    def __init__(self, config: LM2Config):
        super().__init__()
        self.num_heads = config.num_memory_heads
        self.address_size = config.head_dim
        self.floor = config.memory_write_floor
        self.query = nn.Linear(config.hidden_size, self.num_heads * self.address_size, bias=False)
        self.address = nn.Parameter(torch.empty(self.num_heads, config.num_memory_slots, self.address_size))
        self.content = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.input_gate = nn.Linear(config.hidden_size, self.num_heads, bias=True)

    def forward(self, x_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """
        The effect of each segment on a bank: bank' = keep * bank + new, both float32 [B, G, N, M, E] (keep with E = 1).
        """
        query = self.query(x_BGSD).unflatten(-1, (self.num_heads, self.address_size)).transpose(2, 3)
        with in_float32(query):
            logits = (query.float() * self.address_size**-0.5) @ self.address.float().transpose(-1, -2)
        gate_BGMS = self.input_gate(x_BGSD).float().sigmoid().transpose(2, 3)
        content = self.content(x_BGSD).tanh().unflatten(-1, (self.num_heads, -1)).transpose(2, 3)
        keep_BGMN, new_BGMNE = recompute(self._write_to_slots, logits, gate_BGMS, content)
        return keep_BGMN.transpose(2, 3).unsqueeze(-1), new_BGMNE.transpose(2, 3)

    def _write_to_slots(self, logits_SN: Tensor, gate_S: Tensor, content_SE: Tensor) -> tuple[Tensor, Tensor]:
        gate_SN = logits_SN.softmax(-1) * gate_S.unsqueeze(-1)
        return erase_and_add(gate_SN if self.training else above_floor(gate_SN, self.floor), content_SE)


class AttendWrite(nn.Module):
    """
    Slots attend to the tokens of the segment and are gated one by one (ours: Eq. 4-6 with the tokens carried to slots).

    Per head, slot n asks with W_q norm(slot_n) and gets u_n, the softmax average of W_v x_t over the segment. Then
    g_in = sigmoid(W_in u) (Eq. 4), g_forget = sigmoid(W_forget [u, norm(slot)]) (Eq. 5: the slot is what was read), and
    slot' = g_in * tanh(u) + g_forget * slot (Eq. 6). The write depends on the bank, so segments follow one another.
    """

    # What transformers' attention interface reads from the calling module, with `config` and `scaling`.
    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: LM2Config):
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.num_heads = config.num_memory_heads
        self.scaling = (size // self.num_heads) ** -0.5
        self.norm = LlamaRMSNorm(size, eps=config.rms_norm_eps)
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.input_gate = nn.Linear(size, size, bias=True)
        self.forget_gate = nn.Linear(2 * size, size, bias=True)

    def keys_values(self, x_SD: Tensor) -> tuple[Tensor, Tensor]:
        """What the tokens offer, independent of any bank: [..., S, D] -> two of [..., M, S, E]."""
        return _split_heads(self.key(x_SD), self.num_heads), _split_heads(self.value(x_SD), self.num_heads)

    def forward(self, bank_BND: Tensor, key_BMSE: Tensor, value_BMSE: Tensor) -> Tensor:
        """The bank after a segment, float32 [B, N, D]."""
        slot = self.norm(bank_BND.to(key_BMSE.dtype))
        query = self.query(slot).unflatten(-1, (self.num_heads, -1))
        query, key, value = (x.unsqueeze(1) for x in (query, key_BMSE, value_BMSE))
        carried = attend_to_all(self, query, key, value, top_k=None)
        carried = carried.squeeze(1).flatten(-2)
        g_in = self.input_gate(carried).float().sigmoid()
        g_forget = self.forget_gate(torch.cat([carried, slot], dim=-1)).float().sigmoid()
        return g_in * carried.float().tanh() + g_forget * bank_BND


class JointRead(nn.Module):
    """
    Slots enter the block's own self-attention (ours; see `attend_jointly`): keys and values by the block's projections
    from the normed slots, without rotary position. The output gate g_out = sigmoid(W_out E_mem) (Eq. 2) has one number
    a head, as it scales a share of the softmax.
    """

    def __init__(self, config: LM2Config):
        super().__init__()
        width = config.num_attention_heads * config.head_dim
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.output_gate = nn.Linear(width, config.num_attention_heads, bias=True)
        self.scale = nn.Parameter(torch.empty(config.num_attention_heads))
        self.top_k = config.memory_top_k
        self.null_key = (
            nn.Parameter(torch.empty(config.num_key_value_heads, config.head_dim)) if config.memory_null_slot else None
        )

    def keys_values(self, bank_ND: Tensor, attention: LlamaAttention) -> tuple[Tensor, Tensor]:
        """[..., N, D] -> keys and values, each [..., U, N, K], U key-value heads; `attention` is the block's."""
        slot = self.norm(bank_ND.to(attention.k_proj.weight.dtype))
        keys, values = (
            proj(slot).unflatten(-1, (-1, attention.head_dim)).transpose(-2, -3)
            for proj in (attention.k_proj, attention.v_proj)
        )
        return _add_null_slot(keys, values, self.null_key)

    def forward(self, query_BGQHK: Tensor, key_BGUNK: Tensor, value_BGUNK: Tensor, attention: LlamaAttention):
        """
        Returns the slots' average [B, G, Q, H, K], each query's log-sum-exp [B, G, H, Q] (float32) and the output gate
        [B, G, Q, H] (float32). Queries have no rotary position; `attention` is the block's.
        """
        # For the few slots that a bank has, to read twice costs little, and to keep what the kernel wants costs more.
        return recompute(partial(self._read, attention), query_BGQHK, key_BGUNK, value_BGUNK)

    def _read(self, attention: LlamaAttention, query_BGQHK: Tensor, key_BGUNK: Tensor, value_BGUNK: Tensor):
        read, log_mass = attend_with_mass(attention, query_BGQHK, key_BGUNK, value_BGUNK, self.top_k)
        return read, log_mass, self.output_gate(read.flatten(-2)).float().sigmoid()


class SeparateRead(nn.Module):
    """
    The paper's own softmax over slots: E_mem by Eq. 1, g_out = sigmoid(E_mem W_out) by Eq. 2, and g_out * E_mem added
    to the attention output by Eq. 3 (whose `M_t` is read as E_mem, the one that has a token's shape).
    """

    # What transformers' attention interface reads from the calling module, with `config` and `scaling`.
    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: LM2Config):
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.num_heads = config.num_memory_heads
        self.scaling = (size // self.num_heads) ** -0.5
        self.norm = LlamaRMSNorm(size, eps=config.rms_norm_eps)
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.output_gate = nn.Linear(size, size, bias=False)
        self.scale = nn.Parameter(torch.empty(self.num_heads))
        self.top_k = config.memory_top_k
        self.null_key = (
            nn.Parameter(torch.empty(self.num_heads, size // self.num_heads)) if config.memory_null_slot else None
        )

    def keys_values(self, bank_ND: Tensor, attention: LlamaAttention) -> tuple[Tensor, Tensor]:
        """[..., N, D] -> keys and values, each [..., M, N, E]."""
        slot = self.norm(bank_ND.to(self.key.weight.dtype))
        keys, values = _split_heads(self.key(slot), self.num_heads), _split_heads(self.value(slot), self.num_heads)
        return _add_null_slot(keys, values, self.null_key)

    def forward(self, x_BGQD: Tensor, key_BGMNE: Tensor, value_BGMNE: Tensor) -> Tensor:
        """E_gated of Eq. 3, [B, G, Q, D]; `x` is the block's normed input."""
        query = self.query(x_BGQD).unflatten(-1, (self.num_heads, -1))
        read = attend_to_all(self, query, key_BGMNE, value_BGMNE, self.top_k).flatten(-2)
        gate = self.output_gate(read).float().sigmoid()
        scale_D = self.scale.repeat_interleave(read.shape[-1] // self.num_heads)
        return (gate * scale_D).to(read.dtype) * read


class SegmentMemory(nn.Module):
    """A block's memory in design "segment": an initial bank, a read and a write; see `LM2Config`."""

    def __init__(self, config: LM2Config):
        super().__init__()
        self.bptt_segments = config.bptt_segments
        self.bank_shape = (config.num_memory_slots, config.hidden_size)
        if config.memory_init == "learned":
            self.initial_slots = nn.Parameter(torch.empty(self.bank_shape))
        else:
            self.initial_slots = None
        self.read: JointRead | SeparateRead = (
            JointRead(config) if config.memory_read == "joint" else SeparateRead(config)
        )
        self.write: AddressWrite | AttendWrite = (
            AddressWrite(config) if config.memory_write == "address" else AttendWrite(config)
        )

    def initial_bank(self, num_rows: int, device: torch.device) -> Tensor:
        """The bank of a document that has not begun, float32 [B, N, D]."""
        if self.initial_slots is None:
            num_slots, size = self.bank_shape
            bank = F.one_hot(torch.arange(num_slots, device=device) % size, size).float()
        else:
            bank = self.initial_slots.float()
        return bank.expand(num_rows, -1, -1)

    def start_segment(self, bank_BND: Tensor, reset_B: Tensor | None, number_B: Tensor) -> Tensor:
        """The bank that a segment reads: a document starts with the initial bank, and truncation cuts gradients."""
        if reset_B is not None:
            initial = self.initial_bank(bank_BND.shape[0], bank_BND.device)
            bank_BND = torch.where(reset_B[:, None, None], initial, bank_BND)
        if self.bptt_segments is not None and torch.is_grad_enabled():
            bank_BND = torch.where(self._is_cut(number_B)[:, None, None], bank_BND.detach(), bank_BND)
        return bank_BND

    def write_segment(self, bank_BND: Tensor, x_BSD: Tensor, full_B: Tensor) -> Tensor:
        """The bank after one segment, float32 [B, N, D]; rows whose segment is not full keep theirs."""
        if isinstance(self.write, AddressWrite):
            keep, new = (effect.squeeze(1) for effect in self.write(x_BSD.unsqueeze(1)))
            bank = (keep * bank_BND.unflatten(-1, new.shape[-2:]) + new).flatten(-2)
        else:
            bank = self.write(bank_BND, *self.write.keys_values(x_BSD))
        return torch.where(full_B[:, None, None], bank, bank_BND)

    def write_segments(
        self, bank_BND: Tensor, x_BGSD: Tensor, full_BG: Tensor, reset_BG: Tensor | None, number_BG: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """
        All writes of a layer, given what all segments write from.

        Args:
            bank_BND: bank before the first segment; x_BGSD: the source of the writes.
            full_BG, reset_BG, number_BG: see `SegmentLayout`.
            last: whether the bank after the last segment is wanted; if not, the last segment writes nothing.

        Returns:
            The banks that the segments read, [B, G, N, D], and the bank after the last segment, [B, N, D]; float32.
        """
        num_rows, num_segments = x_BGSD.shape[:2]
        num_writes = num_segments if last else num_segments - 1
        full_BG, number_BG = (t.expand(num_rows, -1) for t in (full_BG, number_BG))
        if num_writes == 0 or not isinstance(self.write, AddressWrite):
            return self._write_in_turn(bank_BND, x_BGSD, full_BG, reset_BG, number_BG, num_writes)
        return self._write_at_once(bank_BND, x_BGSD[:, :num_writes], full_BG, reset_BG, number_BG, num_segments)

    def _write_in_turn(self, bank, x_BGSD, full_BG, reset_BG, number_BG, num_writes: int) -> tuple[Tensor, Tensor]:
        banks = []
        for g in range(x_BGSD.shape[1]):
            bank = self.start_segment(bank, None if reset_BG is None else reset_BG[:, g], number_BG[:, g])
            banks.append(bank)
            if g < num_writes:
                bank = self.write_segment(bank, x_BGSD[:, g], full_BG[:, g])
        return torch.stack(banks, dim=1), bank

    def _write_at_once(self, bank, x_BGSD, full_BG, reset_BG, number_BG, num_segments: int) -> tuple[Tensor, Tensor]:
        # The banks that segments read are one linear recurrence: from the given bank, then by each segment's effect.
        num_writes = x_BGSD.shape[1]
        keep, new = self.write(x_BGSD)
        heads = new.shape[-2:]
        is_full = full_BG[:, :num_writes, None, None, None]
        keep = torch.cat([torch.zeros_like(keep[:, :1]), torch.where(is_full, keep, 1.0)], dim=1)
        new = torch.cat([bank.unflatten(-1, heads).unsqueeze(1), torch.where(is_full, new, 0.0)], dim=1)
        if reset_BG is not None:
            initial = self.initial_bank(bank.shape[0], bank.device).unflatten(-1, heads).unsqueeze(1)
            keep, new = _restart(keep, new, reset_BG, initial)
        banks = linear_scan(keep, new)
        if self.bptt_segments is not None and torch.is_grad_enabled():
            # Second pass for the gradient: a cut restarts from the bank that the first pass found, as a constant.
            keep, new = _restart(keep, new, self._is_cut(number_BG), banks.detach())
            banks = linear_scan(keep, new)
        banks = banks.flatten(-2)
        # A copy, as a view would keep all of the call's banks alive in the state.
        return banks[:, :num_segments], banks[:, -1].clone()

    def _is_cut(self, number: Tensor) -> Tensor:
        return (number > 0) & (number % self.bptt_segments == 0)


def _restart(keep: Tensor, new: Tensor, where_BG: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Makes the marked steps of a linear recurrence forget what came before and begin with `start`."""
    is_start = F.pad(where_BG, (0, new.shape[1] - where_BG.shape[1]))[..., None, None, None]
    return torch.where(is_start, 0.0, keep), torch.where(is_start, start, new)


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[..., L, D] -> [..., M, L, E]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def _add_null_slot(keys: Tensor, values: Tensor, null_key: Tensor | None) -> tuple[Tensor, Tensor]:
    """Appends a learned key with a value of zeros to [..., heads, N, K]."""
    if null_key is None:
        return keys, values
    null = null_key.unsqueeze(-2).expand(*keys.shape[:-2], 1, -1)
    return torch.cat([keys, null], dim=-2), F.pad(values, (0, 0, 0, 1))
