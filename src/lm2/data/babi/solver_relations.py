"""How things lie to one another: tasks 4, 17, 18 and 19."""

import re
from collections import defaultdict, deque
from itertools import permutations
from typing import NamedTuple

from lm2.data.babi.solver_text import Answer, parse

# The step from the second thing to the first in "A is north of B", to the east and to the north.
_STEPS = {
    "north": (0, 1),
    "south": (0, -1),
    "east": (1, 0),
    "west": (-1, 0),
    "above": (0, 1),
    "below": (0, -1),
    "to the right of": (1, 0),
    "to the left of": (-1, 0),
}
_DIRECTION = "north|south|east|west"
_LIES = re.compile(rf"The (?P<first>\w+) is (?P<step>{_DIRECTION}) of the (?P<second>\w+)\.")
_SHAPE_LIES = re.compile(
    r"The (?P<first>[a-z ]+?) is (?P<step>above|below|to the (?:left|right) of) the (?P<second>[a-z ]+)\."
)
_WHAT_IS_NORTH = re.compile(rf"What is (?P<step>{_DIRECTION}) of the (?P<place>\w+)\?")
_WHAT_IT_IS_NORTH_OF = re.compile(rf"What is the (?P<place>\w+) (?P<step>{_DIRECTION}) of\?")
_HOW_TO_GO = re.compile(r"How do you go from the (?P<start>\w+) to the (?P<goal>\w+)\?")
_DOES_SHAPE_LIE = re.compile(
    r"Is the (?P<first>[a-z ]+?) (?P<step>above|below|to the (?:left|right) of) the (?P<second>[a-z ]+)\?"
)


class _Edge(NamedTuple):
    """A fact read from one of its ends: `step` leads to `thing`."""

    thing: str
    step: tuple[int, int]
    line: int


class Grid:
    """Things on a grid; each fact puts two of them side by side. Tasks 4, 17 and 19 ask about it."""

    def __init__(self) -> None:
        self._edges: defaultdict[str, list[_Edge]] = defaultdict(list)

    def tell(self, number: int, text: str) -> None:
        match = _LIES.fullmatch(text) or parse(_SHAPE_LIES, text)
        east, north = _STEPS[match["step"]]
        self._edges[match["second"]].append(_Edge(match["first"], (east, north), number))
        self._edges[match["first"]].append(_Edge(match["second"], (-east, -north), number))

    def ask(self, text: str) -> Answer | None:
        if match := _HOW_TO_GO.fullmatch(text):
            return self._path(match["start"], match["goal"])
        if match := _DOES_SHAPE_LIE.fullmatch(text):
            return self._does_lie(match["first"], _STEPS[match["step"]], match["second"])
        if match := _WHAT_IS_NORTH.fullmatch(text):
            return self._neighbour(match["place"], _STEPS[match["step"]])
        match = parse(_WHAT_IT_IS_NORTH_OF, text)
        east, north = _STEPS[match["step"]]
        return self._neighbour(match["place"], (-east, -north))

    def _neighbour(self, place: str, step: tuple[int, int]) -> Answer | None:
        found = [edge for edge in self._edges[place] if edge.step == step]
        return Answer(found[0].thing, (found[0].line,)) if len(found) == 1 else None

    def _path(self, start: str, goal: str) -> Answer | None:
        edges = self._shortest(start, goal)
        if not edges:
            return None
        letters = {_STEPS[name]: name[0] for name in ("north", "south", "east", "west")}
        return Answer(",".join(letters[edge.step] for edge in edges), tuple(edge.line for edge in edges))

    def _does_lie(self, first: str, step: tuple[int, int], second: str) -> Answer | None:
        """Whether `first` lies further than `second` along `step`: not so, too, where they are level.

        Undetermined without a way from one to the other, or where that leads back to the place that it began at: two
        things are never in one place, so the facts then count more than one step.
        """
        edges = self._shortest(first, second)
        way = [sum(edge.step[axis] for edge in edges) for axis in (0, 1)]
        if way == [0, 0]:
            return None
        # The way leads from first to second, so that first is ahead where it runs against the step.
        ahead = way[0] * step[0] + way[1] * step[1] < 0
        return Answer("yes" if ahead else "no", tuple(edge.line for edge in edges))

    def _shortest(self, start: str, goal: str) -> list[_Edge]:
        """The shortest way from thing to thing; empty where none is known."""
        ways: dict[str, list[_Edge]] = {start: []}
        queue = deque([start])
        while queue:
            thing = queue.popleft()
            if thing == goal:
                return ways[thing]
            for edge in self._edges[thing]:
                if edge.thing not in ways:
                    ways[edge.thing] = [*ways[thing], edge]
                    queue.append(edge.thing)
        return []


_IS_BIGGER = re.compile(r"The (?P<bigger>[a-z ]+) is bigger than the (?P<smaller>[a-z ]+)\.")
_FITS_INSIDE = re.compile(r"The (?P<smaller>[a-z ]+) fits inside the (?P<bigger>[a-z ]+)\.")
_IS_IT_BIGGER = re.compile(r"Is the (?P<bigger>[a-z ]+) bigger than the (?P<smaller>[a-z ]+)\?")
_DOES_IT_FIT = re.compile(r"Does the (?P<smaller>[a-z ]+) fit in the (?P<bigger>[a-z ]+)\?")


class _Fact(NamedTuple):
    bigger: str
    smaller: str
    line: int


class Sizes:
    """Task 18: whether one thing is bigger than another, over a third thing between them.

    Often several pairs of facts lead to the answer, and the text does not say which one the data name. It is always one
    whose second fact is the first told of all others that mention the thing between (all 11,000 questions of en-10k);
    of several such pairs, the one with the latest first fact is taken here.
    """

    def __init__(self) -> None:
        self._facts: list[_Fact] = []

    def tell(self, number: int, text: str) -> None:
        match = _IS_BIGGER.fullmatch(text) or parse(_FITS_INSIDE, text)
        self._facts.append(_Fact(match["bigger"], match["smaller"], number))

    def ask(self, text: str) -> Answer | None:
        match = _IS_IT_BIGGER.fullmatch(text) or parse(_DOES_IT_FIT, text)
        bigger, smaller = match["bigger"], match["smaller"]
        pairs = [(fact, other) for fact, other in permutations(self._facts, 2) if fact.smaller == other.bigger]
        yes = [(fact, other) for fact, other in pairs if (fact.bigger, other.smaller) == (bigger, smaller)]
        # For a no, the data name the fact about the smallest thing first.
        no = [(fact, other) for other, fact in pairs if (fact.smaller, other.bigger) == (bigger, smaller)]
        if not yes and not no:
            return None
        fact, other = max(yes or no, key=self._preference)
        return Answer("yes" if yes else "no", (fact.line, other.line))

    def _preference(self, pair: tuple[_Fact, _Fact]) -> tuple[bool, int]:
        fact, other = pair
        (between,) = {fact.bigger, fact.smaller} & {other.bigger, other.smaller}
        first = next(known for known in self._facts if known != fact and between in (known.bigger, known.smaller))
        return first == other, fact.line
