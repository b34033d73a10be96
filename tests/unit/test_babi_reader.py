"""The reader of the original bAbI files: what is well-formed comes back whole, and the rest is refused by its line."""

import gzip
import lzma

import pytest
from toy_data import shared_data

from lm2.data.babi.reader import find_task_file, read_stories
from lm2.data.babi.story import TASK_NAMES, Question, Statement, Story, format_story

TWO_STORIES = (
    "1 Ann went to the shed.\n2 Where is Ann? \tshed\t1\n3 Ann moved to the barn.\n4 Where is Ann? \tbarn\t3\n"
    "1 Bob went to the barn.\n2 Ann got the key there.\n3 What?\tapple,milk\t2 1\n"
)


@pytest.fixture
def read(tmp_path):
    """Reads a file of the given content."""

    def read_content(content: str | bytes, name: str = "qa1_words.txt") -> list[Story]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_stories(path))

    return read_content


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", TASK_NAMES)
def test_real_files_come_back_byte_for_byte(task, split):
    path = find_task_file(shared_data("babi/en-10k"), task, split)
    stories = list(read_stories(path))
    assert {story.task for story in stories} == {task}
    assert "".join(map(format_story, stories)).encode() == lzma.decompress(path.read_bytes())
    questions = sum(isinstance(line, Question) for story in stories for line in story.lines)
    assert questions == {"train": 1925 if task == 3 else 10_000, "test": 1000}[split]


def test_lines_become_statements_and_questions(read):
    first, second = read(TWO_STORIES, "qa7_words.txt")
    assert first.task == second.task == 7
    assert first.lines[:2] == (Statement("Ann went to the shed."), Question("Where is Ann? ", "shed", (1,)))
    assert [len(first.lines), len(second.lines)] == [4, 3]
    assert second.lines[2] == Question("What?", "apple,milk", (2, 1))
    assert format_story(first) + format_story(second) == TWO_STORIES


@pytest.mark.parametrize(("pack", "ending"), [(lzma.compress, ".xz"), (gzip.compress, ".gz")])
def test_packed_files_are_read(read, pack, ending):
    assert read(pack(TWO_STORIES.encode()), "qa1_words.txt" + ending) == read(TWO_STORIES)


def test_text_beyond_ascii_is_read(read):
    (story,) = read("1 Zoë went to the café.\n")
    assert story.lines == (Statement("Zoë went to the café."),)


def test_stories_are_read_one_by_one(tmp_path):
    path = tmp_path / "qa1_words.txt"
    path.write_text(TWO_STORIES + "broken\n")
    stories = read_stories(path)
    assert len(next(stories).lines) == 4
    with pytest.raises(ValueError, match="txt:8: 'broken' is no story line"):
        list(stories)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", 1, "the file is empty"),
        ("Ann went to the shed.\n", 1, "must be a number from 1, a space, and text"),
        ("\n", 1, "must be a number from 1, a space, and text"),
        ("1\n", 1, "must be a number from 1, a space, and text"),
        ("1  Ann went.\n", 1, "must be a number from 1, a space, and text"),
        ("01 Ann went.\n", 1, "must be a number from 1, a space, and text"),
        ("0 Ann went.\n", 1, "must be a number from 1, a space, and text"),
        ("1 Ann went.\n\n", 2, "must be a number from 1, a space, and text"),
        ("2 Ann went.\n", 1, "number is 2, but must be 1"),
        ("1 Ann went.\n3 Bob went.\n", 2, "number is 3, but must be 2, or 1 for a new story"),
        ("1 Ann went.\n2 Bob went.\n2 Bob went.\n", 3, "number is 2, but must be 3, or 1 for a new story"),
        ("1 Ann went.\n2 Where is Ann? \n", 2, "is a question without answer"),
        ("1 Ann went.\n2 Where is Ann?\tshed\n", 2, "must be a question, its answer and its supporting lines"),
        ("1 Ann went.\n2 Where is Ann?\t\t1\n", 2, "must be a question, its answer and its supporting lines"),
        ("1 Ann went.\n2 Where is Ann?\tshed\t\n", 2, "must be a question, its answer and its supporting lines"),
        ("1 Ann went.\n2 Where is Ann?\tshed\t1\t1\n", 2, "must be a question, its answer and its supporting lines"),
        ("1 Ann went.\n2 Where is Ann?\tshed\tone\n", 2, "support is 'one', but must be line numbers"),
        ("1 Ann went.\n2 Where is Ann?\tshed\t0\n", 2, "support is '0', but must be line numbers"),
        ("1 Ann went.\n2 Where is Ann?\tshed\t1,1\n", 2, "support is '1,1', but must be line numbers"),
        ("1 Ann went.\n2 Where is Ann?\tshed\t1 \n", 2, "support is '1 ', but must be line numbers"),
        ("1 Ann went.\n2 Where is Ann?\tshed\t2\n", 2, "support 2 is no earlier line, but must be less than 2"),
        ("1 Ann went.\n2 Where?\tshed\t3\n3 Bob went.\n", 2, "support 3 is no earlier line, but must be less than 2"),
        ("1 Ann went.\n2 Where?\tshed\t1\n3 Where?\tshed\t2\n", 3, "support 2 is a question"),
        ("1 Ann went.\n1 Where?\tshed\t1\n", 2, "support 1 is no earlier line"),
        ("1 Ann went.\r\n", 1, r"line's end is '\\r\\n', but must be '\\n'"),
        ("1 Ann went.\r2 Bob went.\n", 1, r"line's end is '\\r', but must be '\\n'"),
        ("1 Ann went.\n2 Bob went.", 2, r"line's end is '', but must be '\\n'"),
        (b"1 Ann went.\n2 Zo\xeb went.\n", 2, "the line is not UTF-8"),
        # A wrong encoding is found in its own line, though much is decoded ahead of it.
        (b"1 Ann went.\n" * 5000 + b"1 \xff\n", 5001, "the line is not UTF-8"),
    ],
)
def test_malformed_lines_are_refused(read, content, line, message):
    with pytest.raises(ValueError, match=rf"qa1_words\.txt:{line}: .*{message}"):
        read(content)


@pytest.mark.parametrize(("pack", "ending"), [(lzma.compress, ".xz"), (gzip.compress, ".gz")])
def test_damaged_packed_files_are_refused(read, pack, ending):
    packed = pack(TWO_STORIES.encode() * 100)
    with pytest.raises(ValueError, match=rf"qa1_words\.txt\{ending}: the packed file is damaged or cut off"):
        read(packed[: len(packed) // 2], "qa1_words.txt" + ending)


@pytest.mark.parametrize("name", ["words.txt", "qa21_words.txt", "qa0_words.txt", "qa_words.txt"])
def test_the_task_must_be_known(tmp_path, name):
    path = tmp_path / name
    path.write_text(TWO_STORIES)
    with pytest.raises(ValueError, match="task"):
        read_stories(path)
    assert next(read_stories(path, task=5)).task == 5
    with pytest.raises(ValueError, match="task is 21, but must be 1 to 20"):
        read_stories(path, task=21)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"qa1_none\.txt"):
        next(read_stories(tmp_path / "qa1_none.txt"))
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        find_task_file(tmp_path / "nowhere", 1, "test")
    with pytest.raises(FileNotFoundError, match=r"has no file qa3_three-supporting-facts_test\.txt"):
        find_task_file(tmp_path, 3, "test")


@pytest.mark.parametrize(
    ("task", "split", "message"),
    [(0, "test", "task is 0"), (21, "train", "task is 21"), (1, "valid", "split is 'valid'")],
)
def test_only_known_tasks_and_splits_are_looked_for(tmp_path, task, split, message):
    with pytest.raises(ValueError, match=message):
        find_task_file(tmp_path, task, split)


def test_the_whole_file_goes_before_a_part(tmp_path):
    stem = "qa3_three-supporting-facts_train"
    for ending in (".partial.txt.xz", ".txt.xz", ".txt"):
        path = tmp_path / (stem + ending)
        path.touch()
        assert find_task_file(tmp_path, 3, "train") == path
    with pytest.raises(FileNotFoundError):
        find_task_file(tmp_path, 3, "test")
