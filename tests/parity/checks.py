"""How the parity tests make inputs and compare results."""

from collections.abc import Callable

import torch
from parity.references import float64_weights
from torch import Tensor

TOLERANCE = 1e-5

SHAPE = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}


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


def random_tokens(num_tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SHAPE["vocab_size"], (num_tokens,), generator=generator).tolist()


def assert_same_gradients(model: torch.nn.Module, weights: dict, untouched: tuple[str, ...] = ()) -> None:
    """
    Gradients of all parameters: exactly zero at those `untouched`, at the others there and not zero, or comparing them
    would prove nothing.
    """
    for name, weight in model.named_parameters():
        if untouched and name.endswith(untouched):
            assert weight.grad is None or bool((weight.grad == 0).all()), name
            continue
        assert weights[name].grad is not None, name
        assert bool(weights[name].grad.abs().max() > 0), f"the reference has no gradient at {name}"
        assert weight.grad is not None, name
        # A bias's or a factor's gradient is a sum over all tokens. What rounding does to it is as large as its terms,
        # and those are of the size of the gradients beside it.
        module = name.rpartition(".")[0] + "."
        beside = [other.grad.abs().max() for key, other in weights.items() if key.startswith(module)]
        assert_near(weight.grad, weights[name].grad, TOLERANCE, f"gradient of {name}", among=torch.stack(beside))


def assert_model_is(
    reference: Callable, model: torch.nn.Module, num_tokens: int, banks: Callable, untouched: tuple[str, ...] = ()
) -> None:
    """
    One document in one call, without and with a state; with one, the banks after the call count as results too.

    Args:
        reference: (weights, config, tokens) to logits [T, V] and a list of banks.
        banks: the same list from a state of one row.
        untouched: ends of the names of parameters without a gradient.
    """
    tokens = random_tokens(num_tokens)
    for keep_state in (False, True):
        weights = float64_weights(model)
        want_TV, want_banks = reference(weights, model.config, tokens)
        model.zero_grad(set_to_none=True)
        output = model(torch.tensor([tokens]), use_cache=keep_state)
        got_TV = output.logits[0]
        assert_near(got_TV, want_TV, TOLERANCE, "logits")
        got, want = (got_TV * probe_like(got_TV, 1)).sum(), (want_TV * probe_like(want_TV, 1)).sum()
        if keep_state:
            got_banks = banks(output.cache)
            for index, (got_ND, want_ND) in enumerate(zip(got_banks, want_banks, strict=True)):
                assert_near(got_ND, want_ND, TOLERANCE, f"bank {index}")
                got = got + (got_ND * probe_like(got_ND, 2)).sum()
                want = want + (want_ND * probe_like(want_ND, 2)).sum()
        got.backward()
        want.backward()
        assert_same_gradients(model, weights, untouched)
