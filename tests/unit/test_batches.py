"""Batches: pure functions of recipe and progress, the same for any number of processes; the primer; validation."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from toy_recipe import toy_recipe

from lm2.data.plain import ANSWER_END
from lm2.data.tokenizer import load_tokenizer
from lm2.train.batches import Batch, BatchSource
from lm2.train.curriculum import Progress
from lm2.train.primer import copying_row, draw_vocabulary

PRIMER, SHORT, LONG = 0, 1, 2

_sources: dict[Any, BatchSource] = {}


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Makes sources of the toy recipe with changes, each kept for all tests."""

    def make(rank: int = 0, world_size: int = 1, **changes: Any) -> BatchSource:
        key = repr((rank, world_size, sorted(changes.items())))
        if key not in _sources:
            _sources[key] = BatchSource(toy_recipe(tmp_path, **changes), rank, world_size)
        return _sources[key]

    return make


def _rows(batches: Iterable[Batch]) -> dict[tuple[int, ...], tuple[Any, ...]]:
    """All that belongs to each row that is asked something or learned, by its tokens."""
    return {
        tuple(batch.input_ids[row].tolist()): (
            batch.kind,
            batch.labels[row].tolist(),
            batch.attention_mask[row].tolist(),
            batch.answers[row],
            batch.tasks[row : row + 1],
        )
        for batch in batches
        for row in range(len(batch.input_ids))
        if batch.answers[row]
    }


def _same(a: list[Batch], b: list[Batch]) -> bool:
    return [(batch.first_index, batch.seed) for batch in a] == [(batch.first_index, batch.seed) for batch in b] and all(
        torch.equal(one.input_ids, other.input_ids)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.attention_mask, other.attention_mask)
        and one.answers == other.answers
        for one, other in zip(a, b, strict=True)
    )


# --- purity and sharing ---

PLACES = [Progress(PRIMER, 0, 0), Progress(SHORT, 2, 7), Progress(LONG, 0, 5), Progress(LONG, 9, 19)]


def test_batches_are_a_function_of_progress(source: Any, tmp_path: Path) -> None:
    first = {place: source().micro_batches(place) for place in PLACES}
    again = BatchSource(toy_recipe(tmp_path))
    for place in reversed(PLACES):
        assert _same(again.micro_batches(place), first[place])
        assert _same(source().micro_batches(place), first[place])


@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("place", PLACES)
def test_processes_together_read_what_one_would(source: Any, world_size: int, place: Progress) -> None:
    alone = source().micro_batches(place)
    shares = [source(rank, world_size).micro_batches(place) for rank in range(world_size)]
    assert [len(share) for share in shares] == [len(alone) // world_size] * world_size
    together = sorted((batch for share in shares for batch in share), key=lambda batch: batch.first_index)
    assert _same(together, alone)


def test_other_seeds_and_steps_give_other_batches(source: Any) -> None:
    places = [Progress(LONG, step, step) for step in range(10)]
    rows = [row for place in places for row in _rows(source().micro_batches(place))]
    assert len(set(rows)) == len(rows) == 120
    assert not set(rows) & set(_rows(source(seed=4).micro_batches(places[0])))


def test_rows_are_numbered_over_the_whole_run(source: Any) -> None:
    places = [
        Progress(PRIMER, 0, 0),
        Progress(PRIMER, 1, 1),
        Progress(SHORT, 0, 2),
        Progress(SHORT, 1, 3),
        Progress(LONG, 0, 4),
    ]
    numbers = [
        batch.first_index + row
        for place in places
        for batch in source().micro_batches(place)
        for row in range(len(batch.input_ids))
    ]
    assert numbers == list(range(60))


def test_micro_batches_have_their_size(source: Any) -> None:
    assert [len(batch.input_ids) for batch in source().micro_batches(PLACES[2])] == [2] * 6


# --- lengths ---


def test_a_step_has_one_length_and_steps_have_all(source: Any) -> None:
    counts: Counter[int] = Counter()
    small = source(train__batch_size=4)
    for step in range(120):
        lengths = {batch.input_ids.shape[1] for batch in small.micro_batches(Progress(LONG, step, step))}
        assert len(lengths) == 1
        counts[lengths.pop()] += 1
    assert set(counts) == {96, 192, 288}
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_draw_max_and_margin(source: Any) -> None:
    fixed = source(curriculum__2__segments={"max": 3, "draw": "max"}, data__margin_tokens=20)
    for step in range(5):
        (batch, *_) = fixed.micro_batches(Progress(LONG, step, step))
        assert batch.input_ids.shape == (2, 3 * 96 - 20)
        assert batch.attention_mask.all()


@pytest.mark.parametrize("on", ["answers", "all"])
def test_facts_only_rows_are_padded_on_the_right(source: Any, on: str) -> None:
    tokenizer = load_tokenizer()
    ragged = source(curriculum__2__segments=None, curriculum__2__lengths_tokens=[0], train__loss={"on": on})
    batches = ragged.micro_batches(Progress(LONG, 0, 0))
    padded = 0
    for batch in batches:
        lengths = batch.attention_mask.sum(1)
        assert batch.input_ids.shape[1] == lengths.max()
        places = torch.arange(batch.input_ids.shape[1])
        assert torch.equal(batch.attention_mask.bool(), places < lengths[:, None])
        assert (batch.input_ids[places >= lengths[:, None]] == tokenizer.pad_token_id).all()
        assert (batch.labels[places >= lengths[:, None]] == -100).all()
        padded += int((lengths < lengths.max()).sum())
    assert padded > 0


# --- what is learned ---


def test_labels_are_the_answers(source: Any) -> None:
    tokenizer = load_tokenizer()
    for batch in source().micro_batches(Progress(LONG, 0, 0)):
        assert (batch.kind, batch.weights) == ("task", None)
        assert set(batch.tasks) <= {1, 4}
        for row, answers in enumerate(batch.answers):
            is_answer = torch.zeros_like(batch.labels[row], dtype=torch.bool)
            assert answers
            for begin, end in answers:
                is_answer[begin:end] = True
                assert tokenizer.decode(batch.input_ids[row, begin:end]).endswith(ANSWER_END)
                assert tokenizer.decode(batch.input_ids[row, :begin]).endswith(" Answer:")
            assert torch.equal(batch.labels[row], torch.where(is_answer, batch.input_ids[row], -100))


def test_all_tokens_are_learned_but_padding(source: Any) -> None:
    answers = source().micro_batches(PLACES[2])
    for loss, weight in (({"on": "all"}, None), ({"on": "weighted", "answer_weight": 5.0}, 5.0)):
        for batch, other in zip(source(train__loss=loss).micro_batches(PLACES[2]), answers, strict=True):
            assert torch.equal(batch.input_ids, other.input_ids)
            assert torch.equal(batch.labels, batch.input_ids.where(batch.attention_mask.bool(), torch.tensor(-100)))
            if weight is None:
                assert batch.weights is None
            else:
                expected = torch.where(other.labels == -100, 1.0, weight)
                assert torch.equal(batch.weights, expected)


def test_moving_a_batch_moves_its_tensors(source: Any) -> None:
    batch = source(train__loss={"on": "weighted", "answer_weight": 5.0}).micro_batches(PLACES[2])[0]
    moved = batch.to("meta")
    assert {moved.input_ids.device.type, moved.labels.device.type, moved.attention_mask.device.type} == {"meta"}
    assert moved.weights is not None
    assert moved.weights.device.type == "meta"
    assert (moved.answers, moved.seed) == (batch.answers, batch.seed)


# --- primer ---


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(8, 80))
def test_copying_rows(seed: int, length: int) -> None:
    vocabulary = range(100, 180)
    row, copied = copying_row(Random(seed), length, vocabulary)
    assert row.shape == (length,)
    assert row.dtype == np.int64
    assert set(row.tolist()) <= set(vocabulary)
    size = len(copied) + 1
    assert max(4, length // 4) <= size <= length // 2
    assert size <= copied[0] - 1
    assert copied[-1] < length
    assert row[copied[0] - 1 : copied[-1] + 1].tolist() == row[copied[0] - 1 - size : copied[0] - 1].tolist()


def test_the_distance_between_copies_varies_and_tokens_repeat() -> None:
    """A fixed distance would teach a position; without repeats there is an easy half-answer (docs/log.md)."""
    distances: Counter[int] = Counter()
    repeating = 0
    for seed in range(400):
        row, copied = copying_row(Random(seed), 64, range(50))
        distances[len(copied) + 1] += 1
        repeating += len(set(row[list(copied)].tolist())) < len(copied)
    assert set(distances) == set(range(16, 33))
    assert max(distances.values()) < 400 / 8
    assert repeating > 350


def test_the_vocabulary_is_drawn_once() -> None:
    words = range(5, 105)
    few = draw_vocabulary(Random(0), words, 20)
    assert (len(few), len(set(few))) == (20, 20)
    assert set(few) <= set(words)
    assert few == draw_vocabulary(Random(0), words, 20)
    assert set(few) != set(draw_vocabulary(Random(1), words, 20))
    assert set(draw_vocabulary(Random(0), words, None)) == set(words)
    assert set(draw_vocabulary(Random(0), words, 20, always=[7, 300])) == {*few, 7, 300}
    with pytest.raises(ValueError, match="primer_vocab_size is 101, but must be at most 100"):
        draw_vocabulary(Random(0), words, 101)


def test_the_primer_has_a_small_vocabulary_and_the_words_of_the_tasks(source: Any) -> None:
    few = source(data__primer_vocab_size=40)
    batches = [batch for step in range(40) for batch in few.micro_batches(Progress(PRIMER, step, step))]
    primer = {token for batch in batches for token in batch.input_ids.flatten().tolist()}
    answers = {
        batch.input_ids[row, begin].item()
        for step in range(20)
        for batch in few.micro_batches(Progress(LONG, step, step))
        for row, spans in enumerate(batch.answers)
        for begin, _ in spans
    }
    assert len(answers) >= 4
    assert answers <= primer
    assert 40 < len(primer) < 40 + 60


def test_training_is_shortened_and_validation_is_not(source: Any) -> None:
    whole, short = source(), source(curriculum__2__shortened=1.0)
    progress = Progress(LONG, 0, 0)

    def num_tokens(batches: list[Batch]) -> int:
        return sum(int(batch.attention_mask.sum()) for batch in batches)

    assert num_tokens(short.micro_batches(progress)) < 0.95 * num_tokens(whole.micro_batches(progress))
    assert _same(short.validation(progress, 7), whole.validation(progress, 7))


def test_training_asks_further_questions_and_validation_does_not(source: Any) -> None:
    own, more = source(), source(curriculum__2__further_questions=6)
    progress = Progress(LONG, 0, 0)

    def num_questions(batches: list[Batch]) -> int:
        return sum(len(answers) for batch in batches for answers in batch.answers)

    assert num_questions(more.micro_batches(progress)) > num_questions(own.micro_batches(progress))
    assert _same(more.validation(progress, 7), own.validation(progress, 7))


def test_every_third_batch_is_the_primer(source: Any) -> None:
    kinds = [source().micro_batches(Progress(SHORT, step, 2 + step))[0].kind for step in range(9)]
    assert kinds == ["task", "task", "primer"] * 3
    assert {source().micro_batches(Progress(PRIMER, step, step))[0].kind for step in range(4)} == {"primer"}
    assert {source().micro_batches(Progress(LONG, step, step))[0].kind for step in range(4)} == {"task"}


@pytest.mark.parametrize("loss", [{"on": "answers"}, {"on": "all"}, {"on": "weighted", "answer_weight": 5.0}])
def test_only_copies_are_learned_in_the_primer(source: Any, loss: dict[str, Any]) -> None:
    special = load_tokenizer().all_special_ids
    for batch in source(train__loss=loss).micro_batches(Progress(PRIMER, 0, 0)):
        assert (batch.kind, batch.tasks, batch.weights) == ("primer", (), None)
        assert batch.input_ids.shape == (2, 32)
        assert not torch.isin(batch.input_ids, torch.tensor(special)).any()
        for row, answers in enumerate(batch.answers):
            learned = [place for begin, end in answers for place in range(begin, end)]
            assert learned == torch.where(batch.labels[row] != -100)[0].tolist()
            for place in learned:
                token = batch.input_ids[row, place]
                assert batch.labels[row, place] == token
                # A copy, where the token before it is one too.
                before = batch.input_ids[row, : place - 1] == batch.input_ids[row, place - 1]
                assert (batch.input_ids[row, 1:place][before] == token).any()


# --- validation ---


@pytest.mark.parametrize("stage", [PRIMER, SHORT, LONG])
def test_validation_is_the_same_at_every_step_of_a_stage(source: Any, stage: int) -> None:
    batches = source().validation(Progress(stage, 0, 2), samples=7)
    assert _same(batches, source().validation(Progress(stage, 3, 17), samples=7))
    assert sum(len(batch.input_ids) for batch in batches) == 7
    assert {batch.kind for batch in batches} == {"primer" if stage == PRIMER else "task"}
    assert len(_rows(batches)) == 7


def test_validation_is_not_trained_on(source: Any) -> None:
    for stage in (PRIMER, LONG):
        trained = _rows(source().micro_batches(Progress(stage, 0, 0)))
        validated = _rows(source().validation(Progress(stage, 0, 0), samples=12))
        assert not set(trained) & set(validated)


def test_validation_has_all_lengths_alike(source: Any) -> None:
    batches = source().validation(Progress(LONG, 0, 0), samples=7)
    lengths = Counter(batch.input_ids.shape[1] for batch in batches for _ in batch.input_ids)
    assert lengths == {288: 3, 192: 2, 96: 2}
    assert batches[0].input_ids.shape[1] == 288
    assert all(len(batch.input_ids) <= 2 for batch in batches)
    (only,) = source().validation(Progress(LONG, 0, 0), samples=1)
    assert only.input_ids.shape == (1, 288)


@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("stage", [PRIMER, LONG])
def test_processes_together_validate_what_one_would(source: Any, world_size: int, stage: int) -> None:
    place = Progress(stage, 0, 0)
    shares = [source(rank, world_size).validation(place, samples=7) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    # What only keeps processes in step is asked nothing and learned nothing.
    fillers = [batch for share in shares for batch in share if not any(batch.answers)]
    assert all((batch.labels == -100).all() for batch in fillers)
    real = [batch for share in shares for batch in share if any(batch.answers)]
    alone = source().validation(place, samples=7)
    assert len(real) == len(alone)
    assert _rows(real) == _rows(alone)


# --- what is refused ---


def test_sources_that_are_refused(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    with pytest.raises(ValueError, match="rank is 2 and world_size 2"):
        BatchSource(recipe, 2, 2)
    with pytest.raises(
        ValueError, match="batch_size is 12, but must be a multiple of micro_batch_size times processes"
    ):
        BatchSource(recipe, 0, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__segment_length_tokens": 16}, r"curriculum\.1 \('short'\), split train: length is 16 tokens"),
        ({"data__facts": "nowhere"}, "facts is 'nowhere'"),
        (
            {"data__primer_vocab_size": 3000},
            "primer_vocab_size is 3000, but must be at most 2046",
        ),
    ],
)
def test_data_that_cannot_serve_is_refused_at_once(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSource(toy_recipe(tmp_path, **changes))


def test_validation_without_a_schedule_for_it_is_refused(source: Any) -> None:
    silent = source(curriculum__1__until={"steps": 2}, train__validate_every_steps=None)
    with pytest.raises(ValueError, match=r"train\.validate_every_steps is missing"):
        silent.validation(Progress(LONG, 0, 0), samples=2)
