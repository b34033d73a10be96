"""
Attention over all keys of a small set: tokens over a bank's slots (Eq. 1), or slots over a segment's tokens.

Shapes: B rows, G segments, Q queries, N keys, H heads, U key-value heads, K head width.

The kernels of transformers' attention interface (sdpa, eager, flash) never hold the [Q, N] weights, but do not return
the log-sum-exp of the logits that a joint softmax needs. `attend_with_mass` gets it from them: one further key, the
mean of the keys, has a logit that is known, and its share of the softmax tells how much the others weigh.
`attend_to_slots` computes the same from explicit weights: it is the one that can keep the best k slots.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_lm2 import WIDTH_STEP, AttentionModule, call_attention, kernel_dtype


def attend_to_all(
    module: AttentionModule, query_BGQHK: Tensor, key_BGUNK: Tensor, value_BGUNK: Tensor, top_k: int | None
) -> Tensor:
    """
    Softmax averages of the values over all keys, [B, G, Q, H, K].

    Args:
        module: what transformers' attention interface reads (`config`, `scaling`, `num_key_value_groups`).
        query_BGQHK, key_BGUNK, value_BGUNK: any dtype.
        top_k: see `attend_to_slots`.
    """
    if top_k is not None and top_k < key_BGUNK.shape[-2]:
        return _attend_explicitly(module, query_BGQHK, key_BGUNK, value_BGUNK, top_k)[0]
    query, key, value = query_BGQHK.flatten(0, 1).transpose(1, 2), key_BGUNK.flatten(0, 1), value_BGUNK.flatten(0, 1)
    out = call_attention(module, query, key, value, mask=None, causal=False, dropout=0.0)
    return out.unflatten(0, query_BGQHK.shape[:2])


def attend_with_mass(
    module: AttentionModule, query_BGQHK: Tensor, key_BGUNK: Tensor, value_BGUNK: Tensor, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """
    `attend_to_all`, with the log-sum-exp of each query's logits, float32 [B, G, H, Q].

    By the kernel, a log-sum-exp more than 87 above the logit of the mean key is cut to that (float32 and bfloat16 know
    no smaller share); in bfloat16 it has the kernel's rounding, as a share of 1/512. float16 is too narrow for such
    shares, so there the weights are explicit.
    """
    rows, num_keys, width = query_BGQHK.shape[:2], *key_BGUNK.shape[-2:]
    dtype = kernel_dtype(query_BGQHK)
    if dtype == torch.float16 or (top_k is not None and top_k < num_keys):
        return _attend_explicitly(module, query_BGQHK, key_BGUNK, value_BGUNK, top_k)
    query = query_BGQHK.to(dtype).flatten(0, 1).transpose(1, 2)
    key, value = key_BGUNK.to(dtype).flatten(0, 1), value_BGUNK.to(dtype).flatten(0, 1)
    # A constant for the gradient: whatever this key is, the log-sum-exp of the others does not depend on it.
    mean_key = key.detach().mean(-2, keepdim=True)
    # An indicator column in the values returns the mean key's share.
    is_mean_key = torch.zeros(width + WIDTH_STEP, dtype=dtype, device=key.device)
    is_mean_key[width] = 1
    value = torch.cat([is_mean_key.expand(*value.shape[:-2], 1, -1), F.pad(value, (0, WIDTH_STEP))], dim=-2)
    key = F.pad(torch.cat([mean_key, key], dim=-2), (0, WIDTH_STEP))
    wide_query = F.pad(query, (0, WIDTH_STEP))
    out = call_attention(module, wide_query, key, value, mask=None, causal=False, dropout=0.0)
    read, share, _ = out.unflatten(0, rows).split([width, 1, WIDTH_STEP - 1], dim=-1)

    # At most 1 / (N + 1), as a mean logit is below the log of the mean exponential.
    share = share.float().clamp(min=torch.finfo(torch.float32).tiny)
    # In float32, as the kernel sums products of rounded numbers.
    groups = query.shape[1] // mean_key.shape[1]
    mean_logit_RHQ = (query.float() * mean_key.float().repeat_interleave(groups, dim=1)).sum(-1) * module.scaling
    log_odds_BGQH = (torch.log1p(-share) - share.log()).squeeze(-1)
    return (read.float() / (1 - share)).to(dtype), mean_logit_RHQ.unflatten(0, rows) + log_odds_BGQH.transpose(2, 3)


def attend_to_slots(query: Tensor, key: Tensor, value: Tensor, scaling: float, top_k: int | None, visible=None):
    """
    Softmax over slots with explicit weights, in float32, and its log-sum-exp.

    Args:
        query [..., Q, K], key [..., N, K], value [..., N, K]; scaling multiplies the logits.
        top_k: keep only the k best slots of each query, and those that are as good as the last of them.
        visible: bool, broadcast to [..., Q, N], slots that a query may see.

    Returns:
        Averages [..., Q, K] in the value's dtype, and log-sum-exp [..., Q] in float32.
    """
    with in_float32(query):
        logits = (query.float() * scaling) @ key.float().transpose(-1, -2)
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    if top_k is not None and top_k < logits.shape[-1]:
        kth_best = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth_best, float("-inf"))
    with in_float32(query):
        average = logits.softmax(-1) @ value.float()
    return average.to(value.dtype), logits.logsumexp(-1)


def _attend_explicitly(module, query_BGQHK: Tensor, key_BGUNK: Tensor, value_BGUNK: Tensor, top_k: int | None):
    query = query_BGQHK.transpose(2, 3).unflatten(2, (key_BGUNK.shape[2], -1))
    read, log_mass = attend_to_slots(query, key_BGUNK.unsqueeze(3), value_BGUNK.unsqueeze(3), module.scaling, top_k)
    return read.flatten(2, 3).transpose(2, 3), log_mass.flatten(2, 3)


def in_float32(x: Tensor) -> torch.autocast:
    """A context in which float32 products stay float32, whatever autocast does around it."""
    return torch.autocast(device_type=x.device.type, enabled=False)
