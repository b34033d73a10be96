"""The tokenizer: lossless on any text, bAbI's words whole, the same again from the same text, and loadable offline."""

import hashlib
import json
import lzma
import platform
import re
from itertools import accumulate

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from toy_data import shared_data
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from lm2.cli.main import app
from lm2.data.babi.simulator import make_story
from lm2.data.babi.story import TASK_NAMES, Question
from lm2.data.plain import answer_text, context_text, question_text
from lm2.data.text import open_background
from lm2.data.tokenizer import BUILTIN_FOLDER, END_OF_TEXT, PADDING, load_tokenizer, train_tokenizer
from lm2.data.tokenizer_recipe import build_tokenizer

BUILTIN = load_tokenizer()

TEXTS = open_background("builtin", "test").sources[0].sentences()
WORDS = ["football", "milk", "set"]
# More than TEXTS have merges for.
ENOUGH = 5000
PLAIN, WHOLE = train_tokenizer(TEXTS, ENOUGH), train_tokenizer(TEXTS, ENOUGH, WORDS)


def tokens(text: str, tokenizer: PreTrainedTokenizerFast = BUILTIN) -> list[str]:
    """The tokens as pieces of the text, where none cuts a character."""
    return [tokenizer.decode([number]) for number in tokenizer.encode(text, add_special_tokens=False)]


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class TestBuiltin:
    def test_has_two_special_tokens_and_room_for_a_tiny_model(self):
        assert len(BUILTIN) == BUILTIN.vocab_size == 2048
        assert (BUILTIN.pad_token, BUILTIN.pad_token_id) == (PADDING, 0)
        assert (BUILTIN.eos_token, BUILTIN.eos_token_id) == (END_OF_TEXT, 1)
        assert set(BUILTIN.all_special_tokens) == {PADDING, END_OF_TEXT}
        assert BUILTIN.encode("a") == BUILTIN.encode("a", add_special_tokens=False)

    @settings(deadline=None)
    @given(st.text())
    @example("e\u0301 \u212b \ufb01")  # what a normaliser would change
    def test_any_text_comes_back(self, text):
        assert BUILTIN.decode(BUILTIN.encode(text)) == text

    @pytest.mark.parametrize(
        "text",
        [
            bytes(range(128)).decode(),
            " leading",
            "trailing \n\n",
            " ,don't 's . !",
            "naïve “é” 😀 日本語\u2028\x00",
            PADDING,
        ],
    )
    def test_hard_texts_come_back(self, text):
        assert BUILTIN.decode(BUILTIN.encode(text)) == text

    @pytest.mark.parametrize(
        ("text", "pieces"),
        [
            ("apple,milk", ["apple", ",", "milk"]),
            (" apple,football,milk.", [" apple", ",", "football", ",", "milk", "."]),
            ("s,w", ["s", ",", "w"]),
            (" n,e.", [" n", ",", "e", "."]),
            ("Where is Mary? ", ["Where", " is", " Mary", "?", " "]),
            (" Why did sumit go to the kitchen?", [" Why", " did", " sumit", " go", " to", " the", " kitchen", "?"]),
            (" Question: Where is Mary? Answer: garden.",
             [" Question", ":", " Where", " is", " Mary", "?", " Answer", ":", " garden", "."]),
            (" footballs", [" football", "s"]),
            ("1984", ["1", "9", "8", "4"]),
            ("x.\ny", ["x", ".", "\n", "y"]),
        ],
    )  # fmt: skip
    def test_cuts_where_words_and_digits_end(self, text, pieces):
        assert tokens(text) == pieces

    def test_every_word_of_simulated_stories_is_one_token(self):
        words = set()
        for task in TASK_NAMES:
            for index in range(200):
                # Another seed than the one it was trained on.
                for line in make_story(task, seed=12345, index=index).lines:
                    text = context_text(line.text)
                    if isinstance(line, Question):
                        text = question_text(line.text) + answer_text(line.answer)
                    words.update(re.findall(r"[^\W\d_]+", text))
        assert {"Mary", "sumit", "Sumit", "apple", "wolves", "wolf", "none", "three", "maybe", "nothing", "w"} <= words
        assert [word for word in sorted(words) if tokens(word) != [word] or tokens(f" {word}") != [f" {word}"]] == []

    def test_real_stories_come_back_in_words(self):
        paths = sorted(shared_data("babi/en-10k").glob("qa*.txt.xz"))
        assert len(paths) == 40
        lines = set()
        for path in paths:
            with lzma.open(path, "rt", encoding="utf-8") as file:
                lines.update(re.sub(r"^\d+|\t[\d ]+\n$|\n$", "", line) for line in file)
        lines = sorted(lines)
        encodings = BUILTIN.backend_tokenizer.encode_batch_fast(lines)
        assert BUILTIN.backend_tokenizer.decode_batch([encoding.ids for encoding in encodings]) == lines
        words = {word for line in lines for word in re.findall(r" ?[A-Za-z]+", line)}
        assert {" Mary", " gertrude", " apple", "milk", "garden", "w"} <= words
        assert [word for word in sorted(words) if tokens(word) != [word]] == []

    def test_ships_with_where_it_comes_from(self):
        provenance = json.loads((BUILTIN_FOLDER / "provenance.json").read_text())
        made_with = (provenance["python"], provenance["tokenizers"])
        here = (platform.python_version(), tokenizers.__version__)
        if made_with != here:
            pytest.skip(f"shipped tokenizer was made with Python and tokenizers {made_with}; here are {here}")
        again, its_provenance = build_tokenizer(open_background("builtin", "train"), vocab_size=2048)
        assert its_provenance.items() <= provenance.items()
        assert again.backend_tokenizer.to_str() == BUILTIN.backend_tokenizer.to_str()


class TestTraining:
    def test_equal_texts_give_equal_bytes(self, tmp_path):
        digests = set()
        for name in ("one", "two"):
            train_tokenizer(iter(TEXTS), 300, WORDS).save_pretrained(tmp_path / name)
            digests.add(hashlib.sha256((tmp_path / name / "tokenizer.json").read_bytes()).hexdigest())
        assert len(digests) == 1

    def test_whole_words_take_the_place_of_the_last_learned_merges(self):
        plain, whole = train_tokenizer(TEXTS, 400), train_tokenizer(TEXTS, 400, WORDS)
        assert len(plain) == len(whole) == 400
        for word in WORDS:
            assert tokens(word, whole) == [word]
            assert tokens(f" {word}", whole) == [f" {word}"]
        assert tokens(" football", plain) != [" football"]
        plain_merges, whole_merges = (
            json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"] for tokenizer in (plain, whole)
        )
        assert plain_merges[:100] == whole_merges[:100]
        assert plain_merges != whole_merges

    @settings(deadline=None)
    @given(st.one_of(st.text(), st.lists(st.sampled_from(["foot", "mil", "k", "d", " ", "the", "s"])).map("".join)))
    def test_whole_words_only_join_what_the_learned_merges_leave(self, text):
        plain, whole = (_ends(tokenizer.tokenize(text)) for tokenizer in (PLAIN, WHOLE))
        assert whole <= plain

    def test_words_digits_and_punctuation_stay_apart_and_special_tokens_differ(self):
        tokenizer = train_tokenizer(["12,34 12,34 a.b a.b it's"] * 5, ENOUGH)
        assert tokens("12,34 a.b 12 it's", tokenizer) == [
            "1",
            "2",
            ",",
            "3",
            "4",
            " a",
            ".",
            "b",
            " 1",
            "2",
            " it",
            "'s",
        ]
        assert (tokenizer.pad_token, tokenizer.pad_token_id) == (PADDING, 0)
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == (END_OF_TEXT, 1)

    @settings(deadline=None)
    @given(st.text())
    @example("e\u0301 \u212b \ufb01")  # what a normaliser would change
    def test_any_text_comes_back(self, text):
        for tokenizer in (PLAIN, WHOLE):
            assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_few_texts_give_fewer_entries(self):
        assert 258 < len(train_tokenizer(["aa bb aa bb"], 1000)) < 270
        assert len(train_tokenizer([], 1000)) == 258

    @pytest.mark.parametrize(
        ("vocab_size", "words", "message"),
        [
            (257, [], "vocab_size is 257, but must be at least 258"),
            (260, WORDS, "vocab_size is 260, but must be at least"),
            (400, ["two words"], "whole word 'two words' cannot be one token"),
            (400, ["apple,milk"], "whole word 'apple,milk'"),
            (400, ["12"], "whole word '12'"),
            (400, [""], "whole word ''"),
        ],
    )
    def test_refuses_what_cannot_be(self, vocab_size, words, message):
        with pytest.raises(ValueError, match=message):
            train_tokenizer(TEXTS, vocab_size, words)


def _ends(pieces: list[str]) -> set[int]:
    """Where tokens end; each of their characters stands for one byte."""
    return set(accumulate(map(len, pieces)))


class TestLoading:
    def test_takes_a_saved_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        train_tokenizer(TEXTS, 300).save_pretrained(tmp_path)
        assert len(load_tokenizer(str(tmp_path))) == 300
        assert len(AutoTokenizer.from_pretrained(tmp_path)) == 300

    def test_takes_any_fast_tokenizer(self, tmp_path):
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a"))).save_pretrained(
            tmp_path
        )
        assert len(load_tokenizer(str(tmp_path))) == 1

    def test_none_and_builtin_are_the_shipped_one(self):
        assert load_tokenizer(None).get_vocab() == load_tokenizer("builtin").get_vocab() == BUILTIN.get_vocab()

    def test_says_what_is_no_tokenizer(self, tmp_path):
        with pytest.raises(OSError, match=r"but must be 'builtin', a folder with a tokenizer\.json"):
            load_tokenizer(str(tmp_path))


class TestCommand:
    def test_makes_a_folder_that_transformers_loads(self, tmp_path):
        books = tmp_path / "books"
        books.mkdir()
        (books / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
        out = tmp_path / "new" / "tokenizer"
        result = invoke("data", "tokenizer", "--background", books, "--vocab-size", 1152, "--out", out)
        assert result.exit_code == 0, result.output
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert f"{out}: {len(tokenizer)} entries" in result.output
        assert tokens(" Mary got the apple,milk", tokenizer) == [" Mary", " got", " the", " apple", ",", "milk"]
        provenance = json.loads((out / "provenance.json").read_text())
        assert provenance["background"] == "books"
        assert [path.name for path in out.parent.iterdir()] == ["tokenizer"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--vocab-size", 300], "vocab_size is 300, but must be at least"),
            (["--background", "absent"], "background is 'absent'"),
            (["--out", "."], "--out . exists already"),
        ],
    )
    def test_refuses_bad_input_and_writes_nothing(self, tmp_path, monkeypatch, options, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "kept.txt").write_text("kept")
        result = invoke("data", "tokenizer", "--out", "made", *options)
        assert result.exit_code == 2
        assert message in result.output
        assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
