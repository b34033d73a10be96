"""The copying primer: rows of random tokens, the last of which come twice.

A small model must find the circuit that copies before it can answer from what it read; facts of four names and six
places do not teach it, random tokens do, in some two hundred steps. Three things decide how many (docs/log.md): tokens
may repeat by chance (rows of different tokens have the easy half-answer "one that has come once"), the vocabulary is
small, and embeddings start wide. The distance between the copies must vary, or a model learns a position instead. Ours.
"""

from collections.abc import Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

MIN_COPY_TOKENS = 4


def draw_vocabulary(
    rng: Random, tokens: Sequence[int], size: int | None, always: Sequence[int] = ()
) -> tuple[int, ...]:
    """The tokens that rows are made of.

    Args:
        rng: Random numbers; only `random()` is called, which Python keeps stable.
        tokens: What to choose from.
        size: How many; None for all.
        always: Tokens that are among them in any case.

    Raises:
        ValueError: fewer tokens than are wanted.
    """
    if size is not None and size > len(tokens):
        raise ValueError(
            f"primer_vocab_size is {size}, but must be at most {len(tokens)}, the tokens of the tokenizer without its "
            "special ones"
        )
    return tuple(sorted({*always, *sorted(tokens, key=lambda _: rng.random())[:size]}))


def copying_row(rng: Random, length_tokens: int, vocabulary: Sequence[int]) -> tuple[NDArray[np.int64], range]:
    """A row: something, the original, its copy, something. The original is a quarter to a half of the row.

    Args:
        rng: Random numbers; only `random()` is called, which Python keeps stable.
        length_tokens: Tokens of the row, at least twice MIN_COPY_TOKENS.
        vocabulary: What tokens are drawn from, each on its own.

    Returns:
        The row, and the places that can be foretold: the copy without its first token.
    """
    num_copied = _draw(rng, max(MIN_COPY_TOKENS, length_tokens // 4), length_tokens // 2)
    copy = _draw(rng, num_copied, length_tokens - num_copied)
    row = np.array([vocabulary[int(rng.random() * len(vocabulary))] for _ in range(length_tokens)], dtype=np.int64)
    row[copy : copy + num_copied] = row[copy - num_copied : copy]
    return row, range(copy + 1, copy + num_copied)


def _draw(rng: Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))
