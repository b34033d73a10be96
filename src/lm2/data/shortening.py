"""Shortened sentences: facts and questions that lose words without content, so that what belongs together is closer.

`Mary went to the kitchen.` may become `Mary the kitchen` or `Mary kitchen`. At its shortest a story is a row of pairs,
which a model that can copy completes at once; sentences that lose fewer words lead from there to whole ones. Without
them a small model stays where it answers with the latest place (docs/log.md). For training only. Ours.
"""

import re
from collections.abc import Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

# What no answer of the 20 tasks depends on, in the presence of the other words and their order. "went back" tells
# nothing that "went" does not (91% of the places that it names are new to the person).
FILLERS = frozenset(
    {"the", "to", "of", "there", "is", "went", "back", "journeyed", "travelled", "moved"}
    | {"Question", "Where", "What", "Answer", ".", ":", "?"}
)

_WORDS = re.compile(r"\w+|[^\w\s]")


def filler_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which tokens of a text are fillers, or parts of one.

    Args:
        text: Facts, or a question up to its answer.
        offsets: Where each token begins and ends in it, in characters.
    """
    fillers = [match.span() for match in _WORDS.finditer(text) if match.group() in FILLERS]
    is_filler = np.zeros(len(offsets), dtype=bool)
    for number, (first, last) in enumerate(offsets):
        # A token may begin with the space before its word.
        first += len(text[first:last]) - len(text[first:last].lstrip())
        is_filler[number] = any(begin <= first and last <= end for begin, end in fillers)
    return is_filler


def keep_tokens(rng: Random, is_filler: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """Which tokens stay when each filler is left out with the probability `share`.

    Args:
        rng: Random numbers; only `random()` is called, which Python keeps stable.
        is_filler: From `filler_tokens`.
        share: 0 keeps all, 1 keeps what is no filler.
    """
    keep = ~is_filler
    for place in np.flatnonzero(is_filler):
        keep[place] = rng.random() >= share
    return keep
