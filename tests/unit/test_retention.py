"""`lm2 eval retention`: answers are those to the whole text, all distances ask the same, errors come first."""

import json

import numpy as np
import pytest
from tiny_models import SEGMENT, save, tiny_armt, tiny_llama, tiny_lm2, tiny_rmt
from typer.testing import CliRunner

from lm2.cli.main import app
from lm2.data.babilong import open_maker
from lm2.data.encoding import TextEncoder
from lm2.data.plain import ANSWER_END, question_text
from lm2.data.tokenizer import load_tokenizer
from lm2.eval.retention import answers_after_noise, make_stories
from lm2.eval.runner import Decoding, answer

TOKENIZER = load_tokenizer("builtin")
ENCODER = TextEncoder(TOKENIZER, "builtin")
DISTANCES = [0, SEGMENT // 2, 3 * SEGMENT, 200]


def retention(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["eval", "retention", *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["eval", "retention", *map(str, arguments)])
    assert result.exit_code == 2, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def stories():
    maker = open_maker("simulator", "builtin", ENCODER, seed=0, allow_repeats=True)
    return list(make_stories(maker, 2, 4, DISTANCES[-1]))


@pytest.mark.parametrize("make", [tiny_lm2, tiny_rmt, tiny_armt])
def test_an_answer_is_that_to_the_whole_text(make, stories):
    """The slow twin reads facts, noise and question afresh for every distance, each story alone."""
    model = make()
    found = answers_after_noise(model, TOKENIZER, ENCODER.encode, stories, DISTANCES)
    decoding = Decoding(12, (ANSWER_END,))
    for distance, row in zip(DISTANCES, found, strict=True):
        for story, text in zip(stories, row, strict=True):
            prompt = [story.facts, story.noise[:distance], ENCODER.encode(question_text(story.question))]
            [alone] = answer(model, TOKENIZER, [prompt], decoding)
            assert text == alone.text
    assert found[0] != found[-1], "with these weights noise changes answers"


def test_stories_are_those_of_0k_and_noise_is_background(stories):
    maker = open_maker("simulator", "builtin", ENCODER, seed=0)
    for index, story in enumerate(stories):
        sample = maker.sample(2, "0k", index)
        assert np.array_equal(story.facts, sample.token_ids)
        assert (story.question, story.target) == (sample.question, sample.target)
        assert len(story.noise) == DISTANCES[-1]
    assert len({story.noise.tobytes() for story in stories}) == len(stories)


def test_shorter_noise_of_none(stories):
    maker = open_maker("simulator", "builtin", ENCODER, seed=0)
    [story] = make_stories(maker, 2, 1, 0)
    assert len(story.noise) == 0
    assert np.array_equal(story.facts, stories[0].facts)


def test_the_model_that_ships_remembers_and_an_empty_memory_does_not(tmp_path):
    save(tiny_lm2(), tmp_path / "random")
    path = tmp_path / "found.json"
    arguments = ("--segments", "4,0", "--samples", 8, "--batch-size", 3, "--json", path)
    shown = retention("builtin", tmp_path / "random", *arguments)
    document = json.loads(path.read_text("utf-8"))
    assert document["segments"] == [0, 4]
    # The first model's, for all.
    assert document["segment_tokens"] == 64
    assert document["right"] == {"lm2-qa1": {"qa1": [8, 8]}, "random": {"qa1": [0, 0]}}
    assert "100 (68-100)" in shown


def test_what_cannot_be_measured_is_refused_before_work(tmp_path):
    llama = save(tiny_llama(), tmp_path / "llama")
    assert "no bounded memory" in refusal(llama)
    assert "twice" in refusal("builtin", "builtin")
    assert "--segments is '0,x'" in refusal("builtin", "--segments", "0,x")
    assert "--samples is 0" in refusal("builtin", "--samples", "0")
    assert "is a folder" in refusal("builtin", "--json", tmp_path)
    save(tiny_lm2(), tmp_path / "one" / "same")
    save(tiny_lm2(), tmp_path / "two" / "same")
    assert "rename one" in refusal(tmp_path / "one" / "same", tmp_path / "two" / "same")
