"""BABILong samples: the facts of a bAbI question spread over background text (Kuratov et al. 2024, babilong_utils.py).

The rule: n background sentences have n + 1 slots before, between and behind them; every fact draws a slot uniformly
with replacement, and the drawn slots are sorted, so facts keep their order. Facts and sentences are encoded each with a
leading space; together they are exactly as long as the length's name says.

A sample is a pure function of (seed, split, task, length, index). The official generator keeps the sentences that one
sample left over for the next; ours does not, so that any sample can be made alone, resumed, and shared out among
processes. Single samples have the same distribution.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain
from random import Random

import numpy as np
from numpy.typing import NDArray

from lm2.data.babi.story import Problem, cut_at_questions
from lm2.data.encoding import TextEncoder
from lm2.data.facts import Facts, check_split, open_facts
from lm2.data.lengths import context_tokens, max_facts
from lm2.data.noise import NO_NOISE, Noise, Stretch, TokenizedBackground
from lm2.data.text import open_background

# Stories tried for one sample before its length counts as too short for the task.
MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Sample:
    """One sample, its text made only when it is asked for, and piece by piece.

    Attributes:
        task: 1 to 20.
        length: The length's name.
        index: The sample's number in its cell.
        facts: All statements before the question.
        question: As in bAbI, with its trailing space where the task has one.
        target: The bAbI answer, such as "apple,milk".
        support: Places in `facts` that the answer follows from.
        slots: For each fact the number of background sentences before it.
        noise: The background.
    """

    task: int
    length: str
    index: int
    facts: tuple[str, ...]
    question: str
    target: str
    support: tuple[int, ...]
    slots: tuple[int, ...]
    noise: Noise
    _encoder: TextEncoder = field(repr=False)
    _background: TokenizedBackground | None = field(repr=False)

    @property
    def repeats(self) -> bool:
        """Whether a background sentence is in the sample twice."""
        return self.noise.repeats

    @property
    def input(self) -> str:
        """The whole context, stripped."""
        return "".join(self.pieces())

    def pieces(self) -> Iterator[str]:
        """The text of `input`, in pieces no larger than a background source."""
        return _strip(f" {part}" if isinstance(part, str) else self._noise().text(part) for part in self._parts())

    def token_pieces(self) -> Iterator[NDArray[np.int32]]:
        """The tokens of the context, each part encoded with its leading space, in pieces as `pieces` has them."""
        for part in self._parts():
            yield self._encoder.encode(f" {part}") if isinstance(part, str) else self._noise().token_ids(part)

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """All tokens of the context. Their number is the length's."""
        return np.concatenate(list(self.token_pieces()))

    def _noise(self) -> TokenizedBackground:
        assert self._background is not None, "a sample with noise has a background"
        return self._background

    def _parts(self) -> Iterator[str | Stretch]:
        """Facts and runs of background sentences, in order."""
        return interleave(self.facts, self.slots, self.noise, self._background)


def interleave(
    items: tuple[str, ...], slots: tuple[int, ...], noise: Noise, background: TokenizedBackground | None
) -> Iterator[str | Stretch]:
    """Items, each before the background sentence that its slot numbers, and the runs of sentences between them."""
    done, passed = 0, 0
    for stretch in noise.stretches:
        assert background is not None, "noise comes from a background"
        first, size = 0, stretch.end - stretch.begin
        while done < len(items) and slots[done] - passed < size:
            if slots[done] - passed > first:
                yield background.cut(stretch, first, slots[done] - passed)
                first = slots[done] - passed
            yield items[done]
            done += 1
        yield background.cut(stretch, first, size) if first else stretch
        passed += size
    yield from items[done:]


def _strip(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of the stripped text: white space waits until it is known that more follows."""
    waiting, begun = "", False
    for piece in pieces:
        body = piece.rstrip()
        if body:
            yield f"{waiting if begun else ''}{body if begun else body.lstrip()}"
            waiting, begun = "", True
        waiting += piece[len(body) :]


@dataclass(frozen=True)
class SampleMaker:
    """Makes the samples of any task and length from facts and background.

    Attributes:
        facts: Where stories come from; the questions of files are taken in their order, those left out that do not fit.
        background: Where noise comes from; None makes samples at 0k only.
        encoder: The tokenizer that lengths are counted by; the background's, if there is one.
        seed: Of all random choices.
        split: "train" or "test": samples of different splits are made from different random numbers.
        allow_repeats: Whether a sample may hold a background sentence twice when all others are used.
        position: The part of the context that facts may lie in, as fractions of its tokens; None for all slots
            (task_start_pct and task_end_pct of the official generator: a slot counts if the background before it is at
            least the start, and less than the end minus all facts).
    """

    facts: Facts
    background: TokenizedBackground | None
    encoder: TextEncoder
    seed: int
    split: str = "test"
    allow_repeats: bool = False
    position: tuple[float, float] | None = None
    _fitting: dict[tuple[int, int], tuple[Problem, ...]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_split(self.split)
        check_position(self.position)
        assert self.background is None or self.background.encoder is self.encoder, "one tokenizer counts everything"

    def check(self, task: int, length: str, num_samples: int) -> None:
        """Finds out before any work whether samples 0 to `num_samples` - 1 of a cell can be made.

        Raises:
            ValueError: an unknown length, too few questions that fit, or too little background.
        """
        num_tokens = context_tokens(length)
        problems = self._problems(task, num_tokens)
        if problems is not None and len(problems) < num_samples:
            raise ValueError(
                f"samples is {num_samples}, but facts {self.facts.name} has {len(problems)} questions of qa{task} that "
                f"fit a context of {length}; ask for at most {len(problems)}"
            )
        if num_tokens:
            # Facts take their part too, but which is known only sample by sample: refuse what could fail.
            self._require_background(length).check_fills(num_tokens, self.allow_repeats)

    def sample(self, task: int, length: str, index: int) -> Sample:
        """Makes one sample; the same arguments always make the same one.

        Raises:
            ValueError: what `check` refuses.
        """
        num_tokens = context_tokens(length)
        rng = Random(f"babilong {self.split} {self.seed} {task} {length} {index}")
        problem = self._problem(rng, task, length, index)
        noise, slots = NO_NOISE, (0,) * len(problem.facts)
        if num_tokens:
            background = self._require_background(length)
            fact_tokens = self._count(problem)
            noise = background.draw(rng, num_tokens - fact_tokens, num_tokens, self.allow_repeats)
            slot_range = find_slots(background, noise, self.position, num_tokens, fact_tokens)
            if slot_range is None:
                raise ValueError(
                    f"position is {self.position}, but no place between two sentences lies there for {fact_tokens} "
                    f"tokens of facts in {num_tokens}; make the range wider or the context longer"
                )
            slots = draw_slots(rng, len(problem.facts), slot_range)
        return Sample(
            task=task,
            length=length,
            index=index,
            facts=problem.facts,
            question=problem.question,
            target=problem.answer,
            support=problem.support,
            slots=slots,
            noise=noise,
            _encoder=self.encoder,
            _background=self.background,
        )

    def _problem(self, rng: Random, task: int, length: str, index: int) -> Problem:
        num_tokens = context_tokens(length)
        problems = self._problems(task, num_tokens)
        if problems is not None:
            if index >= len(problems):
                raise ValueError(
                    f"index is {index}, but {len(problems)} questions of qa{task} fit a context of {length}"
                )
            return problems[index]
        for attempt in range(MAX_ATTEMPTS):
            story = self.facts.story(task, index, attempt)
            fitting = [problem for problem in cut_at_questions(story) if self._fits(problem, num_tokens)]
            if fitting:
                return fitting[int(rng.random() * len(fitting))]
        raise ValueError(f"length is {length!r}, but no question of qa{task} fits it; choose a longer one")

    def _problems(self, task: int, num_tokens: int) -> tuple[Problem, ...] | None:
        """The questions of files that fit, in order; None for facts without end."""
        problems = self.facts.problems(task)
        if problems is None:
            return None
        if (task, num_tokens) not in self._fitting:
            fitting = tuple(problem for problem in problems if self._fits(problem, num_tokens))
            self._fitting[task, num_tokens] = fitting
        return self._fitting[task, num_tokens]

    def _fits(self, problem: Problem, num_tokens: int) -> bool:
        limit = max_facts(num_tokens)
        return limit is None or (len(problem.facts) <= limit and self._count(problem) <= num_tokens)

    def _count(self, problem: Problem) -> int:
        return sum(len(self.encoder.encode(f" {fact}")) for fact in problem.facts)

    def _require_background(self, length: str) -> TokenizedBackground:
        if self.background is None:
            raise ValueError(f"length is {length!r}, but there is no background; give one, or take length 0k")
        return self.background


def check_position(position: tuple[float, float] | None) -> None:
    """Refuses a range of fractions that is none.

    Raises:
        ValueError: not 0 <= start < end <= 1.
    """
    if position is not None and not 0 <= position[0] < position[1] <= 1:
        raise ValueError(f"position is {position}, but must be two fractions with 0 <= start < end <= 1")


def find_slots(
    background: TokenizedBackground,
    noise: Noise,
    position: tuple[float, float] | None,
    sample_tokens: int,
    fact_tokens: int,
) -> tuple[int, int] | None:
    """The first and the last slot that facts may draw; None if no slot is in the range."""
    if position is None:
        return 0, noise.num_sentences
    lengths = chain.from_iterable(background.sentence_lengths(stretch).tolist() for stretch in noise.stretches)
    before = list(accumulate(lengths, initial=0))[:-1]
    first = bisect_left(before, int(sample_tokens * position[0]))
    last = bisect_left(before, int(sample_tokens * position[1]) - fact_tokens) - 1
    return (first, last) if first <= last else None


def draw_slots(rng: Random, count: int, slot_range: tuple[int, int]) -> tuple[int, ...]:
    """`count` slots from the range, both ends included, drawn uniformly with replacement, sorted."""
    first, last = slot_range
    return tuple(sorted(first + int(rng.random() * (last - first + 1)) for _ in range(count)))


def open_maker(
    facts: str,
    background: str | None,
    encoder: TextEncoder,
    seed: int,
    split: str = "test",
    allow_repeats: bool = False,
) -> SampleMaker:
    """A maker of samples from sources by their names.

    Args:
        facts: As for `open_facts`.
        background: As for `open_background`; None for samples at 0k only.
        encoder, seed, split, allow_repeats: As of `SampleMaker`.

    Raises:
        ValueError, OSError: what the two openers refuse.
    """
    noise = None if background is None else TokenizedBackground(open_background(background, split), encoder)
    return SampleMaker(open_facts(facts, split, seed), noise, encoder, seed, split, allow_repeats)
