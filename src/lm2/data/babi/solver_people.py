"""Where people are, and when: tasks 1, 6, 9, 10, 11, 12, 13 and 14."""

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lm2.data.babi.solver_text import GOT_THE, LEFT_THE, MOVED_TO, NAME, Answer, parse

_TOLD = re.compile(
    rf"(?:(?P<names>{NAME}(?: and {NAME})?)|(?:After that|Afterwards|Following that|Then) (?:he|she|they)) "
    rf"(?:{MOVED_TO}|is in the|(?P<not>is not in the|is no longer in the)|is either in the (?P<or>\w+) or the) "
    r"(?P<place>\w+)\."
)
_HANDLED = re.compile(rf"{NAME} (?:{GOT_THE}|{LEFT_THE}) \w+(?: there)?\.")
_WHERE = re.compile(rf"Where is (?P<name>{NAME})\? ")
_IS_IN = re.compile(rf"Is (?P<name>{NAME}) in the (?P<place>\w+)\? ")


@dataclass(frozen=True, slots=True)
class _Sighting:
    """The latest that was told about a person: that they are ("sure"), "maybe" or "not" in the places."""

    certainty: Literal["sure", "maybe", "not"]
    places: tuple[str, ...]
    support: tuple[int, ...]


class Whereabouts:
    """Only the latest statement about a person counts. A pronoun stands for the people of the statement before it."""

    def __init__(self) -> None:
        self._latest: dict[str, _Sighting] = {}
        self._names: tuple[str, ...] = ()
        self._named_at = 0

    def tell(self, number: int, text: str) -> None:
        if _HANDLED.fullmatch(text):
            return
        match = parse(_TOLD, text)
        if match["names"]:
            self._names, self._named_at = tuple(match["names"].split(" and ")), number
            support: tuple[int, ...] = (number,)
        else:
            support = (self._named_at, number)
        certainty: Literal["sure", "maybe", "not"] = "not" if match["not"] else "maybe" if match["or"] else "sure"
        places = tuple(filter(None, (match["or"], match["place"])))
        for name in self._names:
            self._latest[name] = _Sighting(certainty, places, support)

    def ask(self, text: str) -> Answer | None:
        match = _WHERE.fullmatch(text) or parse(_IS_IN, text)
        latest = self._latest.get(match["name"])
        if latest is None:
            return None
        if match.re is _WHERE:
            return Answer(latest.places[0], latest.support) if latest.certainty == "sure" else None
        if match["place"] in latest.places:
            # "either in the park or the park", which task 10 tells at times, still is a maybe in the data.
            return Answer({"sure": "yes", "maybe": "maybe", "not": "no"}[latest.certainty], latest.support)
        # Not to be in one place says nothing about another.
        return None if latest.certainty == "not" else Answer("no", latest.support)


# In the order of time.
_TIMES = ("yesterday", "this morning", "this afternoon", "this evening")
_TIME = "|".join(_TIMES)
_WHEN_AND_WHERE = re.compile(
    rf"(?:(?P<first>(?i:{_TIME})) )?(?P<name>{NAME}) {MOVED_TO} (?P<place>\w+)(?(first)| (?P<last>{_TIME}))\."
)
_WAS_BEFORE = re.compile(rf"Where was (?P<name>{NAME}) before the (?P<place>\w+)\? ")


class Days:
    """Where each person was at which time of yesterday and today. Lines are not in the order of time."""

    def __init__(self) -> None:
        # Person -> time -> place and line.
        self._visits: defaultdict[str, dict[int, tuple[str, int]]] = defaultdict(dict)

    def tell(self, number: int, text: str) -> None:
        match = parse(_WHEN_AND_WHERE, text)
        time = _TIMES.index((match["first"] or match["last"]).lower())
        self._visits[match["name"]][time] = match["place"], number

    def ask(self, text: str) -> Answer | None:
        """The place at the latest known time before the person's last visit to the place in question."""
        match = parse(_WAS_BEFORE, text)
        visits = [visit for _, visit in sorted(self._visits[match["name"]].items())]
        for (before, line_before), (place, line) in reversed(list(pairwise(visits))):
            if place == match["place"]:
                return Answer(before, (line, line_before))
        return None
