"""bAbI stories as data: what a simulator makes, a file holds, a solver checks and BABILong hides in long text."""

from collections.abc import Iterator
from dataclasses import dataclass

# The tasks and their names in the original file names, such as qa1_single-supporting-fact_test.txt.
TASK_NAMES: dict[int, str] = {
    1: "single-supporting-fact",
    2: "two-supporting-facts",
    3: "three-supporting-facts",
    4: "two-arg-relations",
    5: "three-arg-relations",
    6: "yes-no-questions",
    7: "counting",
    8: "lists-sets",
    9: "simple-negation",
    10: "indefinite-knowledge",
    11: "basic-coreference",
    12: "conjunction",
    13: "compound-coreference",
    14: "time-reasoning",
    15: "basic-deduction",
    16: "basic-induction",
    17: "positional-reasoning",
    18: "size-reasoning",
    19: "path-finding",
    20: "agents-motivations",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One line that tells a fact: `Mary moved to the garden.`"""

    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """One line that asks.

    `text` is as in the file, the space before the tab included where the task has one; `answer` too, so a list is
    `apple,milk`; `support` holds the numbers of the story's lines (from 1, question lines counted) that the answer
    follows from, in the file's order.
    """

    text: str
    answer: str
    support: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """One story: its lines in order, numbered from 1 by their place."""

    task: int
    lines: tuple[Statement | Question, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with all that was told before it: what BABILong makes a sample from.

    `facts` are all statements before the question, earlier questions left out; `support` holds places in `facts`, from
    0, in the file's order.
    """

    task: int
    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]


def cut_at_questions(story: Story) -> Iterator[Problem]:
    """Yields one problem per question of the story, in the story's order."""
    facts: list[str] = []
    fact_at_line: dict[int, int] = {}
    for number, line in enumerate(story.lines, start=1):
        if isinstance(line, Statement):
            fact_at_line[number] = len(facts)
            facts.append(line.text)
        else:
            support = tuple(fact_at_line[line_number] for line_number in line.support)
            yield Problem(story.task, tuple(facts), line.text, line.answer, support)


def format_story(story: Story) -> str:
    """The story in the original file format, its last line ended too."""
    return "".join(f"{number} {_format_line(line)}\n" for number, line in enumerate(story.lines, start=1))


def _format_line(line: Statement | Question) -> str:
    if isinstance(line, Statement):
        return line.text
    return f"{line.text}\t{line.answer}\t{' '.join(map(str, line.support))}"
