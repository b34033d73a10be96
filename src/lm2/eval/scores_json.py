"""Scores as JSON files: what `lm2 score` writes and `lm2 tables` reads.

`settings.models` tells of each model, as far as it is known, how many `parameters` it has (a number) and its `training`
(a text); both may be null.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm2.data.files import write_whole
from lm2.data.lengths import context_tokens
from lm2.eval.babilong import Cell, Comparison, Estimate, MetricScore, Scores, task_order
from lm2.eval.metrics import METRICS, check_metric

# Says what a file is, and which form it has.
KIND = "lm2-scores"
VERSION = 1


def write_scores(path: Path, scores: Scores) -> None:
    """Writes scores as JSON, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    document = {"kind": KIND, "version": VERSION, **asdict(scores)}
    with write_whole(path) as file:
        json.dump(document, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_scores(path: Path) -> Scores:
    """Reads scores that `write_scores` wrote.

    Raises:
        ValueError: the file is no such JSON; says what is wrong where.
        OSError: the file cannot be read.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise ValueError(f"{path} holds no scores of `lm2 score`")
    if document.get("version") != VERSION:
        raise ValueError(f"{path} has version {document.get('version')!r}, but this lm2 reads version {VERSION}")
    for key, kind in (("cells", list), ("comparisons", list), ("settings", dict)):
        if not isinstance(document.get(key), kind):
            raise ValueError(f"{path}: {key!r} must be {'a list' if kind is list else 'an object'}")
    if not document["cells"]:
        raise ValueError(f"{path} has no cells")
    cells = _read_all(path, "cells", document["cells"], _cell)
    keys = [(cell.model, cell.prompt, cell.task, cell.length) for cell in cells]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{path} has a cell twice")
    comparisons = _read_all(path, "comparisons", document["comparisons"], _comparison)
    _check_models(path, document["settings"].get("models", {}))
    return Scores(cells, comparisons, document["settings"])


def _check_models(path: Path, models: Any) -> None:
    if not isinstance(models, dict) or not all(isinstance(about, dict) for about in models.values()):
        raise ValueError(f"{path}: settings.models must be an object of objects")
    for name, about in models.items():
        parameters, training = about.get("parameters"), about.get("training")
        if not (parameters is None or type(parameters) is int) or not (training is None or isinstance(training, str)):
            raise ValueError(f"{path}: settings.models of {name!r} must have a whole number and a text, or null")


def _read_all(path: Path, name: str, items: list[Any], make: Callable[[dict[str, Any]], Any]) -> tuple[Any, ...]:
    made = []
    for place, item in enumerate(items):
        try:
            made.append(make(item))
        except KeyError as error:
            raise ValueError(f"{path}: {name}[{place}] lacks {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: {name}[{place}]: {error}") from error
    return tuple(made)


def _cell(item: dict[str, Any]) -> Cell:
    scores = {name: MetricScore(**item["metrics"][name]) for name in METRICS}
    cell = Cell(**{**item, "metrics": scores})
    task_order(cell.task)
    context_tokens(cell.length)
    for name, score in scores.items():
        if not 0 <= score.right <= cell.n or cell.n < 1 or score.accuracy != score.right / cell.n:
            raise ValueError(f"{name} says {score.right} of {cell.n} are right, and accuracy {score.accuracy}")
    return cell


def _comparison(item: dict[str, Any]) -> Comparison:
    check_metric(item["metric"])
    ratio = None if item["ratio"] is None else Estimate(**item["ratio"])
    cells = tuple((task, length) for task, length in item["cells"])
    return Comparison(**{**item, "cells": cells, "difference": Estimate(**item["difference"]), "ratio": ratio})
