"""The recipe of a run: one complete YAML file, every key known and checked. No inheritance between recipes.

`load_recipe` reads a file, `dump_recipe` writes the resolved recipe that is kept with a run.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm2.data.bounds import at_least
from lm2.data.recall import MIN_ROW_TOKENS
from lm2.train.checking import build, dump_yaml, parse_yaml, plain
from lm2.train.sections import (
    DataRecipe,
    EvaluationRecipe,
    ModelRecipe,
    OptimizerRecipe,
    ScheduleRecipe,
    StageRecipe,
    TrainRecipe,
)


@dataclass(frozen=True)
class Recipe:
    """All of a run. `name` is the run's folder, `seed` the start of all random numbers."""

    name: str
    seed: int
    model: ModelRecipe
    data: DataRecipe
    curriculum: tuple[StageRecipe, ...]
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    train: TrainRecipe
    evaluation: EvaluationRecipe

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name is {self.name!r}, but must be a file name of letters, digits, '.', '_' and '-'")
        at_least("seed", self.seed, 0)
        _check_stages(self)
        if self.optimizer.name == "muon" and self.train.parallel == "fsdp":
            raise ValueError(
                "optimizer.name is 'muon' and train.parallel 'fsdp', but torch's Muon updates shards otherwise than "
                "the whole matrix, without an error; use adamw, or ddp"
            )


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: A YAML file.
        overrides: Texts such as "train.batch_size=8" or "curriculum.0.until.steps=50" (a list's entries are counted
            from 0); the value is YAML.

    Raises:
        ValueError: not YAML, an unknown or missing key, a wrong type or value; names the file, the key and the fix.
        OSError: the file cannot be read.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
        for override in overrides:
            values = _override(values, override)
        return build(Recipe, values)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, defaults written out; `load_recipe` reads an equal one from it."""
    return dump_yaml(plain(recipe))


def differing_keys(a: Recipe, b: Recipe) -> list[str]:
    """What differs, such as "train.batch_size: 32 != 16"; a key that one of them lacks is shown as (absent)."""
    first, second = _flatten(plain(a)), _flatten(plain(b))
    return [
        f"{key}: {first.get(key, '(absent)')} != {second.get(key, '(absent)')}"
        for key in {**first, **second}
        if first.get(key, _ABSENT) != second.get(key, _ABSENT)
    ]


_ABSENT = object()


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    entries: Any
    if isinstance(value, dict) and value:
        entries = value.items()
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        entries = enumerate(value)
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, entry in entries:
        flat |= _flatten(entry, f"{path}.{key}" if path else str(key))
    return flat


def _override(values: Any, override: str) -> Any:
    """The values with one of them set; sections that are not there yet are made."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"--set is {override!r}, but must be KEY=VALUE, such as train.batch_size=8")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"--set {override}: {error}") from error
    return _set(values, keys, value, override)


def _set(values: Any, keys: list[str], value: Any, override: str) -> Any:
    if not keys:
        return value
    key = keys[0]
    if isinstance(values, list):
        if not key.isdecimal() or int(key) >= len(values):
            raise ValueError(f"--set {override}: {key!r} is no entry of a list of {len(values)}, counted from 0")
        place = int(key)
        return [*values[:place], _set(values[place], keys[1:], value, override), *values[place + 1 :]]
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"--set {override}: nothing is below {values!r}, so there is no {key!r} to set")
    section = values or {}
    # Tasks are numbers; all other keys are names.
    name: int | str = int(key) if key.isdecimal() else key
    return {**section, name: _set(section.get(name), keys[1:], value, override)}


def _check_stages(recipe: Recipe) -> None:
    stages, data = recipe.curriculum, recipe.data
    if not stages:
        raise ValueError("curriculum is empty, but must have at least one stage")
    names = [stage.name for stage in stages]
    for number, stage in enumerate(stages):
        if stage.name in names[:number]:
            raise ValueError(f"curriculum.{number}.name is {stage.name!r}, as another stage's; each needs its own")
        _check_end(recipe, number, stage)
        if stage.tasks and stage.lengths_tokens and max(stage.lengths_tokens) and data.background is None:
            raise ValueError(f"curriculum.{number}.lengths_tokens needs data.background; give one, or only length 0")
        if stage.recall and stage.segments and (data.segment_length_tokens or 0) - data.margin_tokens < MIN_ROW_TOKENS:
            raise ValueError(
                f"data.segment_length_tokens is {data.segment_length_tokens} and margin_tokens {data.margin_tokens}, "
                f"but recall (curriculum.{number}) needs segments of {MIN_ROW_TOKENS} tokens or more"
            )
    _check_last_stage_begins(recipe)
    _check_pair("segment_length_tokens", data.segment_length_tokens, [stage.segments for stage in stages], "segments")
    _check_pair("primer_length_tokens", data.primer_length_tokens, [s.primer_every for s in stages], "primer_every")
    if data.background is None and any(stage.tasks and stage.segments for stage in stages):
        raise ValueError("data.background is missing: stages with segments need it")


def _check_last_stage_begins(recipe: Recipe) -> None:
    """The stages before the last one must not take all of the schedule, however long each of them takes."""
    schedule, before = recipe.schedule, [(stage, stage.until) for stage in recipe.curriculum if stage.until]
    if schedule.unit == "steps":
        most = sum(end.longest_steps for _, end in before)
    else:
        most = sum(end.longest_steps * recipe.train.batch_size * _longest_row(recipe, stage) for stage, end in before)
    if most >= schedule.total:
        raise ValueError(
            f"schedule.total_{schedule.unit} is {schedule.total}, but must be more than the stages before the last "
            f"can take, which is {most}"
        )


def _longest_row(recipe: Recipe, stage: StageRecipe) -> int:
    """The most tokens that a row of a stage can have."""
    if stage.lengths_tokens is not None and 0 in stage.lengths_tokens:
        raise ValueError(
            f"schedule.total_tokens needs stages of known length, but {stage.name!r} has rows of facts only "
            "(lengths_tokens 0); give total_steps"
        )
    primer = recipe.data.primer_length_tokens or 0
    return max(stage.longest_tokens(recipe.data.segment_length_tokens), primer if stage.primer_every else 0)


def _check_end(recipe: Recipe, number: int, stage: StageRecipe) -> None:
    is_last = number == len(recipe.curriculum) - 1
    if is_last != (stage.until is None):
        raise ValueError(
            f"curriculum.{number}.until "
            + ("has no effect in the last stage, which ends with the schedule" if is_last else "is missing")
        )
    if stage.until and stage.until.accuracy is not None and recipe.train.validate_every_steps is None:
        raise ValueError(
            f"curriculum.{number}.until.accuracy needs validation; give train.validate_every_steps, or end by steps"
        )


def _check_pair(key: str, value: int | None, uses: Sequence[object], use: str) -> None:
    """A number of the data section is given exactly where a stage uses it."""
    is_used = any(entry is not None for entry in uses)
    if is_used and value is None:
        raise ValueError(f"data.{key} is missing: a stage of the curriculum has {use}")
    if value is not None and not is_used:
        raise ValueError(f"data.{key} is {value}, but no stage has {use}, so it has no effect; leave it out")
