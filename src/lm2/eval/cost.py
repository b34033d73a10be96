"""What a model costs: floating-point operations, time, and the state it keeps after reading."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lm2.eval.runner import keeps_bounded_state, max_text_tokens, read

# Which of torch's attention kernels serves a call depends on the device.
_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
# Logits again, and the gradients of query and key: three products of the key's width; two of the value's.
_FORWARD_PRODUCTS, _BACKWARD_PRODUCTS = (1, 1), (3, 2)


@dataclass(frozen=True)
class ReadingCost:
    """Reading one row, as `lm2 eval` reads: a model with a bounded state piece by piece, any other in one call.

    Attributes:
        tokens: In the row.
        flops: Executed; see [`count_flops`].
        state_bytes: Of what the model passes on to the next token: banks and open segments, or keys and values.
        seconds: Of each round.
    """

    tokens: int
    flops: int
    state_bytes: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class ModelCost:
    """One model.

    Attributes:
        parameters: Their number.
        training_tokens: Of the row that `training_flops` is of.
        training_flops: Executed by forward and backward pass of one row, recomputation included.
        reading: By number of tokens.
    """

    parameters: int
    training_tokens: int
    training_flops: int
    reading: tuple[ReadingCost, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_costs(
    models: Sequence[Any], lengths_tokens: Sequence[int], training_tokens: int, rounds: int, seed: int = 0
) -> list[ModelCost]:
    """Costs of several models, which take turns so that what slows the machine down slows all of them.

    Args:
        models: In evaluation mode.
        lengths_tokens: Of the rows to read; tokens are random.
        training_tokens: Of the row to train on.
        rounds: Of timing, after one that is not timed.
        seed: Of the tokens.

    Raises:
        ValueError: a length below 1, or more tokens than a model has positions for.
    """
    _check_lengths(models, [*lengths_tokens, training_tokens])
    reading: list[list[ReadingCost]] = [[] for _ in models]
    for num_tokens in lengths_tokens:
        rows = [_random_row(model, num_tokens, seed) for model in models]
        counted = [_count_reading(model, row) for model, row in zip(models, rows, strict=True)]
        seconds: list[list[float]] = [[] for _ in models]
        for _ in range(rounds):
            for place, (model, row) in enumerate(zip(models, rows, strict=True)):
                seconds[place].append(_time_reading(model, row))
        for place, (flops, state_bytes) in enumerate(counted):
            reading[place].append(ReadingCost(num_tokens, flops, state_bytes, tuple(seconds[place])))
    return [
        ModelCost(
            sum(parameter.numel() for parameter in model.parameters()),
            training_tokens,
            _count_training(model, _random_row(model, training_tokens, seed)),
            tuple(costs),
        )
        for model, costs in zip(models, reading, strict=True)
    ]


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and attention, as torch counts them; elementwise ones count none.

    Causal attention counts the pairs of query and key that it looks at; attention with a mask counts all pairs, as
    kernels compute those.
    """
    formulas = {}
    for name in _KERNELS:
        forward, backward = (getattr(torch.ops.aten, name + suffix, None) for suffix in ("", "_backward"))
        if forward is not None:
            formulas[forward] = _formula(forward, _FORWARD_PRODUCTS)
        if backward is not None:
            formulas[backward] = _formula(backward, _BACKWARD_PRODUCTS)
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        work()
    return int(counter.get_total_flops())


def _formula(operator: Any, products: tuple[int, int]) -> Callable[..., int]:
    names = [argument.name for argument in operator.default._schema.arguments]
    of_keys, of_values = products

    def count(*arguments: Any, out_shape: Any = None, **options: Any) -> int:
        given = dict(zip(names, arguments, strict=False)) | options
        batch, heads, num_queries, key_width = given["query"]
        num_keys, value_width = given["key"][2], given["value"][3]
        pairs = num_queries * num_keys
        if given.get("is_causal"):
            # Query i sees keys 0 to i.
            square = min(num_queries, num_keys)
            pairs = square * (square + 1) // 2 + (num_queries - square) * num_keys
        return 2 * batch * heads * pairs * (of_keys * key_width + of_values * value_width)

    return count


def _check_lengths(models: Sequence[Any], lengths_tokens: Sequence[int]) -> None:
    if min(lengths_tokens) < 1:
        raise ValueError(f"a length is {min(lengths_tokens)}, but must be at least 1 token")
    longest = max(lengths_tokens)
    for model in models:
        limit = max_text_tokens(model)
        if limit is not None and longest > limit:
            raise ValueError(
                f"a length is {longest:,}, but the max_position_embeddings of a {model.config.model_type} is {limit:,}"
            )


def _random_row(model: Any, num_tokens: int, seed: int) -> np.ndarray:
    vocab_size = model.get_input_embeddings().num_embeddings
    return np.random.default_rng(seed).integers(vocab_size, size=num_tokens, dtype=np.int32)


@torch.no_grad()
def _read(model: Any, row: np.ndarray) -> Any:
    """The model's state after a row."""
    if keeps_bounded_state(model):
        return read(model, [[row]]).state
    ids_BT = torch.from_numpy(row).long().to(model.device)[None]
    return model(input_ids=ids_BT, use_cache=True, logits_to_keep=1).cache


def _count_reading(model: Any, row: np.ndarray) -> tuple[int, int]:
    states: list[Any] = []
    with _frozen(model):
        flops = count_flops(lambda: states.append(_read(model, row)))
    return flops, _state_bytes(states[0])


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """For torch's counter, which wants a graph of all that takes gradients, also where none is made."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _state_bytes(state: Any) -> int:
    if hasattr(state, "num_bytes"):
        return int(state.num_bytes)
    tensors = [tensor for layer in state.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _count_training(model: Any, row: np.ndarray) -> int:
    ids_BT = torch.from_numpy(row).long().to(model.device)[None]

    def step() -> None:
        model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()

    model.train()
    try:
        return count_flops(step)
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)


def _time_reading(model: Any, row: np.ndarray) -> float:
    begin = time.perf_counter()
    _read(model, row)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - begin
