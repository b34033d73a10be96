"""BABILong files in the official layout: rows of input, question, target in data/qaN/LENGTH.json, or parquet.

A folder of the hub's datasets drops in unchanged, and what is written here reads like one: `datasets.load_dataset(
FOLDER, "4k", split="qa1")`. Beside the data lies what the official sets lack, in metadata/qaN/LENGTH.json: how every
cell was made.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol

from lm2.data.babi.story import TASK_NAMES
from lm2.data.files import open_text, write_whole
from lm2.data.lengths import context_tokens

# Datasets with a config for each length and a split for each task.
HUB_NAMES = ("RMT-team/babilong", "RMT-team/babilong-1k-samples")
FORMATS = ("json", "parquet")
COLUMNS = ("input", "question", "target")

_BLOCK_CHARS = 2**20
_ROW_GROUP_CHARS = 2**26
_CELL = re.compile(rf"qa(\d+)/(\d+[kM])\.({'|'.join(FORMATS)})")
_CARD_HEADER = "<!-- written by lm2 data babilong -->"


class RowPieces(Protocol):
    """What can be written as a row: the text of `input` comes in pieces."""

    @property
    def question(self) -> str: ...
    @property
    def target(self) -> str: ...
    def pieces(self) -> Iterator[str]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: its context, stripped; its question as in bAbI; its bAbI answer."""

    input: str
    question: str
    target: str

    def pieces(self) -> Iterator[str]:
        yield self.input


# --- reading ---


def read_cell(source: str | Path, task: int, length: str) -> Iterator[Row]:
    """The rows of one task and length, one at a time; only parts of a file are in memory, few rows of it.

    Args:
        source: A folder in the hub's layout (data/qaN/LENGTH.json or .parquet, or LENGTH/qaN-*.parquet), or the name of
            an official dataset, which the `datasets` library fetches.
        task: 1 to 20.
        length: The length's name.

    Raises:
        ValueError: an unknown task, length or source, or a malformed row (file, place, what is wrong).
        OSError: the files are missing or cannot be read.
    """
    if task not in TASK_NAMES:
        raise ValueError(f"task is {task!r}, but must be 1 to 20")
    context_tokens(length)
    if str(source) in HUB_NAMES:
        return read_dataset(str(source), task, length)
    if not Path(source).is_dir():
        raise ValueError(f"source is {str(source)!r}, but must be a folder, or one of {', '.join(HUB_NAMES)}")
    return chain.from_iterable(map(read_rows, find_cell(Path(source), task, length)))


def find_cell(folder: Path, task: int, length: str) -> list[Path]:
    """The files of one task and length in a folder: one, or the numbered parts of a parquet file.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = [cell_path(folder, task, length, file_format) for file_format in FORMATS]
    for path in paths:
        if path.is_file():
            return [path]
    parts = sorted((folder / length).glob(f"qa{task}-*.parquet"))
    if not parts:
        raise FileNotFoundError(
            f"{folder} has no {length} of qa{task}: there is neither {paths[0]}, nor {paths[1].name} beside it, nor "
            f"{folder / length}/qa{task}-*.parquet"
        )
    return parts


def cell_path(folder: Path, task: int, length: str, file_format: str) -> Path:
    """Where a cell is in the official layout."""
    return folder / "data" / f"qa{task}" / f"{length}.{file_format}"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file: a JSON array, JSON lines, or parquet.

    Raises:
        ValueError: the file or a row is malformed (file, place, what is wrong).
        OSError: it cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    try:
        with open_text(path) as file:
            is_array = _first_character(file) == "["
        with open_text(path) as file:
            values = _ArrayReader(path, file).values() if is_array else _read_lines(path, file)
            for number, (place, value) in enumerate(values, start=1):
                yield _row(f"{place}, row {number}", value)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x}") from error


def _first_character(file: IO[str]) -> str:
    while block := file.read(_BLOCK_CHARS):
        if rest := block.lstrip():
            return rest[0]
    return ""


def read_dataset(name: str, task: int, length: str) -> Iterator[Row]:
    """The rows of a dataset with a config for each length and a split for each task, on the hub or in a folder.

    Raises:
        ValueError: the `datasets` library is missing, the dataset lacks the cell, or a row is malformed.
        OSError: the dataset cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(f"source is {name!r}, which needs the datasets library: pip install 'lm2[data]'") from error
    try:
        rows = load_dataset(name, length, split=f"qa{task}")
    except OSError as error:
        raise OSError(
            f"{name} ({length}, qa{task}) cannot be loaded: {error}; or give a folder with its files"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name} has no {length} of qa{task}: {error}") from error
    return (_row(f"{name} {length} qa{task}, row {number}", value) for number, value in enumerate(rows, start=1))


def _row(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: a {type(value).__name__}, but must be an object with {', '.join(COLUMNS)}")
    for column in COLUMNS:
        if column not in value:
            raise ValueError(f"{place}: no {column!r}; there are {', '.join(map(repr, value)) or 'no columns'}")
        if not isinstance(value[column], str):
            raise ValueError(f"{place}: {column!r} is {value[column]!r:.40}, but must be a text")
    return Row(*(value[column] for column in COLUMNS))


def _read_lines(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    empty = True
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        empty = False
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error.msg} at character {error.pos + 1}") from error
        yield f"{path}:{number}", value
    if empty:
        raise ValueError(f"{path} is empty")


class _ArrayReader:
    """Reads a JSON array value by value: memory holds the value at hand, not the array."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file = path, file
        self._buffer, self._line = "", 1

    def values(self) -> Iterator[tuple[str, Any]]:
        """Each value with its place."""
        self._take("[")
        if self._next() == "]":
            self._take("]")
        else:
            while True:
                self._next()
                yield f"{self._path}:{self._line}", self._value()
                if self._next() == "]":
                    self._take("]")
                    break
                self._take(",")
        if self._next():
            raise self._error(f"{self._buffer[:20]!r} follows the end of the array")

    def _next(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            rest = self._buffer.lstrip()
            self._line += self._buffer.count("\n", 0, len(self._buffer) - len(rest))
            self._buffer = rest or self._file.read(_BLOCK_CHARS)
            if rest or not self._buffer:
                return rest[:1]

    def _take(self, character: str) -> None:
        if self._next() != character:
            found = repr(self._buffer[:20]) if self._buffer else "the end of the file"
            raise self._error(f"{found}, but must be {character!r}")
        self._buffer = self._buffer[1:]

    def _value(self) -> Any:
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._buffer)
                break
            except json.JSONDecodeError as error:
                # What is read may end inside a value: then the trouble is a string without end, or at the very end.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._buffer) - 8
                # Twice as much each time, so that a value of any size is parsed few times.
                more = self._file.read(max(_BLOCK_CHARS, len(self._buffer))) if cut else ""
                if not more:
                    self._line += error.lineno - 1
                    raise self._error(f"not JSON: {error.msg}") from error
                self._buffer += more
        self._line += self._buffer.count("\n", 0, end)
        self._buffer = self._buffer[end:]
        return value

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{self._path}:{self._line}: {what}")


def _read_parquet(path: Path) -> Iterator[Row]:
    parquet = _import_parquet(f"{path} is parquet")
    import pyarrow

    try:
        with parquet.ParquetFile(path) as file:
            missing = [column for column in COLUMNS if column not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"no {missing[0]!r}; there are {', '.join(map(repr, file.schema_arrow.names))}")
            number = 0
            for batch in file.iter_batches(batch_size=1, columns=list(COLUMNS)):
                for value in batch.to_pylist():
                    number += 1
                    yield _row(f"{path}, row {number}", value)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file that can be read: {error}") from error


def _import_parquet(what: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{what}, which needs pyarrow: pip install 'lm2[data]'") from error
    return pyarrow.parquet


# --- writing ---


def check_format(file_format: str) -> None:
    """Refuses a format that cannot be written here.

    Raises:
        ValueError: unknown, or its library is missing.
    """
    if file_format not in FORMATS:
        raise ValueError(f"format is {file_format!r}, but must be {' or '.join(FORMATS)}")
    if file_format == "parquet":
        _import_parquet("format is 'parquet'")


def write_rows(path: Path, rows: Iterable[RowPieces]) -> None:
    """Writes a file whole or not at all: a JSON array with a row on each line, or parquet if its name says so.

    JSON is written piece by piece, so a row may be larger than memory. Parquet holds about a row group in memory.

    Raises:
        OSError: it cannot be written.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, rows)
        return
    with write_whole(path) as file:
        before = "["
        for row in rows:
            file.write(before + '{"input": "')
            for piece in row.pieces():
                file.write(json.dumps(piece)[1:-1])
            file.write(f'", "question": {json.dumps(row.question)}, "target": {json.dumps(row.target)}}}')
            before = ",\n"
        file.write("[]\n" if before == "[" else "]\n")


def _write_parquet(path: Path, rows: Iterable[RowPieces]) -> None:
    parquet = _import_parquet("format is 'parquet'")
    import pyarrow

    schema = pyarrow.schema([(column, pyarrow.string()) for column in COLUMNS])
    with write_whole(path, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
        group: list[dict[str, str]] = []
        num_chars = 0
        for row in rows:
            text = "".join(row.pieces())
            group.append(dict(zip(COLUMNS, (text, row.question, row.target), strict=True)))
            num_chars += len(text)
            if num_chars > _ROW_GROUP_CHARS:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                group, num_chars = [], 0
        if group:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def check_folder(folder: Path, file_format: str) -> None:
    """Refuses a folder to which cells cannot be added, before any work.

    Raises:
        ValueError: its README.md is not ours, or it has cells in the other format, which `datasets` cannot mix.
    """
    card = folder / "README.md"
    if card.exists() and _CARD_HEADER not in card.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{card} is not a dataset card of ours and would be overwritten; choose another folder")
    for task, length, found in _cells(folder):
        if found != file_format:
            raise ValueError(
                f"{folder} has cells in {found} (such as {length} of qa{task}), and format is {file_format!r}; choose "
                "another folder, or the same format"
            )


def write_metadata(folder: Path, task: int, length: str, metadata: dict[str, Any]) -> None:
    """Writes how a cell was made beside the data. Readers do not need it."""
    with write_whole(folder / "metadata" / f"qa{task}" / f"{length}.json") as file:
        file.write(json.dumps(metadata, indent=1) + "\n")


def write_card(folder: Path) -> None:
    """Writes the dataset card, which tells `datasets` where each length (config) and task (split) is."""
    by_length: dict[str, list[tuple[int, str]]] = {}
    for task, length, file_format in _cells(folder):
        by_length.setdefault(length, []).append((task, file_format))
    lines = ["---", "configs:"]
    for length in sorted(by_length, key=context_tokens):
        lines += [f'- config_name: "{length}"', "  data_files:"]
        for task, file_format in sorted(by_length[length]):
            path = cell_path(Path(), task, length, file_format).as_posix()
            lines += [f"  - split: qa{task}", f"    path: {path}"]
    lines += ["---", _CARD_HEADER, "", "# BABILong", "", "How each cell was made is in `metadata/`.", ""]
    with write_whole(folder / "README.md") as file:
        file.write("\n".join(lines))


def _cells(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Task, length and format of each cell in a folder."""
    for path in sorted(folder.glob("data/qa*/*")):
        cell = _CELL.fullmatch(f"{path.parent.name}/{path.name}")
        if cell:
            yield int(cell[1]), cell[2], cell[3]
