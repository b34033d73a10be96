"""Reads YAML strictly, and turns plain values into dataclasses: every key known, every type right, errors by name."""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")

# YAML 1.2's core schema. PyYAML knows 1.1, where 1e-3 is a text, `on` is true and 010 is eight.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Refuses keys that come twice, which YAML forbids and PyYAML does not notice."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _first_characters = [*_first, ""] if _name == "null" else list(_first)
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first_characters)


def parse_yaml(text: str) -> Any:
    """Plain values of a YAML text, its numbers read as YAML 1.2 has them (1e-3 is a number).

    Raises:
        ValueError: not valid YAML, or a key that comes twice; says where.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


def dump_yaml(value: Any) -> str:
    """The text that `parse_yaml` reads as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)


def build(wanted: type[T], value: Any, path: str = "") -> T:
    """An instance of a dataclass from plain values, nested ones included.

    Args:
        wanted: A dataclass. Its fields are None, bool, int, float, str, Literal, dataclasses, tuples and mappings of
            these, or Any. Its `__post_init__` checks ranges, with messages that begin with the field's name.
        value: A mapping of its fields.
        path: Where the value is, such as "train.loss"; for messages.

    Raises:
        ValueError: an unknown or missing key, a wrong type, or a refused value; names the key, the value and the fix.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{path or 'the recipe'} is {_show(value)}, but must be a mapping of keys to values")
    fields = {field.name: field for field in dataclasses.fields(wanted)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise ValueError(f"{_join(path, key)} is not a key{nearest(key, fields)}")
    hints = get_type_hints(wanted)
    arguments = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_join(path, name)} is missing{_given_instead(name, value)}")
    try:
        return wanted(**arguments)
    except ValueError as error:
        raise ValueError(_join(path, error)) from error


def plain(value: Any) -> Any:
    """The plain values that `build` makes `value` of: mappings, lists, numbers and texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return value


def nearest(wrong: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known ones."""
    names = list(known)
    similar = difflib.get_close_matches(str(wrong), names, n=1, cutoff=0.5)
    return f"; did you mean {similar[0]!r}?" if similar else f"; known are {', '.join(names)}"


def _given_instead(name: str, given: Iterable[Any]) -> str:
    similar = difflib.get_close_matches(name, [str(key) for key in given], n=1)
    return f" (given is {similar[0]!r})" if similar else ""


def _convert(wanted: Any, value: Any, path: str) -> Any:
    """The value as the type has it: lists become tuples, whole numbers become floats where floats are wanted."""
    origin = get_origin(wanted)
    if wanted is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (wanted,) = (choice for choice in get_args(wanted) if choice is not type(None))
        return _convert(wanted, value, path)
    if origin is Literal:
        if value not in get_args(wanted) or isinstance(value, bool):
            raise ValueError(f"{path} is {_show(value)}, but must be {' or '.join(map(repr, get_args(wanted)))}")
        return value
    if dataclasses.is_dataclass(wanted):
        return build(wanted, value, path)  # type: ignore[arg-type]
    if origin is tuple:
        return _convert_list(get_args(wanted), value, path)
    if origin is not None and issubclass(origin, Mapping):
        key_type, entry_type = get_args(wanted)
        if not isinstance(value, Mapping):
            raise ValueError(f"{path} is {_show(value)}, but must be a mapping of keys to values")
        return {
            _convert(key_type, key, f"a key of {path}"): _convert(entry_type, entry, _join(path, key))
            for key, entry in value.items()
        }
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}, but must be a finite number")
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{path} is {_show(value)}, but must be {_TYPE_NAMES[wanted]}")
    return value


_TYPE_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def _convert_list(entry_types: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{path} is {_show(value)}, but must be a list")
    if entry_types[-1] is Ellipsis:
        entry_types = (entry_types[0],) * len(value)
    if len(entry_types) != len(value):
        raise ValueError(f"{path} is {_show(value)}, but must be a list of {len(entry_types)}")
    return tuple(
        _convert(entry_type, entry, _join(path, number))
        for number, (entry_type, entry) in enumerate(zip(entry_types, value, strict=True))
    )


def _show(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
