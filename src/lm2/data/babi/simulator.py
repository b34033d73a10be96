"""New bAbI stories of all 20 tasks, in the format and with the statistics of the released en-10k files.

The tasks are those of "Towards AI-Complete Question Answering" (Weston et al. 2015). The program that made the released
files was never released (their README says so), so the rules here were measured on the files.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from random import Random

from lm2.data.babi.motives import simulate_motives
from lm2.data.babi.moving import simulate_moving
from lm2.data.babi.reasoning import simulate_deduction, simulate_induction
from lm2.data.babi.reporting import (
    simulate_doubt,
    simulate_negation,
    simulate_pair_pronouns,
    simulate_pairs,
    simulate_pronouns,
)
from lm2.data.babi.size import simulate_sizes
from lm2.data.babi.space import simulate_directions, simulate_paths, simulate_positions
from lm2.data.babi.story import TASK_NAMES, Story
from lm2.data.babi.timing import simulate_time

_SIMULATORS: dict[int, Callable[[Random], Story]] = {
    **{task: partial(simulate_moving, task) for task in (1, 2, 3, 5, 6, 7, 8)},
    4: simulate_directions,
    9: simulate_negation,
    10: simulate_doubt,
    11: simulate_pronouns,
    12: simulate_pairs,
    13: simulate_pair_pronouns,
    14: simulate_time,
    15: simulate_deduction,
    16: simulate_induction,
    17: simulate_positions,
    18: simulate_sizes,
    19: simulate_paths,
    20: simulate_motives,
}


def make_story(task: int, seed: int, index: int) -> Story:
    """Story number `index` of the endless sequence of a task and seed.

    It depends on the three arguments only, so a sequence can be resumed or divided anywhere.

    Raises:
        ValueError: an argument is out of range.
    """
    if task not in TASK_NAMES:
        raise ValueError(f"task is {task}, but must be 1 to {len(TASK_NAMES)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must be 0 or more")
    if index < 0:
        raise ValueError(f"index is {index}, but must be 0 or more")
    # A text seed is hashed by SHA-512, the same in every process; numbers side by side give unrelated streams.
    return _SIMULATORS[task](Random(f"babi {task} {seed} {index}"))


def make_stories(task: int, seed: int) -> Iterator[Story]:
    """All stories of a task and seed in order, without end.

    Raises:
        ValueError: an argument is out of range, at the first story.
    """
    return (make_story(task, seed, index) for index in count())
