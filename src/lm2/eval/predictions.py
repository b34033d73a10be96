"""Prediction files: ours (JSONL) and those of the BABILong repository (CSV), read row by row and checked.

Ours has one JSON object per line: the keys of REQUIRED_KEYS, "prompt" where the prompt is known, and any others.
The official one is named as qa1_4k_instruction_yes_examples_yes_post_prompt_yes.csv: task, length and prompt stand in
the name, the model is the name of the folder, and the columns are target, output and question, perhaps after the
numbers of the rows. An output is read as it stands; the official collector (collect_results.py) reads its CSV with
pandas, which takes a few words such as "None" for no output at all.
"""

import csv
import json
import lzma
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm2.data.files import open_text
from lm2.data.layout import read_cell
from lm2.data.lengths import context_tokens
from lm2.eval.metrics import check_task

REQUIRED_KEYS: dict[str, type] = {
    "model": str,
    "task": str,
    "length": str,
    "index": int,
    "question": str,
    "target": str,
    "output": str,
}
# The prompt of rows that do not name theirs.
UNSTATED_PROMPT = "unstated"

_PACKED = (".xz", ".gz", ".bz2")
_CSV_NAME = re.compile(r"(?P<task>qa\d+)_(?P<length>\d+[kM])_(?P<prompt>.+)\.csv")
_CSV_COLUMNS = ["target", "output", "question"]
# What pandas calls the column of row numbers, when it writes them and when it has read and written them again.
_INDEX_COLUMNS = ("", "Unnamed: 0")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model answered to one sample.

    `index` is the sample's place in its cell of the dataset, from 0. `lengths_counted_by` is the fingerprint of the
    tokenizer in whose tokens the length was counted when the sample was made; None where that is not known, or where
    the sample was read.
    """

    model: str
    prompt: str
    task: str
    length: str
    index: int
    question: str
    target: str
    output: str
    lengths_counted_by: str | None = None


def find_prediction_files(paths: Iterable[Path]) -> list[Path]:
    """The prediction files that paths name; a folder stands for all .csv and .jsonl files in it, packed ones too.

    Raises:
        ValueError: a path is missing or no prediction file, a folder has none, or a file is named twice.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file) in (".csv", ".jsonl"))
            if not found:
                raise ValueError(f"{path} is a folder without .csv or .jsonl files")
            files += found
        elif not path.is_file():
            raise ValueError(f"{path} does not exist")
        elif _suffix(path) not in (".csv", ".jsonl"):
            raise ValueError(f"{path} is no prediction file: its name must end in .jsonl or .csv")
        else:
            files.append(path)
    if not files:
        raise ValueError("no prediction files are given")
    seen: set[Path] = set()
    for path in files:
        if path.resolve() in seen:
            raise ValueError(f"{path} is given twice")
        seen.add(path.resolve())
    return files


def read_predictions(paths: Iterable[Path], csv_model: str | None = None) -> list[Prediction]:
    """All rows of prediction files, each cell complete from row 0 on.

    Args:
        paths: As `find_prediction_files` takes them.
        csv_model: The model of the rows of CSV files, or None for the name of their folder.

    Raises:
        ValueError: a file is no prediction file; "file:line: what is wrong" where a row is malformed, is of another
            model than the rows before it in its file, or is there already; a cell lacks a row.
        OSError: a file cannot be read.
    """
    files = find_prediction_files(paths)
    if csv_model is not None and not any(_suffix(path) == ".csv" for path in files):
        raise ValueError(f"model is {csv_model!r}, but names the model of .csv files, and none is given")
    rows: list[Prediction] = []
    places: dict[tuple[str, str, str, str, int], str] = {}
    for path in files:
        for line, row in _read_file(path, csv_model):
            place = f"{path}:{line}"
            key = (row.model, row.prompt, row.task, row.length, row.index)
            if key in places:
                raise ValueError(
                    f"{place}: row {row.index} of {row.task} at {row.length} (model {row.model!r}, prompt "
                    f"{row.prompt}) is there already, at {places[key]}"
                )
            places[key] = place
            rows.append(row)
    _check_gaps(places)
    return rows


def check_against_dataset(predictions: Iterable[Prediction], source: str | Path) -> None:
    """Checks that predictions answer a dataset's questions: of each cell all rows, in their places.

    Args:
        predictions: Rows of any models.
        source: A folder or the name of a dataset, as lm2.data.layout.read_cell takes them.

    Raises:
        ValueError: another number of rows, another question or another target; or the dataset is malformed.
        OSError: the dataset lacks a cell or cannot be read.
    """
    cells: defaultdict[tuple[str, str], defaultdict[tuple[str, str], dict[int, Prediction]]]
    cells = defaultdict(lambda: defaultdict(dict))
    for row in predictions:
        cells[row.task, row.length][row.model, row.prompt][row.index] = row
    for (task, length), runs in cells.items():
        dataset = [(row.question, row.target) for row in read_cell(source, int(task.removeprefix("qa")), length)]
        for (model, prompt), rows in runs.items():
            name = f"{task} at {length} of model {model!r} (prompt {prompt})"
            if len(rows) != len(dataset):
                raise ValueError(f"{name} has {len(rows)} rows, but the dataset has {len(dataset)}")
            for index, (question, target) in enumerate(dataset):
                for what, value, wanted in (
                    ("question", rows[index].question, question),
                    ("target", rows[index].target, target),
                ):
                    # Writers differ in whether they keep the space at the end of a question.
                    if value.strip() != wanted.strip():
                        raise ValueError(f"{name}: row {index}: the {what} is {value!r}, but {wanted!r} in the dataset")


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix


def _read_file(path: Path, csv_model: str | None) -> Iterator[tuple[int, Prediction]]:
    """Line and row of each prediction of a file. There is at least one, and all are of one model."""
    model = None
    rows = _read_csv(path, csv_model) if _suffix(path) == ".csv" else _read_jsonl(path)
    try:
        for line, row in rows:
            if model not in (None, row.model):
                raise ValueError(f"{path}:{line}: the model is {row.model!r}, but {model!r} in the rows before")
            model = row.model
            yield line, row
    except (UnicodeDecodeError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        # An error of the file system names the file itself; one of unpacking does not.
        if getattr(error, "filename", None) is not None:
            raise
        raise ValueError(f"{path} is damaged: {error}") from error
    if model is None:
        raise ValueError(f"{path} has no rows")


def _read_jsonl(path: Path) -> Iterator[tuple[int, Prediction]]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, _parse_row(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error


def _parse_row(line: str) -> Prediction:
    if not line.strip():
        raise ValueError("the line is empty")
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"this is no JSON object, but {type(row).__name__}")
    if missing := [key for key in REQUIRED_KEYS if key not in row]:
        raise ValueError(f"{missing[0]!r} is missing")
    row.setdefault("prompt", UNSTATED_PROMPT)
    values: dict[str, Any] = {}
    for key, kind in {**REQUIRED_KEYS, "prompt": str}.items():
        # A bool is an int to Python, but no row number.
        if type(row[key]) is not kind:
            raise ValueError(f"{key!r} is {row[key]!r}, but must be {'a string' if kind is str else 'a whole number'}")
        values[key] = row[key]
    for key in ("model", "prompt"):
        if not values[key].strip():
            raise ValueError(f"{key!r} is empty")
    counted_by = row.get("lengths_counted_by")
    if not (counted_by is None or isinstance(counted_by, str)):
        raise ValueError(f"'lengths_counted_by' is {counted_by!r}, but must be a string or null")
    if values["index"] < 0:
        raise ValueError(f"'index' is {values['index']}, but must be 0 or more")
    check_task(values["task"])
    context_tokens(values["length"])
    return Prediction(**values, lengths_counted_by=counted_by)


def _read_csv(path: Path, model: str | None) -> Iterator[tuple[int, Prediction]]:
    name = path.with_suffix("").name if path.suffix in _PACKED else path.name
    match = _CSV_NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{path}: a .csv file must be named as in the BABILong repository, task and length first, such as "
            f"qa1_4k_instruction_yes_examples_yes_post_prompt_yes.csv"
        )
    model = path.resolve().parent.name if model is None else model
    try:
        check_task(match["task"])
        context_tokens(match["length"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with open_text(path) as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = next(reader, [])
            start = 1 if columns and columns[0] in _INDEX_COLUMNS else 0
            if sorted(columns[start:]) != sorted(_CSV_COLUMNS):
                raise ValueError(f"the columns are {columns}, but must be {_CSV_COLUMNS}, perhaps after row numbers")
            line = reader.line_num + 1
            for index, values in enumerate(reader):
                if len(values) != len(columns):
                    raise ValueError(f"the row has {len(values)} values, but there are {len(columns)} columns")
                if start and values[0] != str(index):
                    raise ValueError(f"the row is number {values[0]!r}, but must be {index}: rows are missing or moved")
                fields = dict(zip(columns[start:], values[start:], strict=True))
                yield line, Prediction(model, match["prompt"], match["task"], match["length"], index, **fields)
                line = reader.line_num + 1
        except (ValueError, csv.Error) as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            raise ValueError(f"{path}:{max(reader.line_num, 1)}: {error}") from error


def _check_gaps(places: dict[tuple[str, str, str, str, int], str]) -> None:
    """Raises ValueError when a cell's rows are not all numbers from 0 to its last."""
    cells: defaultdict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for model, prompt, task, length, index in places:
        cells[model, prompt, task, length].append(index)
    for (model, prompt, task, length), indices in cells.items():
        missing = sorted(set(range(max(indices) + 1)) - set(indices))
        if missing:
            shown = ", ".join(map(str, missing[:5])) + (" and more" if len(missing) > 5 else "")
            last = places[model, prompt, task, length, max(indices)]
            raise ValueError(
                f"{last}: {task} at {length} of model {model!r} (prompt {prompt}) has row {max(indices)}, but lacks "
                f"{len(missing)} of the rows before it: {shown}"
            )
