"""What a model is asked in BABILong: the questions of a cell, made or read, each with the tokens of its prompt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lm2.data.babilong import Sample, SampleMaker
from lm2.data.encoding import TextEncoder
from lm2.data.layout import Row, read_cell
from lm2.data.plain import question_text
from lm2.eval.prompts import PromptParts, build_prompt, encode_prompt


@dataclass(frozen=True)
class AskedQuestion:
    """One sample as a model is asked it.

    Attributes:
        question: As in bAbI.
        target: The bAbI answer.
        tokens: Begins to give the prompt's tokens, in pieces; may be called again.
        context: Makes the whole text that the answer is in.
        facts: The facts in it, in order; None where they are not known.
        support: Places in `facts` that the answer follows from.
    """

    question: str
    target: str
    tokens: Callable[[], Iterator[NDArray[np.int32]]]
    context: Callable[[], str]
    facts: tuple[str, ...] | None = None
    support: tuple[int, ...] = ()

    def count_tokens(self) -> int:
        """The prompt's length."""
        return sum(len(piece) for piece in self.tokens())


class Questions(Protocol):
    """Where questions come from. `names` says so in results: seed, facts, background and dataset, None if unused."""

    @property
    def names(self) -> dict[str, Any]: ...

    def check(self, task: int, length: str, num_samples: int | None) -> int:
        """How many questions of a cell there are to ask, at most `num_samples`; finds out before any work.

        Raises:
            ValueError: they cannot be made, or there are fewer.
            OSError: they cannot be read.
        """

    def ask(self, task: int, length: str, first: int, last: int) -> Iterator[AskedQuestion]:
        """Questions `first` to `last` - 1 of a cell, in order."""


@dataclass(frozen=True)
class MadeQuestions:
    """Samples made from facts and background.

    The plain prompt is read from the samples' own token pieces, as in training: no prompt is whole in memory.
    """

    maker: SampleMaker
    parts: PromptParts | None
    tokenizer: Any
    default_samples: int = 100

    @property
    def names(self) -> dict[str, Any]:
        background = None if self.maker.background is None else self.maker.background.name
        return {"seed": self.maker.seed, "facts": self.maker.facts.name, "background": background, "dataset": None}

    def check(self, task: int, length: str, num_samples: int | None) -> int:
        count = self.default_samples if num_samples is None else num_samples
        self.maker.check(task, length, count)
        return count

    def ask(self, task: int, length: str, first: int, last: int) -> Iterator[AskedQuestion]:
        for index in range(first, last):
            sample = self.maker.sample(task, length, index)
            if self.parts is None:
                tokens = partial(_plain_tokens, sample, self.maker.encoder)
            else:
                tokens = partial(_prompt_tokens, sample, task, self.parts, self.tokenizer)
            yield AskedQuestion(
                sample.question, sample.target, tokens, partial(_context, sample), sample.facts, sample.support
            )


@dataclass(frozen=True)
class ReadQuestions:
    """Samples of a dataset in the official layout, in its order."""

    source: str
    parts: PromptParts | None
    tokenizer: Any

    @property
    def names(self) -> dict[str, Any]:
        return {"seed": None, "facts": None, "background": None, "dataset": self.source}

    def check(self, task: int, length: str, num_samples: int | None) -> int:
        count = sum(1 for _ in islice(read_cell(self.source, task, length), num_samples))
        if count < (1 if num_samples is None else num_samples):
            raise ValueError(
                f"{self.source} has {count} rows of qa{task} at {length}, but samples is {num_samples or 'all'}; ask "
                "for as many as there are"
            )
        return count

    def ask(self, task: int, length: str, first: int, last: int) -> Iterator[AskedQuestion]:
        for row in islice(read_cell(self.source, task, length), first, last):
            tokens = partial(_prompt_tokens, row, task, self.parts, self.tokenizer)
            yield AskedQuestion(row.question, row.target, tokens, partial(_context, row))


def _plain_tokens(sample: Sample, encoder: TextEncoder) -> Iterator[NDArray[np.int32]]:
    yield from sample.token_pieces()
    yield encoder.encode(question_text(sample.question))


def _prompt_tokens(
    sample: Sample | Row, task: int, parts: PromptParts | None, tokenizer: Any
) -> Iterator[NDArray[np.int32]]:
    yield prompt_tokens(sample.input, sample.question, task, parts, tokenizer)


def prompt_tokens(
    context: str, question: str, task: int, parts: PromptParts | None, tokenizer: Any
) -> NDArray[np.int32]:
    """The tokens of the prompt that asks a question of a context."""
    prompt = build_prompt(f"qa{task}", context, question, parts)
    return np.array(encode_prompt(prompt, tokenizer, parts), dtype=np.int32)


def _context(sample: Sample | Row) -> str:
    return sample.input
