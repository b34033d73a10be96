"""How the parity tests make inputs and compare results."""

import torch
from torch import Tensor


def assert_near(got: Tensor, want: Tensor, tolerance: float, what: str, among: Tensor | None = None) -> None:
    """
    The largest difference is within `tolerance` of the largest number; where all are zero, so is the result.

    Args:
        among: Whose largest number counts, where those of `want` are sums whose terms may cancel.
    """
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    assert bool(torch.isfinite(got).all()), f"{what}: not finite"
    difference = (got.double() - want.double()).abs().max()
    largest = (want if among is None else among).abs().max()
    assert difference <= tolerance * largest, f"{what}: off by {difference:.3g} where the largest is {largest:.3g}"


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights of ordinary size everywhere, so that nothing that the memory does is too small to be seen."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            if "norm" in name:
                weight.copy_(1 + 0.3 * noise)
            elif name.endswith("read.scale"):
                # Of every sign; at exactly 0 the memory's part is missing, but not its gradient.
                weight.copy_(torch.tensor([1.0, -0.6, 0.0, 0.8]).repeat(4)[: len(weight)])
            elif weight.dim() == 2 and not name.endswith(("embed_tokens.weight", "initial_slots", "null_key")):
                weight.copy_(noise / weight.shape[1] ** 0.5)
            elif not name.endswith("memory.scale"):
                weight.copy_(noise)


def probe_like(x: Tensor, seed: int) -> Tensor:
    """Fixed random factors, to make one number of a result for its gradient."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).double()
