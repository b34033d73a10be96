"""Who has what, and where it is: tasks 2, 3, 5, 7 and 8."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import NamedTuple

from lm2.data.babi.solver_text import GOT_THE, LEFT_THE, MOVED_TO, NAME, Answer, parse

_TOLD = re.compile(
    rf"(?P<name>{NAME}) (?:"
    rf"{MOVED_TO} (?P<place>\w+)|"
    rf"{GOT_THE} (?P<got>\w+)(?: there)?|"
    rf"{LEFT_THE} (?P<dropped>\w+)(?: there)?|"
    rf"(?:passed|gave|handed) the (?P<given>\w+) to (?P<receiver>{NAME})"
    r")\."
)
_WHERE_IS = re.compile(r"Where is the (?P<thing>\w+)\? ")
_WHERE_WAS = re.compile(r"Where was the (?P<thing>\w+) before the (?P<place>\w+)\? ")
_HOW_MANY = re.compile(rf"How many objects is (?P<name>{NAME}) carrying\? ")
_WHAT = re.compile(rf"What is (?P<name>{NAME}) carrying\? ")
# There are three objects.
_NUMBERS = ("none", "one", "two", "three")
# Each with the part of the gift that is asked for.
_GIFT_QUESTIONS = (
    (re.compile(rf"What did (?P<giver>{NAME}) give to (?P<receiver>{NAME})\? "), "thing"),
    (re.compile(rf"Who gave the (?P<thing>\w+)(?: to (?P<receiver>{NAME}))?\? "), "giver"),
    (re.compile(r"Who received the (?P<thing>\w+)\? "), "receiver"),
    (re.compile(rf"Who did (?P<giver>{NAME}) give the (?P<thing>\w+) to\? "), "receiver"),
)


class _Arrival(NamedTuple):
    """A place, and the line that told of the move to it."""

    place: str
    line: int


class _Gift(NamedTuple):
    giver: str
    thing: str
    receiver: str
    line: int


def _change_hands(holders: dict[str, str | None], match: re.Match[str]) -> str | None:
    """Notes who has an object after a statement, and returns the object, or None where none changes hands.

    Raises:
        ValueError: someone gets what is not free, or lets go of what they do not have.
    """
    thing: str | None = match["got"] or match["dropped"] or match["given"]
    if thing is not None:
        holder, needed = holders.get(thing), None if match["got"] else match["name"]
        if holder != needed:
            raise ValueError(f"{match[0]!r} cannot be: {holder or 'nobody'} has the {thing}")
        holders[thing] = match["name"] if match["got"] else match["receiver"]
    return thing


@dataclass(slots=True)
class _Object:
    """What is known of an object: in which line it was last got or dropped, and where it is and was.

    `places` is its way so far, without repeats in a row, each with the line that told first that it came there. Where
    it now is may have been told once more, by the move of a later holder: that is `at`.
    """

    line: int = 0
    at: _Arrival | None = None
    places: list[_Arrival] = field(default_factory=list)

    def see(self, at: _Arrival | None) -> None:
        if at is None:
            return
        self.at = at
        if not self.places or self.places[-1].place != at.place:
            self.places.append(at)


class Belongings:
    """Tasks 2 and 3: where objects are and were. They move with their holder."""

    def __init__(self) -> None:
        self._place: dict[str, _Arrival] = {}
        self._holders: dict[str, str | None] = {}
        self._objects: defaultdict[str, _Object] = defaultdict(_Object)

    def tell(self, number: int, text: str) -> None:
        match = parse(_TOLD, text)
        name = match["name"]
        if match["place"]:
            self._place[name] = _Arrival(match["place"], number)
        moved = _change_hands(self._holders, match)
        if moved is not None:
            self._objects[moved].line = number
        for thing, holder in self._holders.items():
            if holder == name:
                self._objects[thing].see(self._place.get(name))

    def ask(self, text: str) -> Answer | None:
        if match := _WHERE_IS.fullmatch(text):
            return self._where(self._objects[match["thing"]])
        match = parse(_WHERE_WAS, text)
        return self._where_before(self._objects[match["thing"]], match["place"])

    def _where(self, thing: _Object) -> Answer | None:
        return Answer(thing.at.place, (thing.line, thing.at.line)) if thing.at is not None else None

    def _where_before(self, thing: _Object, place: str) -> Answer | None:
        """The place before the object's last stay at `place`, which may lie further back."""
        for before, arrival in reversed(list(pairwise(thing.places))):
            if arrival.place == place:
                return Answer(before.place, (thing.line, arrival.line, before.line))
        return None


class Hands:
    """Tasks 7 and 8: how many objects, and which, a person carries.

    The support is all that the person got or let go. Task 7 has it in the story's order, task 8 object by object, in
    the order in which the person first got them; that is also the order of the answer.
    """

    def __init__(self) -> None:
        self._holders: dict[str, str | None] = {}
        # Person -> object -> lines.
        self._lines: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))

    def tell(self, number: int, text: str) -> None:
        match = parse(_TOLD, text)
        thing = _change_hands(self._holders, match)
        if thing is not None:
            for name in filter(None, (match["name"], match["receiver"])):
                self._lines[name][thing].append(number)

    def ask(self, text: str) -> Answer | None:
        match = _HOW_MANY.fullmatch(text) or parse(_WHAT, text)
        lines = self._lines[match["name"]]
        if not lines:
            return None
        carried = [thing for thing in lines if self._holders[thing] == match["name"]]
        support = chain.from_iterable(lines.values())
        if match.re is _HOW_MANY:
            return Answer(_NUMBERS[len(carried)], tuple(sorted(support)))
        return Answer(",".join(carried) or "nothing", tuple(support))


class Gifts:
    """Task 5: who gave what to whom. The latest gift that a question can mean is meant.

    The data mean an earlier one at times: 22 of the 11,000 questions of en-10k ask what one person gave to another
    after two such gifts, and mean the first.
    """

    def __init__(self) -> None:
        self._holders: dict[str, str | None] = {}
        self._gifts: list[_Gift] = []

    def tell(self, number: int, text: str) -> None:
        match = parse(_TOLD, text)
        _change_hands(self._holders, match)
        if match["given"]:
            self._gifts.append(_Gift(match["name"], match["given"], match["receiver"], number))

    def ask(self, text: str) -> Answer | None:
        for pattern, asked in _GIFT_QUESTIONS:
            if match := pattern.fullmatch(text):
                known = match.groupdict()
                for gift in reversed(self._gifts):
                    if all(value in (None, getattr(gift, part)) for part, value in known.items()):
                        return Answer(getattr(gift, asked), (gift.line,))
                return None
        raise ValueError(f"{text!r} has none of the forms that the task's questions have")
