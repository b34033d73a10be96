"""Further questions about a story: those of other stories of its task, answered by the solver from what was told.

Ours, because a story of the data asks little (task 4 once, of two facts), while its facts determine much more, and an
answer is all that a model learns from.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from random import Random

from lm2.data.babi.solver import ask_so_far
from lm2.data.babi.story import Question
from lm2.data.facts import Facts

# The worlds of the tasks are small: more stories bring no other questions for tasks 1 to 10.
_POOL_STORIES = 256
# As many of a pool are tried after a fact: all of tasks 1 to 10.
_TRIES = 64

_WORD = re.compile(r"\w+")


@lru_cache(maxsize=64)
def question_pool(facts: Facts, task: int) -> tuple[str, ...]:
    """The texts of all questions in the first stories of a task, in order of the alphabet."""
    stories = (facts.story(task, index, 0) for index in range(_POOL_STORIES))
    return tuple(sorted({line.text for story in stories for line in story.lines if isinstance(line, Question)}))


def draw_further(
    rng: Random, pool: Sequence[str], task: int, facts: Sequence[str], count: int
) -> list[tuple[int, str, str]]:
    """At most `count` questions that the facts of a story determine, in the order of the story.

    Each is asked after a fact drawn at random, and answered from the facts up to that one; none is asked twice after
    the same fact. First its answer is drawn, evenly from all that there are, then one of its questions, of those with
    the most words that were told. Else "no" is right five times in six where places are asked for, mostly of places
    that nobody has been in, and a model learns which places were told instead of who is where.

    Args:
        rng: Of all choices.
        pool: The texts to draw from, such as `question_pool`.
        task: 1 to 20.
        facts: The texts of the statements, at least one.
        count: How many to look for; fewer are found where the facts determine few.

    Returns:
        Of each, the number of facts it is asked after, its text and its answer.
    """
    places = Counter(1 + int(rng.random() * len(facts)) for _ in range(count))
    words: set[str] = set()
    found: list[tuple[int, str, str]] = []
    for told, ask in enumerate(ask_so_far(task, facts), start=1):
        words |= _words(facts[told - 1])
        if not places[told]:
            continue
        texts_by_answer: dict[str, list[str]] = {}
        for text in rng.sample(pool, min(_TRIES, len(pool))):
            answer = ask(text)
            if answer is not None:
                texts_by_answer.setdefault(answer.text, []).append(text)
        num_told = {text: len(_words(text) & words) for texts in texts_by_answer.values() for text in texts}
        for _ in range(min(places[told], sum(map(len, texts_by_answer.values())))):
            answer_text = rng.choice(sorted(texts_by_answer))
            texts = texts_by_answer[answer_text]
            most = max(num_told[text] for text in texts)
            text = rng.choice([text for text in texts if num_told[text] == most])
            found.append((told, text, answer_text))
            texts.remove(text)
            if not texts:
                del texts_by_answer[answer_text]
    return found


@lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))
