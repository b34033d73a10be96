"""What kind of being someone is, and what follows: tasks 15, 16 and 20."""

import re
from dataclasses import dataclass

from lm2.data.babi.solver_text import GOT_THE, MOVED_TO, NAME, Answer, parse

_IS_A = re.compile(rf"(?P<name>{NAME}) is a (?P<kind>\w+)\.")
_SINGULARS = {"mice": "mouse", "sheep": "sheep", "wolves": "wolf", "cats": "cat"}
_KINDS = "|".join(_SINGULARS)
_FEARS = re.compile(rf"(?P<kinds>(?i:{_KINDS})) are afraid of (?P<feared>{_KINDS})\.")
_WHAT_FEARS = re.compile(r"What is (?P<name>[a-z]+) afraid of\?")

_IS_COLORED = re.compile(rf"(?P<name>{NAME}) is (?P<color>\w+)\.")
_WHAT_COLOR = re.compile(rf"What color is (?P<name>{NAME})\?")

# Where each feeling leads, and what for.
_GOALS = {
    "hungry": ("kitchen", "apple"),
    "thirsty": ("kitchen", "milk"),
    "bored": ("garden", "football"),
    "tired": ("bedroom", "pajamas"),
}
_FEELS = re.compile(rf"(?P<name>{NAME}) is (?P<feeling>{'|'.join(_GOALS)})\.")
_WENT = re.compile(rf"{NAME} {MOVED_TO} \w+\.")
_TOOK = re.compile(rf"{NAME} {GOT_THE} \w+ there\.")
_WHERE_WILL_GO = re.compile(r"Where will (?P<name>[a-z]+) go\?")
_WHY = re.compile(r"Why did (?P<name>[a-z]+) (?:go to|get) the (?P<goal>\w+)\?")


@dataclass(frozen=True, slots=True)
class _Told:
    """A word that was told about someone, and the line."""

    word: str
    line: int


class Fears:
    """Task 15: what someone fears, from their kind and what that kind fears."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Told] = {}
        self._fears: dict[str, _Told] = {}

    def tell(self, number: int, text: str) -> None:
        if match := _IS_A.fullmatch(text):
            self._kinds[match["name"].lower()] = _Told(match["kind"], number)
        else:
            match = parse(_FEARS, text)
            kind, feared = (_SINGULARS[match[part].lower()] for part in ("kinds", "feared"))
            self._fears[kind] = _Told(feared, number)

    def ask(self, text: str) -> Answer | None:
        kind = self._kinds.get(parse(_WHAT_FEARS, text)["name"])
        if kind is None or kind.word not in self._fears:
            return None
        feared = self._fears[kind.word]
        return Answer(feared.word, (kind.line, feared.line))


class Colors:
    """Task 16: someone's colour, from that of another of the same kind.

    Where others of the kind differ in colour, the data mean the one whose kind was told last (all 814 such questions of
    en-10k). That is the data's habit and follows from no line of the story.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, _Told] = {}
        self._colors: dict[str, _Told] = {}

    def tell(self, number: int, text: str) -> None:
        if match := _IS_A.fullmatch(text):
            self._kinds[match["name"]] = _Told(match["kind"], number)
        else:
            match = parse(_IS_COLORED, text)
            self._colors[match["name"]] = _Told(match["color"], number)

    def ask(self, text: str) -> Answer | None:
        name = parse(_WHAT_COLOR, text)["name"]
        own = self._kinds.get(name)
        for other, kind in reversed(self._kinds.items()):
            if own is not None and kind.word == own.word and other != name and other in self._colors:
                color = self._colors[other]
                return Answer(color.word, (own.line, kind.line, color.line))
        return None


class Motives:
    """Task 20: what someone does, and why, from how they feel. The story tells no reasons: they are common sense."""

    def __init__(self) -> None:
        self._feelings: dict[str, _Told] = {}

    def tell(self, number: int, text: str) -> None:
        if match := _FEELS.fullmatch(text):
            self._feelings[match["name"].lower()] = _Told(match["feeling"], number)
        elif not _WENT.fullmatch(text):
            parse(_TOOK, text)

    def ask(self, text: str) -> Answer | None:
        match = _WHERE_WILL_GO.fullmatch(text) or parse(_WHY, text)
        feeling = self._feelings.get(match["name"])
        if feeling is None:
            return None
        goals = _GOALS[feeling.word]
        if match.re is _WHERE_WILL_GO:
            return Answer(goals[0], (feeling.line,))
        return Answer(feeling.word, (feeling.line,)) if match["goal"] in goals else None
