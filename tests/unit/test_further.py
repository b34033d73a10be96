"""Further questions: their answers follow from what was told before them, for every task; where they are asked."""

import re
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from scipy.stats import chisquare

from lm2.data.babi.solver import answer_from
from lm2.data.babi.story import TASK_NAMES, Question, Statement
from lm2.data.encoding import TextEncoder
from lm2.data.facts import SimulatedFacts
from lm2.data.further import draw_further, question_pool
from lm2.data.noise import TokenizedBackground
from lm2.data.stage import Length, Stage
from lm2.data.stream import BabilongStream

# Chance that a right program fails a statistical test here; the seeds are fixed, so it passes or fails for good.
LEVEL = 1e-3

FACTS = SimulatedFacts(0, "train")
STAGE = Stage(tasks={1: 1.0}, lengths=(Length(900, 900),))


@pytest.mark.parametrize("task", TASK_NAMES)
def test_answers_are_the_solvers_from_the_facts_told_so_far(task: int) -> None:
    pool = question_pool(FACTS, task)
    drawn = 0
    for index in range(20):
        facts = [line.text for line in FACTS.story(task, index, 0).lines if isinstance(line, Statement)]
        found = draw_further(Random(index), pool, task, facts, 6)
        assert len({(told, text) for told, text, _ in found}) == len(found) <= 6
        assert [told for told, _, _ in found] == sorted(told for told, _, _ in found)
        for told, text, target in found:
            answer = answer_from(task, facts[:told], text)
            assert answer is not None
            assert (answer.text, text in pool) == (target, True)
        drawn += len(found)
    assert drawn >= 20 * 2


def test_every_place_and_every_question_is_as_likely() -> None:
    facts = ["Mary went to the kitchen.", "John went to the garden.", "Sandra went to the office."]
    pool = ("Where is John? ", "Where is Mary? ", "Where is Sandra? ", "Where is Daniel? ")
    places, texts = Counter(), Counter()
    for seed in range(600):
        [(told, text, _)] = draw_further(Random(seed), pool, 1, facts, 1)
        places[told] += 1
        if told == 3:
            texts[text] += 1
    assert chisquare([places[told] for told in (1, 2, 3)]).pvalue > LEVEL
    assert chisquare([texts[text] for text in pool[:3]]).pvalue > LEVEL
    assert texts[pool[3]] == 0


def test_every_answer_is_as_likely_and_questions_are_of_what_was_told() -> None:
    facts = ["Mary went to the kitchen.", "John went to the garden."]
    places = ("kitchen", "garden", "office", "hallway", "bedroom", "bathroom")
    pool = tuple(f"Is {name} in the {place}? " for name in ("Mary", "John", "Sandra") for place in places)
    drawn = [draw_further(Random(seed), pool, 6, facts, 1)[0] for seed in range(1000)]
    found = Counter((text, answer) for told, text, answer in drawn if told == 2)
    assert set(found) == {
        ("Is Mary in the kitchen? ", "yes"),
        ("Is Mary in the garden? ", "no"),
        ("Is John in the kitchen? ", "no"),
        ("Is John in the garden? ", "yes"),
    }
    assert chisquare([*found.values()]).pvalue > LEVEL


def test_what_was_not_told_is_asked_where_nothing_else_is_left() -> None:
    pool = ("Is Mary in the kitchen? ", "Is Mary in the office? ", "Is John in the kitchen? ")
    found = draw_further(Random(0), pool, 6, ["Mary went to the kitchen."], 9)
    assert sorted(found) == [(1, pool[0], "yes"), (1, pool[1], "no")]


def test_fewer_where_the_facts_determine_few() -> None:
    [found] = draw_further(Random(0), ("Where is Mary? ",), 1, ["Mary went to the kitchen."], 9)
    assert found == (1, "Where is Mary? ", "kitchen")
    assert draw_further(Random(0), ("Where is John? ",), 1, ["Mary went to the kitchen."], 9) == []


def test_a_pool_is_what_stories_ask() -> None:
    assert question_pool(FACTS, 4)[0] == "What is east of the bathroom?"
    assert len(question_pool(FACTS, 4)) == 2 * 4 * 6


# --- in a stream ---


def test_the_storys_own_questions_stay_and_the_length_holds(
    encoder: TextEncoder, background: TokenizedBackground
) -> None:
    """On simulated stories of the first ten tasks, read back from the tokens."""
    stage = replace(STAGE, tasks=dict.fromkeys(range(1, 11), 1.0), lengths=(Length(3000, 3000),), tokens_per_row=1)
    plain = BabilongStream(stage, FACTS, background, encoder, seed=0)
    asking = plain.with_stage(replace(stage, further_questions=5))
    for index in range(60):
        sample = asking[index]
        assert len(sample.input_ids) == 3000
        own = Counter((asked.question, asked.target) for asked in plain[index].questions)
        asked = Counter((asked.question, asked.target) for asked in sample.questions)
        assert own <= asked
        assert 0 < asked.total() - own.total() <= 5
        lines = FACTS.story(sample.task, index, 0).lines
        texts = {line.text for line in lines if isinstance(line, Statement)}
        own_texts = {(line.text, line.answer) for line in lines if isinstance(line, Question)}
        fact = re.compile("|".join(re.escape(f" {text}") for text in sorted(texts, key=len, reverse=True)))
        assert (sample.labels >= 0).sum() == sum(asked.end - asked.answer_begin for asked in sample.questions)
        for asked in sample.questions:
            if (asked.question, asked.target) not in own_texts:
                read = [text.strip() for text in fact.findall(encoder.decode(sample.input_ids[: asked.begin]))]
                answer = answer_from(sample.task, read, asked.question)
                assert answer is not None
                assert answer.text == asked.target


def test_only_as_many_as_fit(encoder: TextEncoder, background: TokenizedBackground) -> None:
    """Of more than fit, a sample takes so many that none is left room for."""
    stage = replace(STAGE, lengths=(Length(400, 400),), further_questions=99)
    stream = BabilongStream(stage, FACTS, background, encoder, seed=0)
    for index in range(20):
        sample = stream[index]
        assert len(sample.input_ids) == 400
        assert len(sample.questions) > 5
        taken = sum(asked.end - asked.begin for asked in sample.questions)
        story = FACTS.story(1, index, 0)
        facts = sum(len(encoder.encode(f" {line.text}")) for line in story.lines if isinstance(line, Statement))
        assert 400 - taken - facts < max(asked.end - asked.begin for asked in sample.questions)


def test_without_background_all_are_asked_right_behind_their_fact(encoder: TextEncoder) -> None:
    stage = Stage({1: 1.0}, (Length(0, 0),), further_questions=4)
    sample = BabilongStream(stage, FACTS, None, encoder, seed=0)[0]
    begins = [asked.begin for asked in sample.questions]
    assert begins == sorted(begins)
    assert 5 < len(begins) <= 5 + 4


@pytest.mark.parametrize(
    ("change", "what"),
    [({"further_questions": -1}, "at least 0"), ({"further_questions": 2, "questions": "end"}, "no effect at the end")],
)
def test_stages_that_are_none(change: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        replace(STAGE, **change)
