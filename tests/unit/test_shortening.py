"""Shortened sentences: what may be left out, how often, and that answers and their places stay right."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from toy_data import toy_background, toy_encoder

from lm2.data.babi.simulator import make_story
from lm2.data.babi.story import TASK_NAMES, Question
from lm2.data.encoding import TextEncoder
from lm2.data.facts import SimulatedFacts
from lm2.data.plain import answer_text, question_text
from lm2.data.shortening import FILLERS, filler_tokens, keep_tokens
from lm2.data.stage import Length, Stage
from lm2.data.stream import BabilongStream
from lm2.data.tokenizer import load_tokenizer

STAGE = Stage({1: 1.0}, (Length(300, 300),), tokens_per_row=8)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(load_tokenizer("builtin"), "builtin")


@pytest.fixture(scope="module")
def stream(encoder: TextEncoder) -> BabilongStream:
    return BabilongStream(STAGE, SimulatedFacts(0, "train"), toy_background(encoder), encoder, seed=0)


def _rest(encoder: TextEncoder, text: str) -> str:
    ids, offsets = encoder.encode_with_offsets(text)
    return encoder.decode(ids[~filler_tokens(text, offsets)])


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (" Mary went back to the kitchen.", " Mary kitchen"),
        (" Sandra got the football there.", " Sandra got football"),
        (question_text("Where is Mary? "), " Mary"),
        (question_text("Where was the apple before the bathroom? "), " was apple before bathroom"),
        (question_text("What is the bedroom north of?"), " bedroom north"),
        (" Theodore is a wolf.", " Theodore a wolf"),
    ],
)
@pytest.mark.parametrize("vocab_size", [None, 400], ids=["builtin", "split words"])
def test_what_is_left_of_a_sentence(encoder: TextEncoder, text: str, rest: str, vocab_size: int | None) -> None:
    """Also by a tokenizer that has few whole words."""
    assert _rest(encoder if vocab_size is None else toy_encoder(vocab_size), text) == rest


def test_statements_stay_different() -> None:
    """In each task, statements and questions that say different things still differ without their fillers."""

    def meaning(text: str) -> tuple[str, ...]:
        """Words, with what the simulator's synonyms have in common put for them."""
        words = text.replace(".", " ").replace("?", " ").replace(",", " ").split()
        moves = {"went", "journeyed", "travelled", "moved"}
        return tuple("moves" if word in moves else word for word in words if word not in {"back", "there"})

    for task in TASK_NAMES:
        by_rest: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        for index in range(60):
            for line in make_story(task, 0, index).lines:
                rest = tuple(word for word in meaning(line.text) if word not in FILLERS and word != "moves")
                kind = "question" if isinstance(line, Question) else "fact"
                by_rest.setdefault((kind, *rest), set()).add(meaning(line.text))
        assert all(len(meanings) == 1 for meanings in by_rest.values()), [m for m in by_rest.values() if len(m) > 1][:3]


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 250, 350), (1.0, 1000, 1000)])
def test_fillers_are_left_out_by_chance(share: float, low: int, high: int) -> None:
    is_filler = np.arange(3000) % 3 == 0
    keep = keep_tokens(Random(0), is_filler, share)
    assert keep[~is_filler].all()
    assert low <= (~keep).sum() <= high


def test_samples_keep_content_answers_and_places(stream: BabilongStream, encoder: TextEncoder) -> None:
    """A shortened sample is the whole one without some fillers of facts and questions, and its answers are the same."""
    shortened = stream.with_stage(replace(STAGE, shortened=1.0))
    lost = []
    for index in range(60):
        whole, short = stream[index], shortened[index]
        assert [(asked.question, asked.target) for asked in whole.questions] == [
            (asked.question, asked.target) for asked in short.questions
        ]
        for asked in short.questions:
            assert encoder.decode(short.input_ids[asked.answer_begin : asked.end]) == answer_text(asked.target)
        learned = [place for asked in short.questions for place in range(asked.answer_begin, asked.end)]
        assert np.flatnonzero(short.labels != -100).tolist() == learned
        rest = iter(whole.input_ids.tolist())
        left_out = 0
        for token in short.input_ids.tolist():
            # Raises StopIteration if it is no subsequence.
            while (other := next(rest)) != token:
                assert encoder.decode(np.array([other])).strip() in FILLERS
                left_out += 1
        lost.append(left_out / len(whole.input_ids))
    assert min(lost) < 0.05
    assert max(lost) > 0.2


def test_the_part_of_samples_that_is_shortened(stream: BabilongStream) -> None:
    some = stream.with_stage(replace(STAGE, shortened=0.5))
    num_short = sum(len(some[index].input_ids) < 300 for index in range(400))
    assert 150 < num_short < 230


def test_facts_alone_are_shortened_too(stream: BabilongStream) -> None:
    alone = stream.with_stage(replace(STAGE, lengths=(Length(0, 0),)))
    short = stream.with_stage(replace(STAGE, lengths=(Length(0, 0),), shortened=1.0))
    assert all(len(short[index].input_ids) <= len(alone[index].input_ids) for index in range(20))
    assert any(len(short[index].input_ids) < len(alone[index].input_ids) / 1.5 for index in range(20))


@pytest.mark.parametrize("shortened", [-0.1, 1.5])
def test_a_part_is_from_0_to_1(shortened: float) -> None:
    with pytest.raises(ValueError, match=f"shortened is {shortened}, but must be from 0 to 1"):
        replace(STAGE, shortened=shortened)


def test_content_tokens(stream: BabilongStream, encoder: TextEncoder) -> None:
    tokens = {encoder.decode(np.array([token])).strip() for token in stream.content_tokens(40)}
    people, places = "Mary John Sandra Daniel", "bathroom bedroom garden hallway kitchen office"
    assert sorted(tokens) == sorted(f"{people} {places}".split())
