"""
What a caller says about padding and documents, checked and turned into two masks on the CPU.

Shapes: B rows, T tokens of the call, P columns that a cache has seen.
"""

import torch
from torch import Tensor


def read_boundaries(
    shape: tuple[int, int],
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    segment_reset: Tensor | None,
    num_seen: Tensor,
    num_columns: int,
    has_past: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """
    Args:
        shape: (B, T).
        attention_mask: [B, T] or [B, P + T], 1 at tokens; of the latter, only the last T columns are new.
        position_ids: [B or 1, T]; a document begins where they start over.
        segment_reset: bool [B, T], True where a document begins.
        num_seen: int64 [B] on the CPU, tokens of its document that each row has seen.
        num_columns: P.
        has_past: whether there is a state; then a row that has seen nothing begins a document with its next token.

    Returns:
        valid_BT and start_BT, bool on the CPU: tokens that are no padding, and tokens that begin a document. Each is
        None where it says nothing.

    Raises:
        ValueError: wrong shapes or values, or padding between the tokens of a row.
    """
    valid = _read_mask(shape, attention_mask, num_columns)
    start = _read_reset(shape, segment_reset)
    if position_ids is not None:
        restarts = _read_positions(shape, position_ids, valid)
        start = restarts if start is None else start | restarts
    is_unread = (num_seen == 0).unsqueeze(1)
    is_first = torch.zeros(shape, dtype=torch.bool)
    if bool(is_unread.any()):
        real = torch.ones(shape, dtype=torch.bool) if valid is None else valid
        is_first = real & (real.cumsum(1) == 1) & is_unread
    if has_past:
        start = is_first if start is None else start | is_first
    elif start is not None:
        # The first token of a row begins its document in any case.
        start = start & ~is_first
    if start is not None and not bool(start.any()):
        start = None
    return valid, start


def _read_mask(shape: tuple[int, int], attention_mask: Tensor | None, num_columns: int) -> Tensor | None:
    if attention_mask is None:
        return None
    num_rows, num_tokens = shape
    allowed = [(num_rows, num_tokens), (num_rows, num_columns + num_tokens)]
    if tuple(attention_mask.shape) not in allowed:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, but the call has {num_rows} rows of "
            f"{num_tokens} tokens after {num_columns} columns in the cache; it must be "
            f"{' or '.join(str(list(option)) for option in dict.fromkeys(allowed))} (masks of four dimensions are not "
            "taken, as segments decide who sees whom)"
        )
    new = attention_mask[:, attention_mask.shape[1] - num_tokens :].cpu()
    if not bool(((new == 0) | (new == 1)).all()):
        raise ValueError("attention_mask has values other than 0 (padding) and 1 (token); additive masks are not taken")
    valid = new.bool()
    if bool(valid.all()):
        return None
    num_runs = (valid[:, 1:] & ~valid[:, :-1]).sum(1) + valid[:, 0].long()
    if bool((num_runs > 1).any()):
        row = int(num_runs.argmax())
        raise ValueError(
            f"attention_mask has a hole in row {row}: zeros between its tokens; pad on one side or both, and mark the "
            "start of another document with segment_reset"
        )
    return valid


def _read_reset(shape: tuple[int, int], segment_reset: Tensor | None) -> Tensor | None:
    if segment_reset is None:
        return None
    if tuple(segment_reset.shape) != tuple(shape) or segment_reset.dtype != torch.bool:
        raise ValueError(
            f"segment_reset has the shape {tuple(segment_reset.shape)} and dtype {segment_reset.dtype}; it must be a "
            f"bool tensor {list(shape)}, True at tokens that begin a document"
        )
    return segment_reset.cpu()


def _read_positions(shape: tuple[int, int], position_ids: Tensor, valid: Tensor | None) -> Tensor:
    num_rows, num_tokens = shape
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, num_rows) or position_ids.shape[1] != num_tokens:
        raise ValueError(
            f"position_ids has the shape {tuple(position_ids.shape)}; it must be [{num_rows}, {num_tokens}] or "
            f"[1, {num_tokens}]"
        )
    position = position_ids.cpu().expand(num_rows, num_tokens)
    real = torch.ones(shape, dtype=torch.bool) if valid is None else valid
    follows = torch.zeros(shape, dtype=torch.bool)
    follows[:, 1:] = real[:, 1:] & real[:, :-1]
    step = torch.zeros_like(position)
    step[:, 1:] = position[:, 1:] - position[:, :-1]
    restarts = real & ((position == 0) | (follows & (step <= 0)))
    gaps = follows & ~restarts & (step != 1)
    if bool(gaps.any()):
        row, column = (int(i) for i in gaps.nonzero()[0])
        raise ValueError(
            f"position_ids jumps from {int(position[row, column - 1])} to {int(position[row, column])} in row {row}, "
            f"column {column}; positions inside a document are consecutive, and a new document starts at 0"
        )
    return restarts


__all__ = ["read_boundaries"]
