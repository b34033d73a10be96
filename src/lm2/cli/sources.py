"""Reads an LM2 configuration from what users have at hand: a model folder, a config file, or a recipe."""

import dataclasses
import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm2 import LM2Config

_WANTED = "give a model folder, a config .json, or a .yaml recipe"


def load_config(source: Path) -> "LM2Config":
    """
    The configuration that `source` describes.

    Args:
        source: a model folder with a `config.json`, a config `.json` file, or a YAML recipe whose `model.config` holds
            fields of `LM2Config`.

    Raises:
        ValueError: names the file, the field, its value and the fix.
    """
    if source.is_dir():
        return _build(source / "config.json", _read_config_json(source / "config.json"))
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder; {_WANTED}")
    if source.suffix == ".json":
        return _build(source, _read_config_json(source))
    if source.suffix in (".yaml", ".yml"):
        return _build(source, _read_recipe(source))
    raise ValueError(f"{source}: cannot tell what this is; {_WANTED}")


def _read_config_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path.parent}: the folder has no config.json; {_WANTED}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds {_kind(config)}, but a config is an object of fields")
    if config.get("model_type") != "lm2":
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r}, but only 'lm2' is supported here")
    return config


def _read_recipe(path: Path) -> dict[str, Any]:
    from lm2 import LM2Config
    from lm2.train.checking import parse_yaml

    try:
        recipe = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: holds {_kind(recipe)}, but a recipe is a mapping with a 'model:' section")
    if "model" not in recipe:
        raise ValueError(f"{path}: has no 'model:' section{_did_you_mean('model', recipe)}")
    model = recipe["model"]
    if not isinstance(model, dict) or not isinstance(model.get("config"), dict):
        raise ValueError(f"{path}: 'model:' needs 'architecture:', and 'config:' with LM2Config's fields")
    if model.get("architecture") != "lm2":
        raise ValueError(
            f"{path}: model.architecture is {model.get('architecture')!r}, but only 'lm2' is supported here"
        )
    known = [field.name for field in dataclasses.fields(LM2Config)]
    for name in model["config"]:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "LM2Config's documentation lists all fields"
            raise ValueError(f"{path}: unknown field {name!r} in 'model.config:'; {hint}")
    return model["config"]


def _build(path: Path, fields: dict[str, Any]) -> "LM2Config":
    from huggingface_hub.errors import StrictDataclassError

    from lm2 import LM2Config

    try:
        return LM2Config(**fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{path}: {_one_line(error)}") from error


def _did_you_mean(wanted: str, given: Iterable[Any]) -> str:
    similar = difflib.get_close_matches(wanted, [str(name) for name in given], n=1)
    return f" (only {similar[0]!r})" if similar else ""


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
