"""
Where tokens lie in segments: every row cuts its own tokens, so padding and neighbours cannot move a boundary.

Shapes: B rows, T tokens of a call, G segments that a row touches in the call, S segment length, C cells (places in a
segment, C <= S), Q queries per segment (C, or T when the call stays inside one segment), F cells of the open segment
that earlier calls have filled.

A row's tokens are counted from its first real token, or from the start of its current document. Token number p lies in
cell p % S of segment p // S. Nothing here depends on weights; a layout is built once a call and shared by all blocks.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """The part of a call that lies in one segment of each row, with its own padding and document starts."""

    x_BT: Tensor
    valid_BT: Tensor | None = None
    start_BT: Tensor | None = None


@dataclass(frozen=True)
class SegmentLayout:
    """
    The places of one call's tokens. `offset` is the cell of the first token where all rows are alike (no padding, no
    resets, equal counts): then moving between token order and cells is a view. It is None where rows differ, and the
    index tensors say where everything is.

    Attributes:
        full_BG: bool, segments that the call completes. [1, G] where rows are alike.
        number_BG: int64, number of each segment in its document. [1, G] where rows are alike.
        reset_BG: bool, segments that start a document in this call, or None if there are none.
        num_open: cells that the fullest row's open segment holds after the call.
    """

    num_tokens: int
    num_segments: int
    num_cells: int
    offset: int | None
    full_BG: Tensor
    number_BG: Tensor
    reset_BG: Tensor | None
    num_open: int
    completes_any: bool
    valid_BT: Tensor | None = None
    cell_BT: Tensor | None = None
    segment_BT: Tensor | None = None
    source_BGC: Tensor | None = None
    last_segment_B: Tensor | None = None

    @property
    def num_queries(self) -> int:
        """Q: queries per segment; token order is kept inside one segment, so that a decode step asks only once."""
        return self.num_tokens if self.num_segments == 1 else self.num_cells

    @property
    def begins(self) -> Tensor:
        """bool [B], or [1] where rows are alike: the call holds the first token of its first segment."""
        if self.offset is not None:
            return torch.tensor([self.offset == 0], device=self.full_BG.device)
        return self.source_BGC[:, 0, 0] <= self.num_tokens

    def to_cells(self, x_BT: Tensor, past_BF: Tensor | None = None) -> Tensor:
        """[B, T, ...] in token order, after the open segment's [B, F, ...] -> [B, G, C, ...], zero where empty."""
        if self.offset is None:
            return self._gather_cells(x_BT, past_BF)
        if past_BF is not None:
            # A cache that lost its fullest row (`select`) still has that row's number of columns.
            past_BF = past_BF[:, : self.offset]
        pieces = [x_BT] if past_BF is None or past_BF.shape[1] == 0 else [past_BF, x_BT]
        left = self.offset if len(pieces) == 1 else 0
        right = self.num_segments * self.num_cells - self.offset - self.num_tokens
        x = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        if left or right:
            x = F.pad(x, (0, 0) * (x.dim() - 2) + (left, right))
        return x.unflatten(1, (self.num_segments, self.num_cells))

    def to_queries(self, x_BT: Tensor) -> Tensor:
        """[B, T, ...] in token order -> [B, G, Q, ...]."""
        return x_BT.unsqueeze(1) if self.num_segments == 1 else self.to_cells(x_BT)

    def to_tokens(self, y_BGQ: Tensor) -> Tensor:
        """[B, G, Q, ...] -> [B, T, ...] in token order; what padding gets is finite and means nothing."""
        if self.num_segments == 1:
            return y_BGQ.squeeze(1)
        y = y_BGQ.flatten(1, 2)
        if self.offset is not None:
            return y[:, self.offset : self.offset + self.num_tokens]
        return _take(y, self.segment_BT * self.num_cells + self.cell_BT)

    def token_cells(self, num_rows: int, padding: int) -> Tensor:
        """The cell of each token of a call inside one segment, int64 [B, T]; `padding` is what padding gets."""
        if self.offset is not None:
            return torch.arange(self.offset, self.num_cells, device=self.full_BG.device).expand(num_rows, -1)
        return torch.where(self.valid_BT, self.cell_BT, padding)

    def split(self, x_BT: Tensor) -> list["Piece"]:
        """A call of several segments as calls that each stay inside one segment."""
        if self.offset is not None:
            bounds = [min(max(g * self.num_cells - self.offset, 0), self.num_tokens) for g in range(self.num_segments)]
            bounds.append(self.num_tokens)
            return [Piece(x_BT[:, a:b]) for a, b in pairwise(bounds)]
        x_BGC = self.to_cells(x_BT)
        valid_BGC = (self.source_BGC < self.num_tokens).cpu()
        pieces = []
        for g in range(self.num_segments):
            valid, start = valid_BGC[:, g], None
            if self.reset_BG is not None:
                is_first = valid & (valid.cumsum(1) == 1)
                start = is_first & self.reset_BG[:, g : g + 1].cpu()
            pieces.append(Piece(x_BGC[:, g], valid, start))
        return pieces

    def join(self, pieces_BC: list[Tensor]) -> Tensor:
        """Undoes `split`: one [B, ...] per piece -> [B, T, ...]."""
        if self.offset is not None:
            return torch.cat(pieces_BC, dim=1)
        return self.to_tokens(torch.stack(pieces_BC, dim=1))

    def open_cells(self, x_BGC: Tensor) -> Tensor:
        """[B, G, C, ...] -> [B, F, ...]: what the open segment of each row holds after the call."""
        if self.offset is not None:
            last = x_BGC[:, -1]
        else:
            last = x_BGC[torch.arange(x_BGC.shape[0], device=x_BGC.device), self.last_segment_B]
        # A copy, as a view would keep the whole call alive in the state.
        return last[:, : self.num_open].clone()

    def _gather_cells(self, x_BT: Tensor, past_BF: Tensor | None) -> Tensor:
        # Row layout of `source_BGC`: the call's tokens, then a zero for empty cells, then what the past holds.
        empty = x_BT.new_zeros(x_BT.shape[0], 1, *x_BT.shape[2:])
        has_past = past_BF is not None and past_BF.shape[1] > 0
        pool = torch.cat([x_BT, empty, past_BF] if has_past else [x_BT, empty], dim=1)
        source = self.source_BGC if has_past else self.source_BGC.clamp(max=self.num_tokens)
        return _take(pool, source.flatten(1)).unflatten(1, (self.num_segments, self.num_cells))


def _take(x_BL: Tensor, index_BM: Tensor) -> Tensor:
    """x_BL[b, index_BM[b, m]], as one row gather."""
    first_of_row_B1 = torch.arange(x_BL.shape[0], device=x_BL.device).unsqueeze(1) * x_BL.shape[1]
    return x_BL.flatten(0, 1).index_select(0, (index_BM + first_of_row_B1).flatten()).unflatten(0, index_BM.shape)


def lay_out(
    num_tokens: int,
    seen_B: Tensor,
    segment_length: int | None,
    valid_BT: Tensor | None = None,
    start_BT: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> SegmentLayout:
    """
    Lays out one call.

    Args:
        num_tokens: T, columns of the call, padding included.
        seen_B: int64 on the CPU, tokens of the current document that each row has seen before the call.
        segment_length: S, or None for one endless segment per document.
        valid_BT: bool on the CPU, False at padding; None if there is none.
        start_BT: bool on the CPU, True at tokens that start a document; None if there are none.
        device: where the index tensors go.
    """
    alike = valid_BT is None and start_BT is None and bool((seen_B == seen_B[0]).all())
    if alike:
        return _lay_out_alike(num_tokens, seen_B, segment_length, device)
    return _lay_out_ragged(num_tokens, seen_B, segment_length, valid_BT, start_BT, device)


def _lay_out_alike(num_tokens: int, seen_B: Tensor, segment_length: int | None, device) -> SegmentLayout:
    seen = int(seen_B[0])
    length = segment_length or seen + num_tokens + 1
    offset = seen % length
    num_segments = max(1, -(-(offset + num_tokens) // length))
    filled = (offset + num_tokens) % length
    full_BG = torch.ones(1, num_segments, dtype=torch.bool)
    full_BG[:, -1] = filled == 0 and num_tokens > 0
    return SegmentLayout(
        num_tokens=num_tokens,
        num_segments=num_segments,
        num_cells=length if num_segments > 1 else offset + num_tokens,
        offset=offset,
        full_BG=full_BG.to(device),
        number_BG=(seen // length + torch.arange(num_segments)).unsqueeze(0).to(device),
        reset_BG=None,
        num_open=filled,
        completes_any=bool(full_BG.any()),
    )


def _lay_out_ragged(num_tokens, seen_B, segment_length, valid_BT, start_BT, device) -> SegmentLayout:
    num_rows = seen_B.shape[0]
    valid = torch.ones(num_rows, num_tokens, dtype=torch.bool) if valid_BT is None else valid_BT
    start = torch.zeros_like(valid) if start_BT is None else start_BT & valid
    length = segment_length or int(seen_B.max()) + num_tokens + 1

    order = valid.cumsum(1) - 1
    document_start = torch.where(start, order, -1).cummax(1).values
    position = order - torch.where(document_start >= 0, document_start, -seen_B.unsqueeze(1))
    cell = torch.where(valid, position % length, 0)
    # A row without tokens still has its open segment: the first one, so all ordinals start at 0.
    begins = valid & (start | (cell == 0)) & (order > 0)
    segment = torch.where(valid, begins.cumsum(1), 0)

    fill_B = seen_B % length
    num_segments = int(segment.max()) + 1
    num_cells = max(int(cell.max()) + 1, int(fill_B.max()), 1)
    if num_segments > 1 and segment_length is not None:
        num_cells = segment_length

    rows = torch.arange(num_rows).unsqueeze(1).expand_as(valid)
    resets = torch.zeros(num_rows, num_segments, dtype=torch.bool)
    resets[rows[start], segment[start]] = True
    source = torch.full((num_rows, num_segments, num_cells), num_tokens)
    past_cell = torch.arange(num_cells).expand(num_rows, num_cells)
    is_past = (past_cell < fill_B.unsqueeze(1)) & ~resets[:, :1]
    source[:, 0] = torch.where(is_past, num_tokens + 1 + past_cell, num_tokens)
    source[rows[valid], segment[valid], cell[valid]] = torch.arange(num_tokens).expand_as(valid)[valid]

    full = torch.zeros(num_rows, num_segments, dtype=torch.bool)
    ends = valid & (cell == length - 1)
    full[rows[ends], segment[ends]] = True
    number = (seen_B // length).unsqueeze(1).repeat(1, num_segments)
    number[rows[valid], segment[valid]] = position[valid] // length

    last_segment = segment.max(1).values
    last_position = torch.where(
        valid.any(1), torch.where(valid, position, -1).gather(1, order.argmax(1, True))[:, 0], 0
    )
    filled = torch.where(valid.any(1), (last_position + 1) % length, fill_B)
    return SegmentLayout(
        num_tokens=num_tokens,
        num_segments=num_segments,
        num_cells=num_cells,
        offset=None,
        full_BG=full.to(device),
        number_BG=number.to(device),
        reset_BG=resets.to(device) if start_BT is not None and bool(start.any()) else None,
        num_open=int(filled.max()),
        completes_any=bool(full.any()),
        valid_BT=valid.to(device),
        cell_BT=cell.to(device),
        segment_BT=segment.to(device),
        source_BGC=source.to(device),
        last_segment_B=last_segment.to(device),
    )


def count_seen(seen_B: Tensor, num_tokens: int, valid_BT: Tensor | None, start_BT: Tensor | None) -> Tensor:
    """Tokens of its current document that each row has seen after the call; int64 [B] on the CPU."""
    if valid_BT is None and start_BT is None:
        return seen_B + num_tokens
    valid = torch.ones(seen_B.shape[0], num_tokens, dtype=torch.bool) if valid_BT is None else valid_BT
    if start_BT is None:
        return seen_B + valid.sum(1)
    start = start_BT & valid
    after_last_start = start.flip(1).cumsum(1).flip(1)
    since_start = (valid & ((after_last_start - start.long()) == 0) & (start.long().cumsum(1) > 0)).sum(1)
    return torch.where(start.any(1), since_start, seen_B + valid.sum(1))
