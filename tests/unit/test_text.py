"""Background text: sentences as they should be, three kinds of sources, and no text in both splits."""

import gzip
import json
import lzma
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_data import shared_data

from lm2.data import text as text_module
from lm2.data.builtin_text import TEST_TOPICS, prose_sentences
from lm2.data.sentences import book_sentences, split_sentences
from lm2.data.text import (
    Background,
    Book,
    Topic,
    check_disjoint,
    check_readable,
    open_background,
    open_pg19,
)

PROSE = "The old house stood on the hill. Nobody had lived there for years!\n"

# Text that has many would-be ends: abbreviations, initials, quotes, numbers, lower case behind full stops.
would_be_ends = st.lists(
    st.sampled_from(
        [
            "Mr.",
            "No.",
            "J.",
            "e.g.",
            "said",
            "He",
            "“Yes!”",
            "(It",
            "is.)",
            "5",
            "...",
            "—Why?",
            "a.",
            "U.S.",
            "\n",
            "Ünd.",
        ]
    ),
    max_size=30,
).map(" ".join)


def write_books(folder: Path, **books: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in books.items():
        (folder / f"{name}.txt").write_text(content, encoding="utf-8")
    return folder


def all_sentences(background: Background) -> list[str]:
    return [sentence for source in background.sources for sentence in source.sentences()]


class TestSplitSentences:
    @pytest.mark.parametrize(
        "sentences",
        [
            ["He came.", "She left!", "Who knows?", "Nobody."],
            ["“Stop!” said he, and stopped.", "“Why?”", "(It was late.)", "—Nobody knew."],
            ["Mr. Darcy met Mrs. Long and Dr. Seward in St. James.", "They talked."],
            ["J. R. Smith of the U.S. Navy wrote it.", "It sold."],
            ["He liked fruit, e.g. apples, i.e. what grew.", "She did not."],
            ["See No. 5 and vol. 2 of it.", "No.", "He refused."],
            ["It broke in 1851.", "2000 people saw it."],
            ["They waited... and waited.", "Then..."],
            ["a fragment without an end"],
        ],
    )
    def test_cuts_where_sentences_end_and_nowhere_else(self, sentences):
        assert split_sentences(" ".join(sentences)) == sentences

    @settings(deadline=None)
    @given(st.one_of(st.text(), would_be_ends))
    def test_joined_sentences_are_the_paragraph(self, paragraph):
        sentences = split_sentences(paragraph)
        assert " ".join(sentences) == " ".join(paragraph.split())
        assert all(sentence and sentence == " ".join(sentence.split()) for sentence in sentences)


class TestBookSentences:
    def test_keeps_prose_and_leaves_out_the_rest(self):
        book = (
            "*** START OF THE PROJECT GUTENBERG EBOOK X ***\r\n\r\nTHE BOOK\r\n\r\n"
            "Contents\r\n\r\n Chapter I. The Start   1\r\n Chapter II. The End   9\r\n\r\n"
            "CHAPTER I.\r\n\r\n[Illustration: A house. [Copyright]]\r\n\r\nChapter 1. The start.\r\n\r\n"
            "It was a _very_ old\r\nhouse; nobody   lived\r\nthere. He said:\r\n\r\n"
            "“Go\r\n away!”\r\n \r\n* * * * *\r\n\r\n"
            "Letter-writing was a snake_case_name habit. [Footnote 1: Not now.]\r\n\r\n"
            "*** END OF THE PROJECT GUTENBERG EBOOK X ***\r\nLicence words follow.\r\n"
        )
        assert book_sentences(book) == [
            "It was a very old house; nobody lived there.",
            "He said:",
            "“Go away!”",
            "Letter-writing was a snake_case_name habit.",
        ]

    def test_real_books_read_as_prose(self):
        folder = shared_data("books")
        for split in ("train", "test"):
            background = open_background(str(folder), split)
            check_readable(background)
            for source in background.sources:
                sentences = source.sentences()
                kept = sum(map(len, sentences)) / len(" ".join(source.text().split()))
                assert 0.9 < kept < 1.0, f"{source.name} keeps {kept:.0%}"
                assert not any("\n" in sentence or "[Illustration" in sentence for sentence in sentences)
                unfinished = [sentence for sentence in sentences if not re.search(r"[.!?:;,—…-][\W_]*$", sentence)]
                assert len(unfinished) < 0.01 * len(sentences)
        check_disjoint(open_background(str(folder), "train"), background)


class TestBuiltin:
    def test_no_sentence_is_in_both_splits_nor_twice_in_one(self):
        train, test = (all_sentences(open_background("builtin", split)) for split in ("train", "test"))
        letters = [re.sub(r"[\W_]", "", sentence.lower()) for sentence in train + test]
        assert len(set(letters)) == len(letters)
        assert len(train) > 900
        assert len(test) > 450

    def test_splits_share_no_source_and_cover_the_fixed_topics(self):
        train, test = open_background("builtin", "train"), open_background("builtin", "test")
        check_disjoint(train, test)
        assert {source.name for source in test.sources} <= TEST_TOPICS
        assert {"debugger", "import", "string-methods", "types"} <= {source.name for source in test.sources}

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_reads_as_english(self, split):
        for sentence in all_sentences(open_background("builtin", split)):
            assert sentence == " ".join(sentence.split())
            assert re.fullmatch(r"[“(]?[A-Z].*[.!?]\W?", sentence)
            assert not re.search(r'::|>>>|[{}<>=*`"\[\]]|\bNew in version', sentence), sentence

    def test_cleans_markup_code_grammar_and_tables(self):
        topic = (
            'The "with" statement\n********************\n\nThe "with" statement runs a *block* of code (see section\n'
            "Blocks).  It has **no** hand-\nmade parts [1].  The value ``x = {}`` is code.\n\n"
            '   with_stmt ::= "with" expression\n\nFor example:\n\n   This looks like English prose but is code.\n\n'
            "   So is this other paragraph here.\n\nAfter the example the prose goes on.\n\n"
            "| Operator is a table row here. |\n\n* A list item can hold a sentence, Mr. Smith\n  said.\n\n"
            "str.upper()\n\n   Return a copy of the string in capitals.\n\n"
            "   Changed in version 3.8.1: The method now takes more than one argument.\n\n"
            "   New in version 3.3.\n\nNote:\n\n  Notes are prose too, as everybody knows.\n\n"
            "[1] A footnote is a sentence as well.\n\nModule reading\n   It explains how things are read here.\n"
        )
        assert prose_sentences(topic) == [
            "The with statement runs a block of code.",
            "It has no hand-made parts.",
            "After the example the prose goes on.",
            "A list item can hold a sentence, Mr. Smith said.",
            "Return a copy of the string in capitals.",
            "The method now takes more than one argument.",
            "Notes are prose too, as everybody knows.",
            "A footnote is a sentence as well.",
            "It explains how things are read here.",
        ]


class TestFolder:
    def test_opens_plain_and_packed_books_in_order_without_reading(self, tmp_path, monkeypatch):
        write_books(tmp_path, b=PROSE)
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + PROSE.encode(), mtime=0))
        (tmp_path / "c.txt.xz").write_bytes(lzma.compress(PROSE.encode()))
        (tmp_path / "notes.md").write_text("no book")
        monkeypatch.setattr(text_module, "open_text", lambda path: pytest.fail(f"{path} was read"))
        background = open_background(str(tmp_path), "train")
        monkeypatch.undo()
        assert [source.name for source in background.sources] == ["a", "b", "c"]
        assert background.name == tmp_path.name
        for source in background.sources:
            assert source.sentences() == ["The old house stood on the hill.", "Nobody had lived there for years!"]

    def test_subfolders_are_the_splits(self, tmp_path):
        write_books(tmp_path / "train", a=PROSE)
        write_books(tmp_path / "test", b=PROSE + "More.")
        for split, name in (("train", "a"), ("test", "b")):
            background = open_background(str(tmp_path), split)
            assert [source.name for source in background.sources] == [name]
            assert background.name == f"{tmp_path.name}/{split}"

    @pytest.mark.parametrize(
        ("spec", "split", "message"),
        [
            ("builtin", "valid", "split is 'valid'"),
            ("no/such/folder", "train", "background is 'no/such/folder'"),
            ("", "train", "holds no books"),
        ],
    )
    def test_refuses_what_is_no_background(self, tmp_path, monkeypatch, spec, split, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=message):
            open_background(spec, split)

    def test_refuses_one_name_twice_and_what_is_no_file(self, tmp_path):
        write_books(tmp_path, a=PROSE)
        (tmp_path / "b.txt").mkdir()
        with pytest.raises(OSError, match=r"b\.txt cannot be read"):
            open_background(str(tmp_path), "train")
        (tmp_path / "b.txt").rmdir()
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"", mtime=0))
        with pytest.raises(ValueError, match="one book by name"):
            open_background(str(tmp_path), "train")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("bad.txt", PROSE.encode() + b"caf\xe9 au lait", r"bad\.txt is not UTF-8: byte 70 is 0xe9"),
            ("bad.txt.xz", lzma.compress(PROSE.encode() * 100)[:-20], r"bad\.txt\.xz is a damaged archive"),
            ("bad.txt.gz", gzip.compress(PROSE.encode() * 100, mtime=0)[:-20], r"bad\.txt\.gz is a damaged archive"),
        ],
    )
    def test_a_bad_book_is_found_before_any_work(self, tmp_path, name, content, message):
        write_books(tmp_path, a=PROSE)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            check_readable(open_background(str(tmp_path), "train"))

    def test_a_folder_without_prose_is_refused(self, tmp_path):
        write_books(tmp_path, a="1 2 3\n\nTHE END", b="")
        with pytest.raises(ValueError, match="no sentence of prose"):
            check_readable(open_background(str(tmp_path), "train"))


class TestDisjoint:
    def test_names_and_contents_must_differ(self, tmp_path):
        train = open_background(str(write_books(tmp_path / "one", a=PROSE, b=PROSE + "B.")), "train")
        apart = open_background(str(write_books(tmp_path / "two", c=PROSE + "C.")), "test")
        check_disjoint(train, apart)
        same_name = open_background(str(write_books(tmp_path / "three", b="Something else.")), "test")
        with pytest.raises(ValueError, match="share a source: 'b' is 'b'"):
            check_disjoint(train, same_name)
        same_text = open_background(str(write_books(tmp_path / "four", x=PROSE + "B.")), "test")
        with pytest.raises(ValueError, match="share a source: 'b' is 'x'"):
            check_disjoint(train, same_text)

    def test_one_folder_cannot_serve_both(self, tmp_path):
        folder = str(write_books(tmp_path, a=PROSE))
        with pytest.raises(ValueError, match="share a source: 'a'"):
            check_disjoint(open_background(folder, "train"), open_background(folder, "test"))

    def test_kinds_are_compared_too(self, tmp_path):
        topic = Background("x", "train", "x", (Topic("t", ("The text of both.",)),))
        write_books(tmp_path, b="The text of both.", t="Another text.")
        path = tmp_path / "b.txt"
        check_disjoint(topic, Background("y", "test", "y", (Book("t", tmp_path / "t.txt"),)))
        with pytest.raises(ValueError, match="'t' is 'b'"):
            check_disjoint(topic, Background("y", "test", "y", (Book("b", path),)))


class TestPg19:
    @pytest.fixture
    def double(self, tmp_path, monkeypatch) -> Path:
        """A tiny dataset folder in PG19's layout; two books of one title."""
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
        folder = tmp_path / "pg19"
        (folder / "data").mkdir(parents=True)
        for split, numbers in (("train", (11, 12, 13)), ("test", (21,))):
            rows = [
                {
                    "short_book_title": "Poems",
                    "publication_date": 1900,
                    "url": f"http://www.gutenberg.org/ebooks/{number}",
                    "text": f"CHAPTER I\n\nThe old house was\nnumber {number}. Nobody came.\n",
                }
                for number in numbers
            ]
            (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def test_reads_books_through_the_datasets_library(self, double, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        train, test = open_pg19("train", str(double)), open_pg19("test", str(double))
        assert [source.name[-2:] for source in train.sources] == ["11", "12", "13"]
        assert train.sources[-1].sentences() == ["The old house was number 13.", "Nobody came."]
        assert [source.name[-2:] for source in train.sources[1:]] == ["12", "13"]
        with pytest.raises(IndexError):
            train.sources[3]
        check_readable(train)
        check_disjoint(train, test)
        with pytest.raises(ValueError, match="share a source"):
            check_disjoint(train, open_pg19("train", str(double)))

    def test_refuses_other_columns(self, double, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        (double / "data" / "train.jsonl").write_text('{"body": "x"}\n')
        (double / "data" / "test.jsonl").unlink()
        with pytest.raises(ValueError, match="needs text and short_book_title or url"):
            open_pg19("train", str(double))

    def test_says_how_to_get_the_library_and_the_data(self, tmp_path, monkeypatch):
        with pytest.raises(OSError, match=r"cannot be loaded: .* network and 12 GB"):
            open_pg19("train", str(tmp_path / "absent"))
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ValueError, match=r"pip install 'lm2\[data\]'"):
            open_background("pg19", "train")
