"""What all simulated tasks share: a story that is being written, and the choice of a place that is another one."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from lm2.data.babi.story import Question, Statement, Story

Item = TypeVar("Item")

# A question of a running story starts from one of its last statements (measured on en-10k train: qa1 to 3, qa5 to 14).
RECENT_STATEMENTS = 5


class Draft:
    """The lines of one story in the making; each line is told once and keeps its number."""

    def __init__(self) -> None:
        self._lines: list[Statement | Question] = []

    def tell(self, text: str) -> int:
        """Adds a statement and returns its line number, from 1."""
        self._lines.append(Statement(text))
        return len(self._lines)

    def ask(self, text: str, answer: str, support: tuple[int, ...]) -> None:
        """Adds a question."""
        self._lines.append(Question(text, answer, support))

    def finish(self, task: int) -> Story:
        """The story as it stands."""
        return Story(task, tuple(self._lines))


def choose_other(rng: Random, items: Sequence[Item], *excluded: Item) -> Item:
    """Draws uniformly from the items that are not excluded."""
    while True:
        item = rng.choice(items)
        if item not in excluded:
            return item


def flip(rng: Random) -> bool:
    """A fair coin."""
    return rng.random() < 0.5
