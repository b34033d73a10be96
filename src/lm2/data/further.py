"""Further questions about a story: those of other stories of its task, answered by the solver from what was told.

Ours, because a story of the data asks little (task 4 once, of two facts), while its facts determine much more, and an
answer is all that a model learns from.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from random import Random

from lm2.data.babi.solver import ask_so_far
from lm2.data.babi.story import Question
from lm2.data.facts import Facts

# The worlds of the tasks are small: more stories bring no other questions for tasks 1 to 10.
_POOL_STORIES = 256
# Most questions of a pool are about what a story did not tell.
_TRIES = 32


@lru_cache(maxsize=64)
def question_pool(facts: Facts, task: int) -> tuple[str, ...]:
    """The texts of all questions in the first stories of a task, in order of the alphabet."""
    stories = (facts.story(task, index, 0) for index in range(_POOL_STORIES))
    return tuple(sorted({line.text for story in stories for line in story.lines if isinstance(line, Question)}))


def draw_further(
    rng: Random, pool: Sequence[str], task: int, facts: Sequence[str], count: int
) -> list[tuple[int, str, str]]:
    """At most `count` questions that the facts of a story determine, in the order of the story.

    Each is asked after a fact drawn at random, and answered from the facts up to that one. None is asked twice after
    the same fact.

    Args:
        rng: Of all choices.
        pool: The texts to draw from, evenly, such as `question_pool`.
        task: 1 to 20.
        facts: The texts of the statements, at least one.
        count: How many to look for; fewer are found where the facts determine few.

    Returns:
        Of each, the number of facts it is asked after, its text and its answer.
    """
    places = Counter(1 + int(rng.random() * len(facts)) for _ in range(count))
    found: dict[tuple[int, str], str] = {}
    for told, ask in enumerate(ask_so_far(task, facts), start=1):
        for _ in range(places[told]):
            for _ in range(_TRIES):
                text = pool[int(rng.random() * len(pool))]
                answer = None if (told, text) in found else ask(text)
                if answer is not None:
                    found[told, text] = answer.text
                    break
    return [(told, text, answer) for (told, text), answer in found.items()]
