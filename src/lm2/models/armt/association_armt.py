"""
The associative memory of one ARMT block (Rodkin et al. 2024, arXiv 2407.04841, section 2.2).

Shapes: B rows, X columns, M memory tokens, D hidden size, K = `association_key_size`.

An association is a matrix A [K, D] of what was written, and a vector z [K] of how much was written under each key
number. They are kept side by side, [K, D + 1], as reads and writes use the same keys for both. It is float32 in any
model dtype, as sums over thousands of segments must not lose the last one.
"""

import torch
from torch import Tensor, nn

from ..lm2.slots_lm2 import in_float32
from .configuration_armt import ARMTConfig

# Keeps divisions finite where nothing was written (the value of the authors' code).
EPSILON = 1e-5


def dpfp(x: Tensor, order: int) -> Tensor:
    """
    Deterministic parameter-free projection (Schlag et al. 2021, arXiv 2102.11174): of x' = [relu(x), relu(-x)], all
    products x'_i * x'_{i-j} with j = 1..order, so that keys are never negative and seldom overlap.

    Args:
        x: [..., W].

    Returns:
        [..., 2 * order * W].
    """
    halves = torch.cat([x, -x], dim=-1).relu()
    return torch.cat([halves * halves.roll(shift, dims=-1) for shift in range(1, order + 1)], dim=-1)


class Association(nn.Module):
    """
    Projections of one block; values start at zero, so that a fresh block writes nothing and reads nothing.

    Only the values' projection has a gradient at first; the others follow with the next step.
    """

    def __init__(self, config: ARMTConfig):
        super().__init__()
        self.order = config.dpfp_order
        self.shape = (config.association_key_size, config.hidden_size + 1)
        self.query = nn.Linear(config.hidden_size, config.memory_key_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.memory_key_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.beta = nn.Linear(config.hidden_size, 1)

    def empty(self, num_rows: int, device: torch.device) -> Tensor:
        """The association of a document that has not begun."""
        return torch.zeros(num_rows, *self.shape, device=device)

    def read(self, hidden_BXD: Tensor, association: Tensor) -> Tensor:
        """A^T phi(W_q h) / (z . phi(W_q h) + epsilon) of every column h, [B, X, D]; zero of an empty association."""
        query_BXK = dpfp(self.query(hidden_BXD).float(), self.order)
        return self._look_up(query_BXK, association).to(hidden_BXD.dtype)

    def write(self, association: Tensor, hidden_BMD: Tensor) -> Tensor:
        """
        The association after a segment whose memory tokens came out of the block as m_1..m_M, all at once:

            k = phi(W_k m), v = W_v m, beta = sigmoid(w_b . m + b)
            A <- A + sum beta k (v - v_old)^T        v_old: what k reads before the write (delta rule)
            z <- z + sum gamma k                     gamma = clip(1 - z . k / (|k|^2 + epsilon), 0, 1)

        gamma is a constant for the gradient. It keeps z from counting a key twice whose value is only replaced.
        """
        key_BMK = dpfp(self.key(hidden_BMD).float(), self.order)
        beta = self._rate(hidden_BMD)
        with in_float32(association):
            z_dot_key = key_BMK @ association[..., -1:]
        gamma = (1 - z_dot_key / (key_BMK.square().sum(-1, keepdim=True) + EPSILON)).clamp(0, 1).detach()
        change = beta * (self.value(hidden_BMD).float() - self._look_up(key_BMK, association))
        with in_float32(association):
            return association + key_BMK.transpose(1, 2) @ torch.cat([change, gamma], dim=-1)

    def _rate(self, hidden_BMD: Tensor) -> Tensor:
        # Not by Linear's kernel for one output: its rounding depends on where in memory the weights lie, and a model
        # that was saved and loaded must give the same numbers.
        weighted = hidden_BMD.float() * self.beta.weight[0].float()
        return (weighted.sum(-1, keepdim=True) + self.beta.bias.float()).sigmoid()

    def _look_up(self, key: Tensor, association: Tensor) -> Tensor:
        with in_float32(association):
            value, weight = (key @ association).split([self.shape[1] - 1, 1], dim=-1)
        return value / (weight + EPSILON)


__all__ = ["Association", "dpfp"]
