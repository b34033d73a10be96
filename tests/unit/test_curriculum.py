"""When stages end, and that progress is a pure function of what was measured."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm2.train.curriculum import Progress, advance, first_progress, gave_up, is_finished
from lm2.train.sections import ScheduleRecipe, StageEnd, StageRecipe


def _stages(*ends: StageEnd) -> tuple[StageRecipe, ...]:
    return tuple(StageRecipe(str(number), primer_every=1, until=end) for number, end in enumerate((*ends, None)))


def _run(stages: Sequence[StageRecipe], accuracies: Sequence[float | None]) -> list[int]:
    """The stage of each step."""
    progress, places = first_progress(), []
    for accuracy in accuracies:
        places.append(progress.stage)
        progress = advance(stages, progress, accuracy)
    return places


def test_a_stage_ends_by_steps_whatever_the_accuracy() -> None:
    assert _run(_stages(StageEnd(steps=3)), [1.0] * 5) == [0, 0, 0, 1, 1]
    assert _run(_stages(StageEnd(steps=1), StageEnd(steps=2)), [None] * 5) == [0, 1, 1, 2, 2]


def test_a_stage_ends_at_its_accuracy() -> None:
    stages = _stages(StageEnd(accuracy=0.9, max_steps=100))
    assert _run(stages, [None, 0.5, None, 0.9, None]) == [0, 0, 0, 0, 1]
    assert _run(stages, [None, 0.5, None, 0.8999, None]) == [0, 0, 0, 0, 0]
    assert _run(stages, [1.0, None]) == [0, 1]


def test_a_stage_does_not_end_before_min_steps() -> None:
    stages = _stages(StageEnd(accuracy=0.9, min_steps=3, max_steps=100))
    assert _run(stages, [1.0, 1.0, 1.0, None]) == [0, 0, 0, 1]
    # What was good too early has to be good again.
    assert _run(stages, [1.0, 1.0, None, None, 0.95, None]) == [0, 0, 0, 0, 0, 1]


def test_a_stage_ends_at_max_steps_and_that_is_told() -> None:
    end = StageEnd(accuracy=0.9, max_steps=4)
    stages = _stages(end)
    assert _run(stages, [0.1] * 6) == [0, 0, 0, 0, 1, 1]
    assert _run(stages, [None] * 6) == [0, 0, 0, 0, 1, 1]
    assert gave_up(stages, Progress(0, 3, 3), 0.1)
    assert gave_up(stages, Progress(0, 3, 3), None)
    assert not gave_up(stages, Progress(0, 3, 3), 0.9)
    assert not gave_up(stages, Progress(0, 2, 2), 0.1)
    assert not gave_up(stages, Progress(1, 3, 7), 0.1)
    assert not gave_up(_stages(StageEnd(steps=4)), Progress(0, 3, 3), 0.1)


def test_the_last_stage_ends_with_the_schedule() -> None:
    stages, schedule = _stages(StageEnd(steps=2)), ScheduleRecipe("cosine", total_steps=5)
    progress = first_progress()
    steps = 0
    while not is_finished(schedule, progress, tokens=10**9):
        progress, steps = advance(stages, progress, 1.0), steps + 1
    assert (steps, progress) == (5, Progress(1, 3, 5))


def test_a_schedule_of_tokens_ends_when_they_are_read() -> None:
    schedule = ScheduleRecipe("wsd", total_tokens=1000, decay_tokens=200)
    assert not is_finished(schedule, Progress(1, 3, 10**6), tokens=999)
    assert is_finished(schedule, Progress(1, 3, 5), tokens=1000)
    assert is_finished(schedule, Progress(1, 3, 5), tokens=1024)


_ends = st.builds(StageEnd, steps=st.integers(1, 6)) | st.builds(
    StageEnd, accuracy=st.sampled_from([0.5, 0.9]), min_steps=st.integers(0, 3), max_steps=st.integers(3, 8)
)


@given(
    ends=st.lists(_ends, min_size=1, max_size=4),
    accuracies=st.lists(st.none() | st.floats(0, 1), min_size=40, max_size=40),
)
def test_steps_add_up(ends: list[StageEnd], accuracies: list[float | None]) -> None:
    """A stage takes from min_steps to its longest, less only by accuracy; no step is lost, no stage is left out."""
    stages = _stages(*ends)
    places = _run(stages, accuracies)
    assert places == sorted(places)
    assert set(places) == set(range(len(stages)))
    for number, end in enumerate(ends):
        steps = places.count(number)
        assert steps <= end.longest_steps
        if steps < end.longest_steps:
            last = accuracies[places.index(number) + steps - 1]
            assert end.accuracy is not None
            assert last is not None
            assert last >= end.accuracy
            assert steps >= end.min_steps


@pytest.mark.parametrize("accuracy", [None, 0.2, 0.9])
def test_advance_counts_one_step(accuracy: float | None) -> None:
    stages = _stages(StageEnd(steps=10))
    assert advance(stages, Progress(0, 4, 4), accuracy) == Progress(0, 5, 5)
    assert advance(stages, Progress(0, 9, 9), accuracy) == Progress(1, 0, 10)
    assert advance(stages, Progress(1, 3, 13), accuracy) == Progress(1, 4, 14)
