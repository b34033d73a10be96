"""
Places of tokens in segments against a walk along each row.

Shapes: B rows, T columns of a call, G segments, C cells, Q queries, F cells of the open segment from earlier calls.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.references import place_row

from lm2.models.lm2.layout_lm2 import count_seen, lay_out

GARBAGE = 9999.0  # in cells of the past that a row has not filled: nothing may read them


@dataclass
class Call:
    """One call as its arguments, and where the walk puts every column."""

    num_tokens: int
    seen: list[int]
    segment_length: int | None
    valid: list[list[bool]] | None
    start: list[list[bool]] | None

    def __post_init__(self):
        all_valid = [[True] * self.num_tokens for _ in self.seen]
        none_start = [[False] * self.num_tokens for _ in self.seen]
        rows = zip(self.valid or all_valid, self.start or none_start, self.seen, strict=True)
        walked = [place_row(valid, start, seen, self.segment_length) for valid, start, seen in rows]
        self.places, self.resets, self.seen_after = (list(of_row) for of_row in zip(*walked, strict=True))
        self.num_segments = max(len(resets) for resets in self.resets)

    @property
    def arguments(self) -> tuple:
        """Of `lay_out`."""
        masks = [None if mask is None else torch.tensor(mask) for mask in (self.valid, self.start)]
        return (self.num_tokens, torch.tensor(self.seen), self.segment_length, *masks)

    def lay_out(self):
        return lay_out(*self.arguments)

    def fill(self, seen: int) -> int:
        return seen if self.segment_length is None else seen % self.segment_length

    def tokens(self) -> torch.Tensor:
        """Every token a number of its own, [B, T, 2]."""
        number_BT = 100.0 * (1 + torch.arange(len(self.seen))).unsqueeze(1) + torch.arange(self.num_tokens)
        return torch.stack([number_BT, -number_BT], dim=-1)

    def past(self) -> torch.Tensor:
        """The open segments before the call, [B, F, 2], every cell a number of its own."""
        num_filled = max(self.fill(seen) for seen in self.seen)
        number_BF = 0.5 + 100.0 * (1 + torch.arange(len(self.seen))).unsqueeze(1) + torch.arange(num_filled)
        for row, seen in enumerate(self.seen):
            number_BF[row, self.fill(seen) :] = GARBAGE
        return torch.stack([number_BF, -number_BF], dim=-1)

    def cells(self, num_cells: int, with_past: bool) -> torch.Tensor:
        """What every cell holds by the walk, [B, G, C, 2]; zero if nothing."""
        cells = torch.zeros(len(self.seen), self.num_segments, num_cells, 2)
        for row, places in enumerate(self.places):
            if with_past and not self.resets[row][0]:
                fill = self.fill(self.seen[row])
                cells[row, 0, :fill] = self.past()[row, :fill]
            for column, place in enumerate(places):
                if place is not None:
                    cells[row, place[0], place[1]] = self.tokens()[row, column]
        return cells

    def valid_columns(self) -> torch.Tensor:
        return torch.tensor([[place is not None for place in places] for places in self.places])


@st.composite
def calls(draw) -> Call:
    num_rows = draw(st.integers(1, 3))
    num_tokens = draw(st.integers(1, 12))
    segment_length = draw(st.sampled_from([1, 2, 3, 5, None]))
    seen = draw(st.lists(st.integers(0, 11), min_size=num_rows, max_size=num_rows))
    if draw(st.booleans()):
        seen = seen[:1] * num_rows
    valid = start = None
    if draw(st.booleans()):
        valid = []
        for _ in range(num_rows):
            left = draw(st.integers(0, num_tokens))
            right = draw(st.integers(0, num_tokens - left))
            valid.append([left <= column < num_tokens - right for column in range(num_tokens)])
    if draw(st.booleans()):
        start = [draw(st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens)) for _ in range(num_rows)]
    return Call(num_tokens, seen, segment_length, valid, start)


def row_of(x_BG: torch.Tensor, row: int) -> torch.Tensor:
    """A row of a tensor that has one row where all rows are alike."""
    return x_BG[row if x_BG.shape[0] > 1 else 0]


@settings(max_examples=400, deadline=None)
@given(calls())
def test_every_token_lies_where_the_walk_puts_it(call):
    layout = call.lay_out()
    assert layout.num_segments == call.num_segments
    assert layout.num_queries == (call.num_tokens if call.num_segments == 1 else layout.num_cells)
    if call.segment_length is not None:
        assert layout.num_cells <= call.segment_length
        if call.num_segments > 1:
            assert layout.num_cells == call.segment_length
    got = layout.to_cells(call.tokens(), call.past())
    assert torch.equal(got, call.cells(layout.num_cells, with_past=True))
    for nothing in (None, call.past()[:, :0]):
        got = layout.to_cells(call.tokens(), nothing)
        assert torch.equal(got, call.cells(layout.num_cells, with_past=False))


@settings(max_examples=200, deadline=None)
@given(calls())
def test_what_is_known_of_every_segment(call):
    layout = call.lay_out()
    for row, places in enumerate(call.places):
        touched = {place[0]: place for place in places if place is not None}
        for g in range(call.num_segments):
            is_full = g in touched and touched[g][1] + 1 == call.segment_length
            assert bool(row_of(layout.full_BG, row)[g]) == is_full
            is_reset = g < len(call.resets[row]) and call.resets[row][g]
            assert (layout.reset_BG is not None and bool(layout.reset_BG[row, g])) == is_reset
            if g in touched:
                number = 0 if call.segment_length is None else touched[g][2] // call.segment_length
                assert int(row_of(layout.number_BG, row)[g]) == number
    assert layout.completes_any == bool(layout.full_BG.any())
    assert layout.num_open == max(call.fill(seen) for seen in call.seen_after)
    assert layout.num_open == max(call.fill(seen) for seen in call.seen_after)


@settings(max_examples=200, deadline=None)
@given(calls())
def test_there_and_back(call):
    layout, tokens = call.lay_out(), call.tokens()
    valid = call.valid_columns()
    queries = layout.to_queries(tokens)
    assert queries.shape[1:3] == (layout.num_segments, layout.num_queries)
    assert torch.equal(layout.to_tokens(queries)[valid], tokens[valid])
    assert bool(torch.isfinite(layout.to_tokens(queries)).all())
    if call.num_segments > 1:
        assert torch.equal(layout.to_tokens(layout.to_cells(tokens, call.past()))[valid], tokens[valid])
    else:
        cells = layout.token_cells(len(call.seen), padding=77)
        want = [[77 if place is None else place[1] for place in places] for places in call.places]
        assert cells.tolist() == want


@settings(max_examples=200, deadline=None)
@given(calls())
def test_open_cells_hold_the_open_segment(call):
    layout = call.lay_out()
    x_BGC = layout.to_cells(call.tokens(), call.past())
    open_BF = layout.open_cells(x_BGC)
    assert open_BF.shape[1] == layout.num_open
    for row, resets in enumerate(call.resets):
        fill = call.fill(call.seen_after[row])
        # With cells to show, the row's last touched segment is the one that is open.
        want = call.cells(layout.num_cells, with_past=True)[row, len(resets) - 1, :fill]
        assert torch.equal(open_BF[row, :fill], want)
    if open_BF.numel():
        assert open_BF.untyped_storage().data_ptr() != x_BGC.untyped_storage().data_ptr()


@settings(max_examples=200, deadline=None)
@given(calls())
def test_tokens_seen(call):
    num_tokens, seen, _, valid, start = call.arguments
    assert count_seen(seen, num_tokens, valid, start).tolist() == call.seen_after


@settings(max_examples=200, deadline=None)
@given(calls().filter(lambda call: call.num_segments > 1))
def test_split_gives_calls_inside_one_segment_that_join(call):
    layout, tokens = call.lay_out(), call.tokens()
    seen = torch.tensor(call.seen)
    pieces = layout.split(tokens)
    assert len(pieces) == call.num_segments
    for g, piece in enumerate(pieces):
        for row, places in enumerate(call.places):
            in_piece = piece.x_BT[row] if piece.valid_BT is None else piece.x_BT[row][piece.valid_BT[row]]
            want = [column for column, place in enumerate(places) if place is not None and place[0] == g]
            assert torch.equal(in_piece, tokens[row, want])
        inside = lay_out(piece.x_BT.shape[1], seen, call.segment_length, piece.valid_BT, piece.start_BT)
        assert inside.num_segments == 1
        for row in range(len(call.seen)):
            assert bool(row_of(inside.full_BG, row)[0]) == bool(row_of(layout.full_BG, row)[g])
        seen = count_seen(seen, piece.x_BT.shape[1], piece.valid_BT, piece.start_BT)
    assert seen.tolist() == call.seen_after
    joined = layout.join([piece.x_BT for piece in pieces])
    valid = call.valid_columns()
    assert torch.equal(joined[valid], tokens[valid])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.sampled_from([1, 2, 3, 5]))
def test_open_segments_pass_from_call_to_call(lengths, segment_length):
    # However the tokens of a row are cut into calls, its open segment holds the same at the end.
    numbers = 1.0 + torch.arange(sum(lengths)).view(1, -1, 1)
    past, seen = None, torch.tensor([0])
    for part in numbers.split(lengths, dim=1):
        layout = lay_out(part.shape[1], seen, segment_length)
        past = layout.open_cells(layout.to_cells(part, past))
        seen = count_seen(seen, part.shape[1], None, None)
    num_open = sum(lengths) % segment_length
    assert torch.equal(past, numbers[:, sum(lengths) - num_open :])


@pytest.mark.parametrize("num_columns", [3, 4])
def test_columns_of_rows_that_are_gone_are_not_read(num_columns):
    # After a cache dropped its fullest row, its tensors have more columns than the rows that are left fill.
    layout = lay_out(3, torch.tensor([2]), 5)
    past = torch.full((1, num_columns, 1), GARBAGE)
    past[:, :2] = torch.tensor([1.0, 2.0]).view(1, 2, 1)
    assert layout.to_cells(torch.tensor([3.0, 4.0, 5.0]).view(1, 3, 1), past).flatten().tolist() == [1, 2, 3, 4, 5]
