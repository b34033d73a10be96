"""Perplexity of texts: how well a model predicts each token from all before it, and whether a long past helps.

A document is read through the model's own state, piece by piece: a model with a bounded state reads any length at
constant memory, and the losses are those of one call over the whole document.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lm2.data.encoding import TextEncoder
from lm2.data.files import open_text
from lm2.eval.runner import CALL_TOKENS, Pieces, regroup

# Logits are needed at every token here: at most so many numbers of them at once.
CALL_LOGITS = 2**26

# Characters that are encoded at once.
BLOCK_CHARS = 2**20
# The end of the last line in a block whose next line begins with no white space; or else the last word's.
_LINE_CUT = re.compile(r".*\n(?=\S)", re.DOTALL)
_WORD_CUT = re.compile(r".*\S(?=\s\S)", re.DOTALL)


@dataclass(frozen=True)
class Window:
    """Windows that slide over a text: each is read on its own, and of all but the first the last `stride` tokens count.

    So each token is predicted from at least `length - stride` tokens before it, where there are as many.
    (https://huggingface.co/docs/transformers/perplexity)

    Raises:
        ValueError: not 1 <= stride < length.
    """

    length: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride < self.length:
            raise ValueError(
                f"window is {self.length} and stride {self.stride}, but must be 1 <= stride < window: a token needs "
                "one before it"
            )


@dataclass
class Losses:
    """Sums of losses, in nats, by distance: the number of tokens between a token and the start of its document.

    Attributes:
        num_bytes: Bytes of the text that the tokens counted stand for.
        sums: Of losses at distances 1, 2 to 3, 4 to 7, and so on.
        counts: Tokens there.
    """

    num_bytes: int = 0
    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, first: int, losses: NDArray[np.float64]) -> None:
        """Counts the losses of tokens at distances `first`, `first` + 1 and so on."""
        buckets = np.frexp(np.arange(first, first + len(losses)))[1] - 1
        for bucket in range(int(buckets[0]), int(buckets[-1]) + 1):
            while len(self.sums) <= bucket:
                self.sums.append(0.0)
                self.counts.append(0)
            chosen = losses[buckets == bucket]
            self.sums[bucket] += math.fsum(chosen)
            self.counts[bucket] += len(chosen)

    def merge(self, other: "Losses") -> None:
        """Adds those of another document."""
        self.num_bytes += other.num_bytes
        width = max(len(self.sums), len(other.sums))
        self.sums = [sum(pair) for pair in zip(_widen(self.sums, width), _widen(other.sums, width), strict=True)]
        self.counts = [sum(pair) for pair in zip(_widen(self.counts, width), _widen(other.counts, width), strict=True)]

    def report(self) -> dict[str, Any]:
        """Numbers to print or write: perplexity per token, bits per byte, and the curve of mean losses.

        Raises:
            ValueError: no token was counted.
        """
        tokens, total = sum(self.counts), math.fsum(self.sums)
        if tokens == 0:
            raise ValueError("no token has one before it to be predicted from; give a longer text")
        curve = [
            {"first_distance": 2**bucket, "last_distance": 2 ** (bucket + 1) - 1, "tokens": count, "loss": loss / count}
            for bucket, (loss, count) in enumerate(zip(self.sums, self.counts, strict=True))
            if count
        ]
        return {
            "tokens": tokens,
            "bytes": self.num_bytes,
            "loss": total / tokens,
            "perplexity": math.exp(total / tokens),
            "bits_per_byte": total / math.log(2) / self.num_bytes,
            "curve": curve,
        }


def _widen(values: list[Any], width: int) -> list[Any]:
    return [*values, *[0] * (width - len(values))]


def text_blocks(file: IO[str], size: int = BLOCK_CHARS) -> Iterator[str]:
    """A text in blocks of about `size` characters, cut where tokens begin: after a line, or else before a word.

    The tokens of the blocks are those of the text for byte-level tokenizers (GPT-2, Llama 3, ours); one that puts a
    space before every text it is given (Llama 2) puts it before every block.
    """
    waiting = ""
    while read := file.read(size):
        waiting += read
        cut = _LINE_CUT.match(waiting) or _WORD_CUT.match(waiting)
        if cut:
            yield cut[0]
            waiting = waiting[cut.end() :]
    if waiting:
        yield waiting


def starting_tokens(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before a text, such as `<s>`."""
    text = "a"
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    return whole[: next(start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)]


def count_tokens(path: Path, encoder: TextEncoder) -> int:
    """Tokens of a file, without special ones."""
    with open_text(path) as file:
        return sum(len(ids) for block in text_blocks(file) for ids in encoder.encode_many([block]))


def file_losses(
    model: Any, tokenizer: Any, encoder: TextEncoder, blocks: Iterable[str], window: Window | None
) -> Losses:
    """Losses of one document.

    A token that nothing is before counts neither, nor do its bytes: that is the first one, unless the tokenizer begins
    texts with a special token.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        encoder: The same, for blocks.
        blocks: The document, from `text_blocks`.
        window: Windows to read; None reads all of it, each token after all before.
    """
    losses = Losses()
    start = starting_tokens(tokenizer)

    def pieces() -> Iterator[NDArray[np.int32]]:
        if start:
            yield np.array(start, dtype=np.int32)
        is_first = not start
        for block in blocks:
            for ids in encoder.encode_many([block]):
                losses.num_bytes += len(block.encode())
                if is_first:
                    losses.num_bytes -= len(encoder.decode(ids[:1]).encode())
                    is_first = False
                yield ids

    parts = stream_losses(model, pieces()) if window is None else window_losses(model, pieces(), window)
    # Losses of the special tokens themselves, but for the first, which has none.
    skipped = max(len(start) - 1, 0)
    distance = 1
    for part in parts:
        counted = part[max(0, skipped + 1 - distance) :]
        if len(counted):
            losses.add(distance + len(part) - len(counted), counted)
        distance += len(part)
    return losses


@torch.no_grad()
def stream_losses(model: Any, pieces: Pieces) -> Iterator[NDArray[np.float64]]:
    """The losses of a text's tokens from the second on, in nats, as one call over all of it would give them.

    Raises:
        ValueError: the model returns no state to go on with, and the text is longer than one call.
    """
    vocab_size = model.get_input_embeddings().num_embeddings
    size = max(1, min(CALL_TOKENS, CALL_LOGITS // vocab_size))
    state, last = None, None
    for ids in regroup(pieces, size):
        if last is not None and state is None:
            raise ValueError(
                f"a {type(model).__name__} returns no cache to read a long text with; give --window {size} or less"
            )
        ids_T = torch.from_numpy(ids.astype(np.int64)).to(model.device)
        output = model(ids_T[None], cache=state, use_cache=True)
        state = getattr(output, "cache", None)
        logits_TV, targets_T = output.logits[0, :-1], ids_T[1:]
        if last is not None:
            logits_TV, targets_T = torch.cat([last, logits_TV]), ids_T
        last = output.logits[0, -1:]
        if len(targets_T):
            yield F.cross_entropy(logits_TV.float(), targets_T, reduction="none").cpu().double().numpy()


def window_losses(model: Any, pieces: Pieces, window: Window) -> Iterator[NDArray[np.float64]]:
    """The same, each token predicted from what is before it in its window."""
    text = np.empty(0, dtype=np.int32)
    for new in regroup(pieces, window.stride, first_size=window.length):
        text = np.concatenate([text, new])[-window.length :]
        # The first window's first token has no loss.
        yield np.concatenate([np.empty(0), *stream_losses(model, [text])])[-len(new) :]
