"""Published BABILong results as data: what was printed where, by which metric, after which training.

Each file in references/ is one publication or row, with its source. The numbers are facts; what is known to be wrong in
them is said in the same file, and the means that the papers print are checked against their cells in the tests.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from lm2.data.lengths import context_tokens
from lm2.eval.babilong import TASK_GROUPS, task_order

_FOLDER = resources.files("lm2.eval").joinpath("references")
_CHANCE = "chance"


@dataclass(frozen=True)
class ReferenceModel:
    """One model of a reference.

    Attributes:
        name: As published.
        parameters: Size as published, such as "1.7B".
        metric: How answers were scored, as far as it is known.
        training: What the model was trained on for the task, as far as it is known.
        prompt: How it was asked, as far as it is known.
        n: Samples per cell, or None where that is not known.
        n_basis: Where `n` comes from.
        notes: What a reader of the row must know.
        lengths: Lengths of the columns.
        accuracy_percent: Per task one accuracy for each length, None where none was published.
        mean_percent: Means that were published as such, per group of lm2.eval.babilong.TASK_GROUPS, one per length.
        back_computed: (task, length) of cells that were not published but follow from a published mean.
    """

    name: str
    parameters: str
    metric: str
    training: str
    prompt: str
    n: int | None
    n_basis: str
    notes: tuple[str, ...]
    lengths: tuple[str, ...]
    accuracy_percent: dict[str, tuple[float | None, ...]]
    mean_percent: dict[str, tuple[float | None, ...]]
    back_computed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PrintedError:
    """A number of a printed table that the cells below it contradict."""

    row: str
    column: str
    printed: float
    from_cells: float


@dataclass(frozen=True)
class PrintedTable:
    """A table as printed, errors included and listed. The first entry of each row is its name."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    errors: tuple[PrintedError, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """One publication, or one row of one: `cited_as` is its short form for labels."""

    name: str
    title: str
    cited_as: str
    source: str
    url: str
    notes: tuple[str, ...]
    models: tuple[ReferenceModel, ...]
    printed_tables: tuple[PrintedTable, ...]


@dataclass(frozen=True)
class Chance:
    """What no reading gets on a task, by exact match over bAbI's own test file.

    A cell of BABILong draws from that file, so there the shares differ by sampling.

    Attributes:
        answer: The most frequent answer.
        majority: Accuracy of that answer, a share between 0 and 1.
        random: Expected accuracy of a guess drawn uniformly from the labels of the task.
    """

    answer: str
    majority: float
    random: float


def reference_names() -> tuple[str, ...]:
    """Names that `load_reference` knows; the LM2 paper comes first."""
    names = (file.name.removesuffix(".json") for file in _FOLDER.iterdir() if file.name.endswith(".json"))
    return tuple(sorted((name for name in names if name != _CHANCE), key=lambda name: (name != "paper", name)))


def load_reference(name: str) -> Reference:
    """The reference of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in reference_names():
        raise ValueError(f"reference is {name!r}, but must be one of {', '.join(reference_names())}")
    return parse_reference(_FOLDER.joinpath(f"{name}.json").read_text("utf-8"))


@cache
def chance_by_task() -> dict[str, Chance]:
    """Chance of qa1 to qa20; counted on the test files of bAbI v1.2 en-10k (Weston et al. 2015)."""
    tasks = json.loads(_FOLDER.joinpath(f"{_CHANCE}.json").read_text("utf-8"))["tasks"]
    return {
        task: Chance(entry["answer"], entry["majority_percent"] / 100, entry["random_percent"] / 100)
        for task, entry in tasks.items()
    }


def parse_reference(text: str) -> Reference:
    """Reads the text of a reference file, and checks that it is whole and consistent.

    Raises:
        ValueError: it is not; says where and why.
    """
    document = json.loads(text)
    _check_keys("reference", document, {"kind", "version", *Reference.__dataclass_fields__})
    if (document["kind"], document["version"]) != ("lm2-reference", 1):
        raise ValueError(f"kind and version are {document['kind']!r}, {document['version']!r}, not 'lm2-reference', 1")
    models = tuple(_model(item) for item in document["models"])
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"models are {names}, but there must be one at least, and each once")
    return Reference(
        models=models,
        printed_tables=tuple(_printed_table(item) for item in document["printed_tables"]),
        notes=_texts("notes", document["notes"]),
        **{key: _text(key, document[key]) for key in ("name", "title", "cited_as", "source", "url")},
    )


def _model(item: dict[str, Any]) -> ReferenceModel:
    _check_keys("model", item, set(ReferenceModel.__dataclass_fields__))
    name = _text("name", item["name"])
    lengths = _texts("lengths", item["lengths"])
    tokens = [context_tokens(length) for length in lengths]
    if not lengths or tokens != sorted(set(tokens)):
        raise ValueError(f"{name}: lengths are {list(lengths)}, but must increase")
    if item["n"] is not None and (type(item["n"]) is not int or item["n"] < 1):
        raise ValueError(f"{name}: n is {item['n']!r}, but must be a positive whole number or null")
    tasks = list(item["accuracy_percent"])
    if tasks != sorted(set(tasks), key=task_order):
        raise ValueError(f"{name}: tasks are {tasks}, but must be in order")
    if unknown := sorted(item["mean_percent"].keys() - TASK_GROUPS.keys()):
        raise ValueError(f"{name}: mean_percent has {unknown[0]!r}, which is no group of tasks")
    accuracy, mean = (
        {key: _percents(f"{name}, {key}", values, len(lengths)) for key, values in item[field].items()}
        for field in ("accuracy_percent", "mean_percent")
    )
    if not accuracy and not mean:
        raise ValueError(f"{name} has no numbers")
    if item["n"] is not None and any((value or 0) * item["n"] % 100 for row in accuracy.values() for value in row):
        raise ValueError(f"{name}: n is {item['n']}, but an accuracy is no share of so many samples")
    back_computed = tuple((task, length) for task, length in item["back_computed"])
    for task, length in back_computed:
        if task not in accuracy or length not in lengths or accuracy[task][lengths.index(length)] is None:
            raise ValueError(f"{name}: back_computed names {task} at {length}, which has no value")
    return ReferenceModel(
        n=item["n"],
        notes=_texts("notes", item["notes"]),
        lengths=lengths,
        accuracy_percent=accuracy,
        mean_percent=mean,
        back_computed=back_computed,
        **{key: _text(key, item[key]) for key in ("name", "parameters", "metric", "training", "prompt", "n_basis")},
    )


def _printed_table(item: dict[str, Any]) -> PrintedTable:
    _check_keys("printed table", item, set(PrintedTable.__dataclass_fields__))
    title, columns = _text("title", item["title"]), _texts("columns", item["columns"])
    rows = tuple((_text("row", row[0]), *_percents(title, row[1:], len(columns) - 1)) for row in item["rows"])
    by_name = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    for error in item["errors"]:
        _check_keys(f"{title}, error", error, set(PrintedError.__dataclass_fields__))
    errors = tuple(PrintedError(**error) for error in item["errors"])
    for error in errors:
        if by_name.get(error.row, {}).get(error.column) != error.printed:
            raise ValueError(f"{title}: {error.row} has no {error.printed} in column {error.column}")
    return PrintedTable(title, columns, rows, errors, _texts("notes", item["notes"]))


def _check_keys(name: str, item: Any, wanted: set[str]) -> None:
    found = set(item) if isinstance(item, dict) else set()
    if found != wanted:
        raise ValueError(f"{name} lacks {sorted(wanted - found)}, and has {sorted(found - wanted)} too many")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or value != value.strip():
        raise ValueError(f"{name} is {value!r}, but must be a text")
    return value


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{name} is {values!r}, but must be a list of texts")
    return tuple(_text(name, value) for value in values)


def _percents(name: str, values: list[Any], count: int) -> tuple[float | None, ...]:
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} numbers, but must have {count}")
    for value in values:
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= 100):
            raise ValueError(f"{name} has {value!r}, but must have percentages or null")
    return tuple(values)
