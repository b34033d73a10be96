"""What training samples are like: one stage of a curriculum, as tasks, lengths and where questions are asked."""

from collections.abc import Mapping
from dataclasses import dataclass

from lm2.data.babi.story import TASK_NAMES
from lm2.data.babilong import check_position
from lm2.data.bounds import at_least, within
from lm2.data.lengths import TOKENS_PER_ROW

QUESTION_PLACES = ("inline", "end")


@dataclass(frozen=True)
class Length:
    """Tokens of a whole sample, questions and answers included, drawn uniformly from `min_tokens` to `max_tokens`.

    0 and 0 means facts and questions only, without background, as long as they are.
    """

    min_tokens: int
    max_tokens: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_tokens <= self.max_tokens or (self.min_tokens == 0 < self.max_tokens):
            raise ValueError(
                f"length is {self.min_tokens} to {self.max_tokens} tokens, but must be 1 or more, not decreasing; "
                "or 0 to 0 for facts only"
            )
        _check_weight("a length", self.weight)


def segment_lengths(max_segments: int, segment_length: int, margin_tokens: int = 0) -> tuple[Length, ...]:
    """Lengths of 1 to `max_segments` whole segments, equally likely, each shorter by the margin.

    The margin leaves room in the last segment for what a model adds to it (RMT's training leaves 20 tokens).

    Raises:
        ValueError: no segment, or no token left in one.
    """
    if max_segments < 1 or not 0 <= margin_tokens < segment_length:
        raise ValueError(
            f"max_segments is {max_segments}, segment_length {segment_length}, margin_tokens {margin_tokens}, but "
            "there must be at least 1 segment, and the margin shorter than a segment"
        )
    return tuple(
        Length(count * segment_length - margin_tokens, count * segment_length - margin_tokens)
        for count in range(1, max_segments + 1)
    )


@dataclass(frozen=True)
class Stage:
    """What a stream's samples are like: one stage of a curriculum.

    Attributes:
        tasks: Weight of each task; a sample's task is drawn by them.
        lengths: A sample's length is drawn from these, by their weights.
        questions: "inline" asks inside the context, "end" asks one question, drawn from the story, behind it.
        max_questions: At most so many questions of a story, drawn at random; None for all. Inline only.
        further_questions: At most so many besides, which the story does not ask but its facts determine
            (lm2.data.further), as far as they fit. Inline only.
        position: The part of the sample that facts may lie in, as fractions; None for all of it.
        tokens_per_row: A story of more facts, and one question, than one for so many tokens is cut or left out.
        allow_repeats: Whether a sample may hold a background sentence twice when all others are used.
        shortened: The part of the samples whose facts and questions are shortened (lm2.data.shortening), each of them
            by a share of its fillers that is drawn from 0 to 1. Those samples are shorter than their length says.
    """

    tasks: Mapping[int, float]
    lengths: tuple[Length, ...]
    questions: str = "inline"
    max_questions: int | None = None
    further_questions: int = 0
    position: tuple[float, float] | None = None
    tokens_per_row: int = TOKENS_PER_ROW
    allow_repeats: bool = False
    shortened: float = 0.0

    def __post_init__(self) -> None:
        if not self.tasks or not self.lengths:
            raise ValueError("tasks and lengths must each have at least one entry")
        for task, weight in self.tasks.items():
            if task not in TASK_NAMES:
                raise ValueError(f"task is {task!r}, but must be 1 to 20")
            _check_weight(f"task {task}", weight)
        if self.questions not in QUESTION_PLACES:
            raise ValueError(f"questions is {self.questions!r}, but must be {' or '.join(map(repr, QUESTION_PLACES))}")
        if self.max_questions is not None and (self.questions == "end" or self.max_questions < 1):
            raise ValueError(
                f"max_questions is {self.max_questions} and questions {self.questions!r}, but it must be at least 1, "
                "and has no effect at the end, where one question is asked"
            )
        if self.further_questions < 0 or (self.questions == "end" and self.further_questions):
            raise ValueError(
                f"further_questions is {self.further_questions} and questions {self.questions!r}, but it must be at "
                "least 0, and has no effect at the end, where one question is asked"
            )
        at_least("tokens_per_row", self.tokens_per_row, 1)
        check_position(self.position)
        within("shortened", self.shortened, 0, 1)
        if not any(length.max_tokens for length in self.lengths) and (self.position or self.allow_repeats):
            raise ValueError(
                f"position is {self.position} and allow_repeats {self.allow_repeats}, but neither has an effect where "
                "all lengths are facts only; leave them out"
            )


def _check_weight(of_what: str, weight: float) -> None:
    if not 0 < weight < float("inf"):
        raise ValueError(f"the weight of {of_what} is {weight}, but must be a positive number")
