"""Where a run is in its curriculum, and when a stage ends. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from lm2.train.sections import ScheduleRecipe, StageRecipe


@dataclass(frozen=True)
class Progress:
    """Optimizer steps done.

    Attributes:
        stage: Number of the stage that the next step belongs to, from 0.
        stage_step: Steps done in it.
        step: Steps done in all.
    """

    stage: int
    stage_step: int
    step: int


def first_progress() -> Progress:
    """Before the first step."""
    return Progress(0, 0, 0)


def advance(stages: Sequence[StageRecipe], progress: Progress, accuracy: float | None) -> Progress:
    """After one more step.

    Args:
        stages: The curriculum.
        progress: Before the step.
        accuracy: What validation of this stage gave after this step; None where there was none. An accuracy of
            earlier steps must not be passed again.
    """
    stage_step, step = progress.stage_step + 1, progress.step + 1
    if _ends(stages[progress.stage], stage_step, accuracy):
        return Progress(progress.stage + 1, 0, step)
    return Progress(progress.stage, stage_step, step)


def gave_up(stages: Sequence[StageRecipe], progress: Progress, accuracy: float | None) -> bool:
    """Whether the step after `progress` ends a stage at its `max_steps` without the accuracy; for the log."""
    end = stages[progress.stage].until
    return (
        end is not None
        and end.accuracy is not None
        and progress.stage_step + 1 == end.max_steps
        and (accuracy is None or accuracy < end.accuracy)
    )


def is_finished(schedule: ScheduleRecipe, progress: Progress, tokens: int) -> bool:
    """Whether the whole schedule is done, after `tokens` have been read."""
    return schedule.done(progress.step, tokens) >= schedule.total


def _ends(stage: StageRecipe, stage_step: int, accuracy: float | None) -> bool:
    end = stage.until
    if end is None:
        return False
    if stage_step >= end.longest_steps:
        return True
    reached = end.accuracy is not None and accuracy is not None and accuracy >= end.accuracy
    return reached and stage_step >= end.min_steps
