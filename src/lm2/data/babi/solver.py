"""Answers bAbI stories from their text alone: an independent check of the simulator, and of the rules themselves.

It shares no code with the simulator, and never sees an answer, its support or a hidden state.
"""

from collections.abc import Callable, Iterator, Sequence

from lm2.data.babi.solver_objects import Belongings, Gifts, Hands
from lm2.data.babi.solver_people import Days, Whereabouts
from lm2.data.babi.solver_relations import Grid, Sizes
from lm2.data.babi.solver_text import Answer, World
from lm2.data.babi.solver_traits import Colors, Fears, Motives
from lm2.data.babi.story import Question, Statement, Story

__all__ = ["Answer", "answer_from", "ask_so_far", "solve"]

_WORLDS: dict[int, Callable[[], World]] = {
    1: Whereabouts,
    2: Belongings,
    3: Belongings,
    4: Grid,
    5: Gifts,
    6: Whereabouts,
    7: Hands,
    8: Hands,
    9: Whereabouts,
    10: Whereabouts,
    11: Whereabouts,
    12: Whereabouts,
    13: Whereabouts,
    14: Days,
    15: Fears,
    16: Colors,
    17: Grid,
    18: Sizes,
    19: Grid,
    20: Motives,
}


def solve(story: Story) -> list[Answer | None]:
    """Answers all questions of a story, each from the statements before it.

    Rules are those of the data (Weston et al. 2015, version 1.2, measured on en-10k) where these go further than the
    text: which of several gifts (task 5), colours (16) or pairs of facts (18) is meant, and what "either in the park or
    the park" leaves open (10). The parts of the solver say so where they do.

    Args:
        story: The story; the answers and supports of its questions are not looked at.

    Returns:
        One answer per question. None where the statements do not determine it: nothing was told of what is asked; all
        that is known is where someone is not, or may be, and another place, or the place, is asked for (tasks 9, 10);
        no earlier place is known (3, 14); there is no neighbour on that side, or more than one (4); no way or no pair
        of facts leads from one thing to the other (17, 18, 19); the reason asked for is not the person's (20).

    Raises:
        ValueError: a line has none of the forms of its task, or tells what cannot be, such as that someone drops what
            another one has; with the line's number in the story.
    """
    world = _WORLDS[story.task]()
    answers: list[Answer | None] = []
    for number, line in enumerate(story.lines, start=1):
        try:
            if isinstance(line, Statement):
                world.tell(number, line.text)
            else:
                answers.append(world.ask(line.text))
        except ValueError as error:
            raise ValueError(f"task {story.task}, line {number} of the story: {error}") from None
    return answers


def answer_from(task: int, facts: Sequence[str], question: str) -> Answer | None:
    """`solve` of one question behind statements."""
    [answer] = solve(Story(task, (*map(Statement, facts), Question(question, answer="", support=()))))
    return answer


def ask_so_far(task: int, facts: Sequence[str]) -> Iterator[Callable[[str], Answer | None]]:
    """After each statement in turn, what answers questions from the statements up to it, as `solve` does.

    Each answers only until the next one is taken.
    """
    world = _WORLDS[task]()
    for number, text in enumerate(facts, start=1):
        world.tell(number, text)
        yield world.ask
