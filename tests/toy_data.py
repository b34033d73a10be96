"""Small real objects for the tests of contexts and streams: a tokenizer, background texts, and stories."""

import os
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lm2.data.babi.story import Problem, Question, Statement, Story, cut_at_questions
from lm2.data.encoding import TextEncoder
from lm2.data.noise import TokenizedBackground
from lm2.data.text import Background, Source

NAMES = ("Mary", "John", "Sandra", "Daniel")
PLACES = ("garden", "kitchen", "office", "hallway", "bathroom", "bedroom")
_TEXT = "the old river turned slowly under a bridge of grey “stone” and nobody — not even he — saw it go"
_WORDS = _TEXT.split()


def toy_encoder(vocab_size: int = 400) -> TextEncoder:
    """A byte-level BPE of few words: others are several tokens, and some tokens are parts of characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(
        [_TEXT, *(f" {name} went to the {place}." for name in NAMES for place in PLACES)], trainer
    )
    return TextEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer), "toy")


@dataclass(frozen=True)
class ToySource(Source):
    """Sentences of 3 to 30 words, each with a number of its own; those of 3 words are too short to be used."""

    name: str
    seed: int
    num_sentences: int

    def text(self) -> str:
        return "\n".join(self.sentences())

    def sentences(self) -> list[str]:
        rng = Random(self.seed)
        lengths = [rng.choice([1, 8, 14, 28]) for _ in range(self.num_sentences)]
        return [
            f"S{self.seed} {number} {' '.join(rng.choices(_WORDS, k=length))}." if length > 1 else "Oh no!"
            for number, length in enumerate(lengths)
        ]


def toy_background(
    encoder: TextEncoder, num_sources: int = 3, num_sentences: int = 120, **options: int
) -> TokenizedBackground:
    sources = tuple(ToySource(f"book {seed}", seed, num_sentences) for seed in range(num_sources))
    return TokenizedBackground(Background("toy", "test", "toy books", sources), encoder, **options)


@dataclass(frozen=True)
class ToyFacts:
    """Stories in the form of qa1, of a random number of facts, each question answered by the latest place."""

    max_facts: int = 12
    num_questions: int = 5
    name: str = "toy stories"

    def story(self, task: int, index: int, attempt: int) -> Story:
        rng = Random(f"{task} {index} {attempt}")
        lines: list[Statement | Question] = []
        place: dict[str, tuple[str, int]] = {}
        for _ in range(self.num_questions):
            for _ in range(rng.randint(1, self.max_facts)):
                name, where = rng.choice(NAMES), rng.choice(PLACES)
                lines.append(Statement(f"{name} went to the {where}."))
                place[name] = where, len(lines)
            asked = rng.choice(sorted(place))
            lines.append(Question(f"Where is {asked}? ", place[asked][0], (place[asked][1],)))
        return Story(task, tuple(lines))

    def problems(self, task: int) -> None:
        return None


@dataclass(frozen=True)
class ToyFiles(ToyFacts):
    """The same, with an end: what files are."""

    num_stories: int = 20

    def problems(self, task: int) -> tuple[Problem, ...]:  # type: ignore[override]
        return tuple(
            problem for index in range(self.num_stories) for problem in cut_at_questions(self.story(task, index, 0))
        )


def shared_data(folder: str) -> Path:
    """A folder of the data that tests compare with; skips the test where it is not there."""
    path = Path(os.environ.get("LM2_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")) / folder
    if not path.is_dir():
        pytest.skip(f"the real data is not at {path}: set LM2_SHARED_DATA")
    return path
