"""What the project's tokenizer is trained on: prose, and simulated stories of all bAbI tasks.

The shipped one has 2,048 entries. The built-in background is small, so 4,096 could not even be filled (it yields about
3,360), and they would cut novels into 2.7 instead of 2.5 bytes per token: little for a vocabulary that costs a tiny
model as much as its blocks. Who trains on books makes a tokenizer from books.
"""

import hashlib
import platform
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from lm2.data.babi.simulator import make_story
from lm2.data.babi.story import TASK_NAMES, Question
from lm2.data.babi.words import COUNT_WORDS
from lm2.data.plain import answer_text, context_text, question_text
from lm2.data.text import Background
from lm2.data.tokenizer import train_tokenizer

_STORIES_PER_TASK = 100


def build_tokenizer(background: Background, vocab_size: int) -> tuple[Any, dict[str, Any]]:
    """Trains the project's tokenizer: on a background and simulated bAbI stories, every word of which is one token.

    Args:
        background: Prose; of the training split, so that nothing is learned from what a model is tested in.
        vocab_size: See `train_tokenizer`.

    Returns:
        The tokenizer, and where it comes from: what it was trained on, with the SHA-256 of that text.

    Raises:
        ValueError: see `train_tokenizer`.
        OSError: a source of the background cannot be read.
    """
    import tokenizers

    stories = list(_story_texts())
    digest, num_characters = hashlib.sha256(), 0

    def texts() -> Iterator[str]:
        nonlocal num_characters
        sentences = (context_text(sentence) for source in background.sources for sentence in source.sentences())
        for text in chain(sentences, stories):
            digest.update(text.encode() + b"\n")
            num_characters += len(text)
            yield text

    # "three" is one answer in 500 of qa7, all others come up in every few stories.
    words = {word for text in stories for word in re.findall(r"[^\W\d_]+", text)} | set(COUNT_WORDS)
    tokenizer = train_tokenizer(texts(), vocab_size, words)
    provenance = {
        "vocab_size": len(tokenizer),
        "background": background.name,
        "background_split": background.split,
        "simulated_stories_per_task": _STORIES_PER_TASK,
        "whole_words": len(words),
        "training_characters": num_characters,
        "training_sha256": digest.hexdigest(),
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
    }
    return tokenizer, provenance


def _story_texts() -> Iterator[str]:
    """The lines of simulated stories of all tasks, as a model reads them."""
    for task in TASK_NAMES:
        for index in range(_STORIES_PER_TASK):
            for line in make_story(task, seed=0, index=index).lines:
                if isinstance(line, Question):
                    yield question_text(line.text) + answer_text(line.answer)
                else:
                    yield context_text(line.text)
