"""What the parts of the solver share: answers, worlds, and patterns of the English that the stories are told in."""

import re
from dataclasses import dataclass
from typing import Protocol

NAME = r"[A-Z][a-z]+"
MOVED_TO = r"(?:went|went back|journeyed|travelled|moved) to the"
GOT_THE = r"(?:picked up|got|took|grabbed) the"
LEFT_THE = r"(?:left|discarded|dropped|put down) the"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question's answer is, and the numbers of the story's lines it follows from, in the data's order."""

    text: str
    support: tuple[int, ...]


class World(Protocol):
    """All that one story has told so far, as far as its task's questions need it."""

    def tell(self, number: int, text: str) -> None:
        """Takes in the statement in line `number`."""

    def ask(self, text: str) -> Answer | None:
        """Answers a question; None where the statements so far do not determine the answer."""


def parse(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    """Matches a whole line.

    Raises:
        ValueError: the line has another form.
    """
    match = pattern.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} has none of the forms that the task's lines have")
    return match
