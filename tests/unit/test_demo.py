"""`lm2 demo`: the story is where it says, and the answers are those to the whole text with each question alone."""

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save, tiny_llama, tiny_lm2
from typer.testing import CliRunner

from lm2.cli.main import app
from lm2.data.babi.solver import solve
from lm2.data.babi.story import Question, Statement, Story
from lm2.data.plain import ANSWER_END, plain_prompt
from lm2.data.tokenizer import load_tokenizer
from lm2.eval.runner import Decoding, answer

TOKENIZER = load_tokenizer("builtin")


def demo(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["demo", *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tiny_lm2(), tmp_path_factory.mktemp("demo") / "tiny")


@pytest.fixture(scope="module")
def shown(folder) -> str:
    return demo(folder, "--length", "2k", "--seed", 3)


def facts_of(shown: str) -> list[tuple[int, str]]:
    return [(int(place.replace(",", "")), fact) for place, fact in re.findall(r"  token +([\d,]+)   (.*\.)\n", shown)]


def answers_of(shown: str) -> list[list[str]]:
    rows = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


@pytest.fixture(scope="module")
def text(shown, maker_of_demo) -> str:
    return maker_of_demo(3, "2k").input


@pytest.fixture(scope="module")
def maker_of_demo():
    from lm2.cli.demo import _hide_story
    from lm2.data.encoding import TextEncoder

    return lambda seed, length: _hide_story(TextEncoder(TOKENIZER, "builtin"), length, seed)


def test_facts_are_where_it_says(shown, text):
    ids = TOKENIZER(f" {text}")["input_ids"]
    assert f"A text of {len(ids):,} tokens" in shown
    facts = facts_of(shown)
    assert len(facts) >= 4
    for place, fact in facts:
        assert TOKENIZER.decode(ids[place : place + len(TOKENIZER(f" {fact}")["input_ids"])]) == f" {fact}"


def test_everybody_is_asked_for_and_right_answers_are_right(shown):
    facts = [fact for _, fact in facts_of(shown)]
    rows = answers_of(shown)
    assert sorted(row[0] for row in rows) == [f"Where is {name}?" for name in ("Daniel", "John", "Mary", "Sandra")]
    for question, given, right, verdict in rows:
        [solved] = solve(Story(1, (*map(Statement, facts), Question(f"{question} ", "", ()))))
        assert solved is not None
        assert right == solved.text
        assert verdict == ("yes" if given == right else "no")
    assert f"{sum(row[3] == 'yes' for row in rows)} of 4 right" in shown


def test_every_question_is_asked_of_the_whole_text_alone(shown, text):
    model = tiny_lm2()
    for question, given, *_ in answers_of(shown):
        ids = np.array(TOKENIZER(plain_prompt(text, question))["input_ids"], dtype=np.int32)
        [whole] = answer(model, TOKENIZER, [[ids]], Decoding(4, (ANSWER_END,)))
        assert " ".join(given.split()) == " ".join(whole.text.strip().removesuffix(ANSWER_END).split())


def test_seeds_tell_other_stories_and_one_seed_the_same(folder, shown):
    assert facts_of(demo(folder, "--length", "2k", "--seed", 4)) != facts_of(shown)
    assert facts_of(demo(folder, "--length", "2k", "--seed", 3)) == facts_of(shown)


def test_what_it_keeps_does_not_grow(folder, shown):
    [kept] = re.findall(r"What it keeps of it: ([\d,]+) bytes", shown)
    assert f"What it keeps of it: {kept} bytes" in demo(folder, "--length", "6k")


def test_refusals(folder, tmp_path):
    llama = save(tiny_llama(), tmp_path / "llama")
    for arguments, message in (
        ([llama], "llama has no bounded memory"),
        ([folder, "--length", "0k"], "--length is 0k, which is no long text"),
        ([folder, "--length", "many"], "length is 'many'"),
    ):
        result = CliRunner().invoke(app, ["demo", *map(str, arguments)])
        assert result.exit_code == 2
        assert message in result.output
