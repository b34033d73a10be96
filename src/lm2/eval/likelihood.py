"""How likely a causal language model finds given continuations, many rows at once, each as if it were alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm2.eval.perplexity import CALL_LOGITS
from lm2.eval.runner import CALL_TOKENS, Pieces, keeps_bounded_state, max_text_tokens, pad_left, read, regroup


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation.

    Attributes:
        log_probability: In nats, the sum over its tokens.
        is_greedy: Whether each of its tokens is the likeliest one.
    """

    log_probability: float
    is_greedy: bool


@torch.no_grad()
def score_continuations(
    model: Any, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[Likelihood]:
    """The likelihood of each continuation behind its context.

    A model with a bounded state reads both piece by piece, at constant memory; another one in one call.

    Args:
        model: In evaluation mode.
        contexts: Token ids, at least one in each row.
        continuations: Token ids; where there are none the probability is 1.

    Raises:
        ValueError: a context is empty, or a row has more tokens than the model has positions for.
    """
    if not all(len(context) for context in contexts):
        raise ValueError("a context is empty, but a model needs at least one token to go on from")
    rows = [np.array(row, dtype=np.int32) for row in continuations]
    starts = [[np.array(context, dtype=np.int32)] for context in contexts]
    if keeps_bounded_state(model):
        return _score_by_pieces(model, starts, rows)
    return _score_at_once(model, [start[0] for start in starts], rows)


def _score_by_pieces(model: Any, contexts: Sequence[Pieces], rows: Sequence[np.ndarray]) -> list[Likelihood]:
    reading = read(model, contexts)
    state, vocab_size = reading.state, reading.logits_BV.shape[-1]
    size = max(1, min(CALL_TOKENS, CALL_LOGITS // vocab_size) // len(rows))
    last = list(reading.logits_BV)
    totals, greedy = [0.0] * len(rows), [True] * len(rows)
    nothing = np.empty(0, dtype=np.int32)
    for parts in zip_longest(*(regroup([row], size) for row in rows), fillvalue=nothing):
        ids_BT, mask_BT = pad_left(parts, model.device)
        output = model(ids_BT, attention_mask=mask_BT, cache=state, use_cache=True)
        state = output.cache
        for number, part in enumerate(parts):
            if not len(part):
                continue
            of_part = output.logits[number, -len(part) :]
            predicting = torch.cat([last[number].unsqueeze(0), of_part[:-1]])
            total, is_greedy = _score(predicting, part)
            totals[number] += total
            greedy[number] &= is_greedy
            last[number] = of_part[-1]
    return [Likelihood(*pair) for pair in zip(totals, greedy, strict=True)]


def _score_at_once(model: Any, contexts: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> list[Likelihood]:
    # The last token predicts nothing that is asked.
    texts = [
        np.concatenate([context, row])[: max(len(context), len(context) + len(row) - 1)]
        for context, row in zip(contexts, rows, strict=True)
    ]
    longest, limit = max(map(len, texts)), max_text_tokens(model)
    if limit is not None and longest > limit:
        raise ValueError(f"a text has {longest:,} tokens, but the model has positions for {limit:,}")
    # Padding behind a text changes nothing before it, in any causal model, and leaves positions as they are.
    ids_BT = np.zeros((len(texts), longest), dtype=np.int64)
    mask_BT = np.zeros_like(ids_BT)
    for number, text in enumerate(texts):
        ids_BT[number, : len(text)], mask_BT[number, : len(text)] = text, 1
    first = min(map(len, contexts)) - 1
    ids, mask = (torch.from_numpy(array).to(model.device) for array in (ids_BT, mask_BT))
    logits = model(ids, attention_mask=mask, use_cache=False, logits_to_keep=longest - first).logits
    results = []
    for number, (context, row) in enumerate(zip(contexts, rows, strict=True)):
        begin = len(context) - 1 - first
        results.append(Likelihood(*_score(logits[number, begin : begin + len(row)], row)))
    return results


def _score(logits_TV: Tensor, ids: np.ndarray) -> tuple[float, bool]:
    targets = torch.from_numpy(ids.astype(np.int64)).to(logits_TV.device)
    log_probabilities = logits_TV.float().log_softmax(-1).gather(-1, targets.unsqueeze(-1))
    return float(log_probabilities.double().sum()), bool((logits_TV.argmax(-1) == targets).all())
