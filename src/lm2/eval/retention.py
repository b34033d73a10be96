"""How long a memory keeps what it took in: answers against the length of the noise behind the last fact.

A story is read without noise, then background, and at each distance its question is asked of a copy of the state. So
one reading serves all distances, every distance asks the same questions, and a difference between two of them is
forgetting and nothing else: finding the facts has been done. BABILong's accuracy at a length mixes the two. Ours.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm2.data.babilong import SampleMaker
from lm2.data.plain import ANSWER_END, question_text
from lm2.eval.runner import Decoding, Ending, decode, read

# "bathroom", or a list of three objects.
_MAX_NEW_TOKENS = 12


@dataclass(frozen=True, eq=False)
class Story:
    """What is told, what is read behind it, and what is asked.

    Attributes:
        task: 1 to 20.
        facts: Tokens of the facts, as BABILong has them at 0k.
        noise: Tokens of background, enough for the largest distance.
        question: As in bAbI.
        target: The right answer.
    """

    task: int
    facts: NDArray[np.int32]
    noise: NDArray[np.int32]
    question: str
    target: str


def make_stories(maker: SampleMaker, task: int, count: int, noise_tokens: int) -> Iterator[Story]:
    """The stories of a task's samples 0 to `count` - 1 at 0k, each with background of its own, repeated where it ends.

    Raises:
        ValueError: what the maker refuses.
    """
    assert maker.background is not None, "the caller opens one"
    for index in range(count):
        sample = maker.sample(task, "0k", index)
        rng = Random(f"retention {maker.split} {maker.seed} {task} {index}")
        noise = np.empty(0, dtype=np.int32)
        if noise_tokens:
            drawn = maker.background.draw(rng, noise_tokens, noise_tokens, True)
            noise = np.concatenate([maker.background.token_ids(stretch) for stretch in drawn.stretches])
        assert len(noise) == noise_tokens, "background is drawn to the token"
        yield Story(task, sample.token_ids, noise, sample.question, sample.target)


def answers_after_noise(
    model: Any,
    tokenizer: Any,
    encode: Callable[[str], NDArray[np.int32]],
    stories: Sequence[Story],
    distances: Sequence[int],
) -> list[list[str]]:
    """What a model answers to each story's question, greedily, after each distance.

    Args:
        model: One with a bounded state, in evaluation mode.
        tokenizer: Its tokenizer.
        encode: The tokens of a text.
        stories: Read as the rows of one batch.
        distances: Tokens of noise between the facts and the question, ascending.

    Returns:
        For each distance, for each story.
    """
    assert list(distances) == sorted(set(distances)), "the caller sorts"
    questions = [[encode(question_text(story.question))] for story in stories]
    decoding, ending = Decoding(_MAX_NEW_TOKENS, (ANSWER_END,)), Ending(model, tokenizer, (ANSWER_END,))
    state = read(model, [[story.facts] for story in stories]).state
    answers = []
    for begin, end in pairwise((0, *distances)):
        if end > begin:
            state = read(model, [[story.noise[begin:end]] for story in stories], state).state
        # What is asked is no part of what is read: the next stretch of noise goes on from the state before.
        asked = read(model, questions, copy.deepcopy(state))
        new_ids = decode(model, asked, decoding, ending)
        answers.append([tokenizer.decode(row, skip_special_tokens=True) for row in new_ids])
    return answers
