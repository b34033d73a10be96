"""Asks a causal language model: reads prompts of any length, many at once, and decodes what it writes after them.

A model that keeps a bounded state reads its prompts piece by piece: memory does not depend on their length, and no
prompt is ever whole in memory. Any other model of transformers reads a prompt in one call of its own `generate`. Either
way rows of different lengths get what each would get alone.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lm2.data.bounds import at_least

# Tokens that a model with a bounded state reads in one call, all rows together: enough to keep a device busy.
CALL_TOKENS = 16_384

Pieces = Iterable[NDArray[np.int32]]


@dataclass(frozen=True)
class Decoding:
    """How a model's continuation is decoded.

    Attributes:
        max_new_tokens: At most so many tokens.
        ends: Texts that end the continuation when one is in it, such as "."; beside the model's end-of-text tokens.
        temperature: 0 takes the likeliest token; above, tokens are drawn from torch's random numbers.
        top_k: Draw from the k likeliest tokens only.
        top_p: Draw from the fewest likeliest tokens whose probabilities add up to this.

    Raises:
        ValueError: a number out of range, or one that has no effect because nothing is drawn.
    """

    max_new_tokens: int
    ends: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens, 1)
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}, but must be 0 (the likeliest token) or more")
        for name, value in (("top_k", self.top_k), ("top_p", self.top_p)):
            if value is not None and self.temperature == 0:
                raise ValueError(f"{name} is {value}, but has no effect at temperature 0; give a temperature too")
        at_least("top_k", self.top_k, 1)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, but must be above 0 and at most 1")

    def choose(self, logits_BV: Tensor) -> Tensor:
        """The next token of every row, int64 [B]."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        warpers = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None:
            warpers.append(TopPLogitsWarper(self.top_p))
        # None stands for the tokens so far, which these do not look at.
        return torch.multinomial(warpers(None, logits_BV.float()).softmax(-1), 1)[:, 0]

    def options(self) -> dict[str, Any]:
        """The same for transformers' GenerationConfig."""
        if self.temperature == 0:
            return {"do_sample": False}
        top_k, top_p = self.top_k or 0, 1.0 if self.top_p is None else self.top_p
        return {"do_sample": True, "temperature": self.temperature, "top_k": top_k, "top_p": top_p}


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: Without special tokens, otherwise as it was decoded.
        prompt_tokens: Tokens that the model read.
        truncated_tokens: Tokens at the start of the prompt that it did not read.
    """

    text: str
    prompt_tokens: int
    truncated_tokens: int


@dataclass(frozen=True)
class Reading:
    """Where a model stands after it has read.

    Attributes:
        logits_BV: Of each row's next token, on the model's device.
        state: What the model passes from call to call as `cache`; each later call changes it.
        num_tokens: Tokens read, row by row.
    """

    logits_BV: Tensor
    state: Any
    num_tokens: list[int]


class Ending:
    """Tells when a continuation is over."""

    def __init__(self, model: Any, tokenizer: Any, texts: Sequence[str]) -> None:
        """Takes the end-of-text tokens of the model, or else the tokenizer's."""
        token_ids = model.generation_config.eos_token_id
        token_ids = tokenizer.eos_token_id if token_ids is None else token_ids
        if not isinstance(token_ids, list):
            token_ids = [] if token_ids is None else [token_ids]
        self.token_ids = frozenset(token_ids)
        self._tokenizer, self._texts = tokenizer, tuple(texts)

    def is_reached(self, new_ids: Sequence[int]) -> bool:
        """Whether the last of these tokens ends the continuation."""
        if new_ids[-1] in self.token_ids:
            return True
        if not self._texts:
            return False
        written = self._tokenizer.decode(new_ids)
        return any(text in written for text in self._texts)


def keeps_bounded_state(model: Any) -> bool:
    """Whether a model reads any length at constant memory, passing a state of fixed size from call to call.

    Models say so in their configuration: `has_memory`, and an `attention_window` that is not None where there is one (a
    window over the whole text makes an LM2's state grow). Such a model takes `cache` (None at the start) and
    returns its state there; an `attention_mask` of the call's own tokens marks padding, and a row may be all padding.
    """
    config = model.config
    return bool(getattr(config, "has_memory", False)) and getattr(config, "attention_window", 1) is not None


def max_text_tokens(model: Any) -> int | None:
    """Tokens that a text may have, the model's own included; None where there is no limit."""
    if keeps_bounded_state(model):
        return None
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def max_prompt_tokens(model: Any, max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have, so that there are positions for the new ones too; None without a limit.

    Raises:
        ValueError: there is no room for a prompt.
    """
    limit = max_text_tokens(model)
    if limit is not None and max_new_tokens >= limit:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, but the model's max_position_embeddings is {limit}")
    return None if limit is None else limit - max_new_tokens


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Refuses a tokenizer whose tokens the model does not have.

    Raises:
        ValueError: the largest token id is outside the model's vocabulary.
    """
    vocab_size, largest = model.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer has the token id {largest}, but the model's vocab_size is {vocab_size}: it is not this "
            "model's tokenizer; name that with --tokenizer"
        )


def regroup(pieces: Pieces, size: int, first_size: int | None = None) -> Iterator[NDArray[np.int32]]:
    """The same tokens in pieces of exactly `size`, but for the last, and the first where it has a size of its own."""
    waiting: deque[NDArray[np.int32]] = deque()
    num_waiting, wanted = 0, size if first_size is None else first_size
    for piece in pieces:
        waiting.append(piece)
        num_waiting += len(piece)
        while num_waiting >= wanted:
            yield np.concatenate(list(_take(waiting, wanted)))
            num_waiting -= wanted
            wanted = size
    if num_waiting:
        yield np.concatenate(list(waiting))


def _take(waiting: deque[NDArray[np.int32]], size: int) -> Iterator[NDArray[np.int32]]:
    while size:
        piece = waiting.popleft()
        if len(piece) > size:
            waiting.appendleft(piece[size:])
        yield piece[:size]
        size -= min(size, len(piece))


@torch.no_grad()
def read(model: Any, prompts: Sequence[Pieces], state: Any = None) -> Reading:
    """Reads prompts piece by piece; for models that `keeps_bounded_state` names.

    Args:
        model: In evaluation mode.
        prompts: The tokens of each row, in pieces of any size.
        state: Of an earlier reading of the same rows, to go on from; it is changed.

    Raises:
        ValueError: a prompt has no tokens; or what the model refuses, such as another model's state.
    """
    size = max(model.config.segment_length, CALL_TOKENS // len(prompts))
    logits: list[Tensor | None] = [None] * len(prompts)
    num_tokens = [0] * len(prompts)
    nothing = np.empty(0, dtype=np.int32)
    for parts in zip_longest(*(regroup(prompt, size) for prompt in prompts), fillvalue=nothing):
        # Padding comes before a row's tokens, so that the last logits of the call are those of its last token.
        ids_BT, mask_BT = pad_left(parts, model.device)
        output = model(ids_BT, attention_mask=mask_BT, cache=state, use_cache=True, logits_to_keep=1)
        state = output.cache
        for row, part in enumerate(parts):
            num_tokens[row] += len(part)
            if len(part):
                logits[row] = output.logits[row, -1]
    _check_not_empty(num_tokens)
    return Reading(torch.stack([row for row in logits if row is not None]), state, num_tokens)


@torch.no_grad()
def decode(model: Any, reading: Reading, decoding: Decoding, ending: Ending) -> list[list[int]]:
    """The tokens that follow a reading, row by row, the one included that ends them.

    The state goes on with them, but for the last token of the longest row, which is never fed back.
    """
    logits_BV = reading.logits_BV
    new_ids: list[list[int]] = [[] for _ in reading.num_tokens]
    is_open = [True] * len(new_ids)
    while True:
        chosen_B = decoding.choose(logits_BV)
        for row, token in enumerate(chosen_B.tolist()):
            if is_open[row]:
                new_ids[row].append(token)
                is_open[row] = len(new_ids[row]) < decoding.max_new_tokens and not ending.is_reached(new_ids[row])
        if not any(is_open):
            return new_ids
        logits_BV = model(chosen_B[:, None], cache=reading.state, use_cache=True).logits[:, -1]


def answer(
    model: Any, tokenizer: Any, prompts: Sequence[Pieces], decoding: Decoding, truncate_tokens: int | None = None
) -> list[Answer]:
    """What a model writes after each of some prompts; each gets what it would get alone.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: The tokens of each prompt, in pieces of any size.
        decoding: How to decode.
        truncate_tokens: Read the last so many tokens of a longer prompt only (as lm-evaluation-harness does).

    Raises:
        ValueError: a prompt has no tokens, or more than the model has positions for.
    """
    dropped = [0] * len(prompts)
    if truncate_tokens is not None:
        prompts, dropped = _keep_last(prompts, truncate_tokens)
    ending = Ending(model, tokenizer, decoding.ends)
    if keeps_bounded_state(model):
        reading = read(model, prompts)
        num_tokens, new_ids = reading.num_tokens, decode(model, reading, decoding, ending)
    else:
        rows = [np.concatenate([np.empty(0, dtype=np.int32), *prompt]) for prompt in prompts]
        num_tokens = [len(row) for row in rows]
        _check_not_empty(num_tokens)
        limit = max_prompt_tokens(model, decoding.max_new_tokens)
        if limit is not None and max(num_tokens) > limit:
            raise ValueError(
                f"a prompt has {max(num_tokens):,} tokens, but the model has positions for {limit:,} and "
                f"{decoding.max_new_tokens} new ones; give a shorter one, or a model with a memory"
            )
        new_ids = _generate(model, tokenizer, rows, decoding, ending)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in new_ids]
    return [Answer(*values) for values in zip(texts, num_tokens, dropped, strict=True)]


def _check_not_empty(num_tokens: Sequence[int]) -> None:
    if not all(num_tokens):
        raise ValueError("a prompt is empty, but a model needs at least one token to go on from")


def pad_left(rows: Sequence[NDArray[np.int32]], device: Any, filler: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [B, T], of rows that end in the last column."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), filler, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = row
        mask[number, width - len(row) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _keep_last(prompts: Sequence[Pieces], size: int) -> tuple[list[Pieces], list[int]]:
    """The last `size` tokens of each prompt, and how many were before; never more than those in memory."""
    kept: list[Pieces] = []
    dropped = []
    for prompt in prompts:
        last: deque[NDArray[np.int32]] = deque(maxlen=2)
        num_tokens = 0
        # The last tokens are in the last two pieces of that size.
        for piece in regroup(prompt, size):
            last.append(piece)
            num_tokens += len(piece)
        kept.append([np.concatenate([np.empty(0, dtype=np.int32), *last])[-size:]])
        dropped.append(max(0, num_tokens - size))
    return kept, dropped


class _Stop(StoppingCriteria):
    """An Ending for `generate`."""

    def __init__(self, ending: Ending, prompt_columns: int) -> None:
        self._ending, self._columns = ending, prompt_columns

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        reached = [self._ending.is_reached(row) for row in input_ids[:, self._columns :].tolist()]
        return torch.tensor(reached, device=input_ids.device)


def _generate(
    model: Any, tokenizer: Any, rows: Sequence[NDArray[np.int32]], decoding: Decoding, ending: Ending
) -> list[list[int]]:
    """As `decode`, by the model's own `generate`: how padding enters positions differs between architectures."""
    padding = next((number for number in (tokenizer.pad_token_id, *sorted(ending.token_ids)) if number is not None), 0)
    ids_BT, mask_BT = pad_left(rows, model.device, padding)
    options = {"max_new_tokens": decoding.max_new_tokens, "pad_token_id": padding, **decoding.options()}
    # Else transformers fills in what the model's folder recommends for chats, such as a repetition penalty.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        output_BT = model.generate(
            ids_BT,
            attention_mask=mask_BT,
            generation_config=GenerationConfig(**options),
            stopping_criteria=StoppingCriteriaList([_Stop(ending, ids_BT.shape[1])]),
        )
    finally:
        model.generation_config = own
    return [_cut(row, ending) for row in output_BT[:, ids_BT.shape[1] :].tolist()]


def _cut(new_ids: list[int], ending: Ending) -> list[int]:
    """Without the padding that follows the end."""
    ends = (count for count in range(1, len(new_ids) + 1) if ending.is_reached(new_ids[:count]))
    return new_ids[: next(ends, len(new_ids))]
