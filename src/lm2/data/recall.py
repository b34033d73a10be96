"""Associative recall with overwriting: the smallest stream that needs a memory, for trials of one part of a model.

A row is a sequence of cells of three tokens: a fact (`key value noise`), a question (`ask key value`, the value to be
foretold), or noise. A key may be told again: the latest value counts. Keys, values and noise are tokens of their own,
so nothing is to be learned but binding, keeping and overwriting. Facts and questions do not end where segments do, so
some are cut by a boundary. The task is that of many papers on linear attention (such as multi-query associative recall,
Arora et al. 2023), with overwriting added; cells are ours, because whole rows are then drawn without a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from lm2.data.bounds import at_least

CELL_TOKENS = 3
# A fact and a question.
MIN_ROW_TOKENS = 2 * CELL_TOKENS
NUM_NOISE_TOKENS = 32

_NOISE, _FACT, _QUESTION = 0, 1, 2


@dataclass(frozen=True)
class RecallTask:
    """What rows are like.

    Attributes:
        num_keys: Different keys there are.
        num_values: Different values there are; a guess is right once in so many.
        keys_per_row: Keys that a row tells, so many facts must be held at once.
        noise: The part of the cells that are noise. Of the others half are facts and half questions, save those before
            the first fact.
    """

    num_keys: int
    num_values: int
    keys_per_row: int
    noise: float

    def __post_init__(self) -> None:
        for name in ("num_keys", "num_values", "keys_per_row"):
            at_least(name, getattr(self, name), 1)
        if self.keys_per_row > self.num_keys:
            raise ValueError(
                f"keys_per_row is {self.keys_per_row}, but must be at most num_keys, which is {self.num_keys}"
            )
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise is {self.noise}, but must be from 0 to less than 1")


@dataclass(frozen=True)
class RecallVocabulary:
    """Which tokens stand for what."""

    ask: int
    keys: tuple[int, ...]
    values: tuple[int, ...]
    noise: tuple[int, ...]

    @property
    def content(self) -> frozenset[int]:
        """All but noise."""
        return frozenset((self.ask, *self.keys, *self.values))


@dataclass(frozen=True, eq=False)
class RecallRow:
    """One row.

    Attributes:
        input_ids: int64.
        answers: The places of the values that are asked for, ascending.
        ages: For each of them, by how many tokens its fact's value lies before it.
    """

    input_ids: NDArray[np.int64]
    answers: NDArray[np.int64]
    ages: NDArray[np.int64]


def draw_recall_vocabulary(rng: Random, tokens: Sequence[int], task: RecallTask) -> RecallVocabulary:
    """Tokens for a task, each for one thing.

    Args:
        rng: Random numbers; only `random()` is called, which Python keeps stable.
        tokens: What to choose from.
        task: What is needed.

    Raises:
        ValueError: fewer tokens than are needed.
    """
    needed = 1 + task.num_keys + task.num_values + NUM_NOISE_TOKENS
    if needed > len(tokens):
        raise ValueError(
            f"recall needs {needed} tokens, but the tokenizer has {len(tokens)}; take fewer keys and values"
        )
    drawn = sorted(tokens, key=lambda _: rng.random())[:needed]
    first_noise = 1 + task.num_keys + task.num_values
    return RecallVocabulary(
        ask=drawn[0],
        keys=tuple(drawn[1 : 1 + task.num_keys]),
        values=tuple(drawn[1 + task.num_keys : first_noise]),
        noise=tuple(drawn[first_noise:]),
    )


def recall_row(rng: Random, length_tokens: int, task: RecallTask, vocabulary: RecallVocabulary) -> RecallRow:
    """A row with at least one question; its last cell is one.

    Args:
        rng: Random numbers; only `random()` is called, which Python keeps stable.
        length_tokens: Tokens of the row, at least MIN_ROW_TOKENS.
        task: What it is like.
        vocabulary: Of that task.
    """
    num_cells = length_tokens // CELL_TOKENS
    assert length_tokens >= MIN_ROW_TOKENS, "a fact and a question"
    told = np.array(sorted(range(task.num_keys), key=lambda _: rng.random())[: task.keys_per_row])
    which, key, value, order = _uniform(rng, (4, num_cells))
    kind = np.where(which < task.noise, _NOISE, np.where(which < (1 + task.noise) / 2, _FACT, _QUESTION))
    kind[-1] = _QUESTION
    facts = np.flatnonzero(kind == _FACT)
    first = facts[0] if len(facts) else 0
    kind[first] = _FACT
    kind[:first] = _NOISE
    key_C = told[(key * task.keys_per_row).astype(int)]
    value_C = (value * task.num_values).astype(int)
    source_C = _latest_facts(kind == _FACT, key_C, order)
    is_question = kind == _QUESTION
    key_C[is_question] = key_C[source_C[is_question]]
    value_C[is_question] = value_C[source_C[is_question]]

    noise = np.array(vocabulary.noise)
    ids = noise[(_uniform(rng, (length_tokens,)) * len(noise)).astype(int)]
    begin_C = np.arange(num_cells) * CELL_TOKENS
    keys, values = np.array(vocabulary.keys), np.array(vocabulary.values)
    is_fact = kind == _FACT
    ids[begin_C[is_fact]] = keys[key_C[is_fact]]
    ids[begin_C[is_fact] + 1] = values[value_C[is_fact]]
    ids[begin_C[is_question]] = vocabulary.ask
    ids[begin_C[is_question] + 1] = keys[key_C[is_question]]
    answers = begin_C[is_question] + 2
    ids[answers] = values[value_C[is_question]]
    return RecallRow(ids.astype(np.int64), answers, answers - begin_C[source_C[is_question]] - 1)


def _latest_facts(
    is_fact_C: NDArray[np.bool_], key_C: NDArray[np.int64], order_C: NDArray[np.float64]
) -> NDArray[np.int64]:
    """For each cell the cell of the fact that a question there asks for: of one of the keys told before, its latest.

    `order_C`, uniform in [0, 1), chooses among those keys.
    """
    cells = np.arange(len(key_C))
    told, place_C = np.unique(key_C, return_inverse=True)
    marks_KC = np.where(is_fact_C & (place_C == np.arange(len(told))[:, None]), cells, -1)
    latest_KC = np.maximum.accumulate(marks_KC, axis=1)
    # The keys told so far come first, each column for itself; a column without one is no question's.
    known_KC = np.sort(latest_KC, axis=0)[::-1]
    num_known_C = (latest_KC >= 0).sum(axis=0)
    return known_KC[(order_C * num_known_C).astype(int), cells]


def _uniform(rng: Random, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.array([rng.random() for _ in range(int(np.prod(shape)))]).reshape(shape)
