"""Reads files of the original bAbI data (Weston et al. 2015, version 1.2), and finds them by task and split.

A line is `NUMBER text`, or `NUMBER question<tab>answer<tab>numbers of supporting lines`. Numbers begin again at 1 with
each story. Nothing is repaired: what is read is written back byte for byte by `format_story`, or refused.
"""

import lzma
import re
import zlib
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from lm2.data.babi.story import TASK_NAMES, Question, Statement, Story
from lm2.data.files import open_text

SPLITS = ("train", "test")

# The whole file before the part of one that is shared in place of qa3's train file.
_ENDINGS = (".txt", ".txt.xz", ".partial.txt", ".partial.txt.xz")
_LINE = re.compile(r"([1-9]\d*) (\S.*)", re.ASCII)
_SUPPORT = re.compile(r"[1-9]\d*(?: [1-9]\d*)*", re.ASCII)


def find_task_file(folder: Path, task: int, split: str) -> Path:
    """The file of a task in a folder such as tasks_1-20_v1-2/en-10k, by its original name, plain or packed by xz.

    Where a folder has no whole file but a part of one (`..._train.partial.txt.xz`), that is taken.

    Args:
        folder: Folder with the files.
        task: 1 to 20.
        split: "train" or "test".

    Raises:
        ValueError: no such task or split.
        FileNotFoundError: the folder or the file is missing.
    """
    _check_task(task)
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, but must be {' or '.join(map(repr, SPLITS))}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, but must be one with bAbI task files (tasks_1-20_v1-2/en-10k)")
    stem = f"qa{task}_{TASK_NAMES[task]}_{split}"
    for ending in _ENDINGS:
        path = folder / (stem + ending)
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} has no file {stem}.txt or {stem}.txt.xz")


def read_stories(path: Path, task: int | None = None) -> Iterator[Story]:
    """Yields the stories of a file one by one; only the current one is in memory.

    Args:
        path: A file in the original format, plain or packed (.xz, .gz, .bz2).
        task: The stories' task; None takes it from the file's name, which then begins like `qa7_`.

    Raises:
        ValueError: at once: no such task, or none in the name. On reading: the first malformed line, as "FILE:LINE:
            what is wrong"; a file without lines; a damaged packed file.
        OSError: on reading: the file cannot be opened.
    """
    if task is None:
        match = re.match(r"qa(\d+)_", path.name, re.ASCII)
        if match is None:
            raise ValueError(f"{path}: the name does not begin with a task such as qa7_, so the task must be given")
        task = int(match[1])
    _check_task(task)
    return _read(path, task)


def _read(path: Path, task: int) -> Iterator[Story]:
    lines: list[Statement | Question] = []
    for number_in_file, text in _text_lines(path):
        try:
            number, line = _parse_line(text)
            if number == 1 and lines:
                yield Story(task, tuple(lines))
                lines = []
            _check_place(number, line, lines)
        except _LineError as error:
            raise ValueError(f"{path}:{number_in_file}: {error}") from None
        lines.append(line)
    if not lines:
        raise ValueError(f"{path}:1: the file is empty, but must hold at least one story")
    yield Story(task, tuple(lines))


class _LineError(Exception):
    """What is wrong with a line; its place in the file is added where that is known."""


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields all lines without their ends, each with its number in the file."""
    with open_text(path) as file:
        assert isinstance(file, TextIOWrapper)
        # Bytes that are no UTF-8 become lone surrogates, so that the error can name the line that has them.
        file.reconfigure(errors="surrogateescape")
        try:
            for number, line in enumerate(file, start=1):
                if not line.isascii() and not _is_unicode(line):
                    raise ValueError(f"{path}:{number}: the line is not UTF-8")
                end = line[len(line.rstrip("\r\n")) :]
                if end != "\n":
                    raise ValueError(f"{path}:{number}: the line's end is {end!r}, but must be '\\n'")
                yield number, line[:-1]
        except (EOFError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"{path}: the packed file is damaged or cut off: {error}") from None


def _is_unicode(line: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in line)


def _parse_line(text: str) -> tuple[int, Statement | Question]:
    match = _LINE.fullmatch(text)
    if match is None:
        raise _LineError(f"{text!r} is no story line, but must be a number from 1, a space, and text")
    number, rest = int(match[1]), match[2]
    if "\t" not in rest:
        if rest.rstrip().endswith("?"):
            raise _LineError(f"{rest!r} is a question without answer, but a tab, an answer and a tab must follow it")
        return number, Statement(rest)
    fields = rest.split("\t")
    if len(fields) != 3 or not all(field.strip() for field in fields):
        raise _LineError(f"{rest!r} must be a question, its answer and its supporting lines, with a tab between them")
    question, answer, support = fields
    if _SUPPORT.fullmatch(support) is None:
        raise _LineError(f"support is {support!r}, but must be line numbers from 1 with one space between them")
    return number, Question(question, answer, tuple(map(int, support.split(" "))))


def _check_place(number: int, line: Statement | Question, before: list[Statement | Question]) -> None:
    expected = len(before) + 1
    if number != expected:
        # Only 1 begins a story, so the first line of a file has no other choice.
        choice = f"must be {expected}, or 1 for a new story" if before else "must be 1"
        raise _LineError(f"the line's number is {number}, but {choice}")
    if isinstance(line, Question):
        for supporting in line.support:
            if supporting >= number:
                raise _LineError(f"support {supporting} is no earlier line, but must be less than {number}")
            if isinstance(before[supporting - 1], Question):
                raise _LineError(f"support {supporting} is a question, but must be a statement's line")


def _check_task(task: int) -> None:
    if task not in TASK_NAMES:
        raise ValueError(f"task is {task}, but must be 1 to {len(TASK_NAMES)}")
