"""The copying primer: rows of random tokens, a part of which comes twice.

A small model must find the circuit that copies before it can answer from what it read; facts of four names and six
places do not teach it, random tokens do, in about a hundred steps (docs/log.md). The distance between the copies must
vary, or a model learns a position instead. Ours.
"""

from collections.abc import Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

MIN_COPY_TOKENS = 4


def draw_vocabulary(rng: Random, tokens: Sequence[int], size: int | None, length_tokens: int) -> tuple[int, ...]:
    """The tokens that rows are made of.

    Args:
        rng: Random numbers; only `random()` is called, which Python keeps stable.
        tokens: What to choose from.
        size: How many; None for all.
        length_tokens: Tokens of a row.

    Raises:
        ValueError: fewer tokens than are wanted, or than a row has.
    """
    if max(size or 0, length_tokens) > len(tokens):
        raise ValueError(
            f"primer_length_tokens is {length_tokens} and primer_vocab_size {size}, but both must be at most "
            f"{len(tokens)}, the tokens that the tokenizer has without special ones"
        )
    return tuple(sorted(tokens, key=lambda _: rng.random())[:size])


def copying_row(rng: Random, length_tokens: int, vocabulary: Sequence[int]) -> tuple[NDArray[np.int64], range]:
    """A row: something, the original, something, its copy, something; all tokens different but the copied ones.

    Args:
        rng: Random numbers; only `random()` is called, which Python keeps stable.
        length_tokens: Tokens of the row.
        vocabulary: What tokens are drawn from.

    Returns:
        The row, and the places that can be foretold: the copy without its first token.
    """
    num_copied = _draw(rng, MIN_COPY_TOKENS, length_tokens // 2)
    copy = _draw(rng, num_copied, length_tokens - num_copied)
    original = _draw(rng, 0, copy - num_copied)
    drawn: dict[int, None] = {}
    while len(drawn) < length_tokens - num_copied:
        drawn[vocabulary[int(rng.random() * len(vocabulary))]] = None
    different = np.array(list(drawn), dtype=np.int64)
    row = np.insert(different, [copy] * num_copied, different[original : original + num_copied])
    return row, range(copy + 1, copy + num_copied)


def _draw(rng: Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))
