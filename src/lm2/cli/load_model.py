"""Loads a model folder with its tokenizer, whatever its architecture, and checks that they can work here."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
_BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be asked.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: Its tokenizer.
        name: What results call it: its folder's name, or the run's for RUN/model, which `lm2 train` writes.
        tokenizer_name: What results call the tokenizer.
    """

    model: Any
    tokenizer: Any
    name: str
    tokenizer_name: str


def load_model(folder: Path, device: str, dtype: str, tokenizer: str | None) -> LoadedModel:
    """Loads what is in a folder of transformers.

    Args:
        folder: With config.json and weights; and a tokenizer, unless one is named.
        device: "auto" (an NVIDIA GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto" (as the weights were saved), "float32", "bfloat16" or "float16".
        tokenizer: "builtin" or a folder; None for the model's own.

    Raises:
        ValueError: no model folder, an unknown architecture, weights that are missing or damaged, a tokenizer that is
            not the model's, a device that is not there, or an unknown dtype.
        OSError: a file cannot be read.
    """
    _check_config(folder)
    if dtype not in _DTYPES:
        raise ValueError(f"--dtype is {dtype!r}, but must be one of {', '.join(_DTYPES)}")
    place = _find_device(device)
    if tokenizer is None and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(f"{folder} has no tokenizer.json; name the model's tokenizer with --tokenizer")

    from lm2.data.tokenizer import load_tokenizer
    from lm2.eval.runner import check_vocabulary

    loaded = load_tokenizer(str(folder) if tokenizer is None else tokenizer)
    name = _model_name(folder)
    model = _load_weights(folder, dtype)
    check_vocabulary(model, loaded)
    own_name = name if tokenizer is None else Path(tokenizer).name
    return LoadedModel(model.to(place).eval(), loaded, name, own_name)


def load_models(folders: Sequence[Path], device: str, dtype: str, tokenizer: str | None) -> list[LoadedModel]:
    """Loads several models that results are to tell apart.

    Args:
        folders: Each once.
        device, dtype, tokenizer: As of `load_model`.

    Raises:
        ValueError: a folder is given twice, two have the same name; or what `load_model` refuses.
        OSError: a folder cannot be read.
    """
    if len(folders) != len({folder.resolve() for folder in folders}):
        raise ValueError("a model is given twice; give each once")
    names = [_model_name(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"models are named {', '.join(names)} by their folders; rename one, so that results tell them")
    return [load_model(folder, device, dtype, tokenizer) for folder in folders]


def hash_weights(folder: Path) -> str:
    """SHA-256 of the files that decide what a model computes: its configuration and its weights."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"model is {str(folder)!r}, but must be a model folder (with a config.json)")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold an object of fields, not a {type(fields).__name__}")


def _model_name(folder: Path) -> str:
    place = folder.resolve()
    is_of_run = place.name == "model" and (place.parent / "recipe.yaml").is_file()
    return place.parent.name if is_of_run else place.name


def _find_device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device is {name!r}, but must be auto, cpu, cuda, cuda:N or mps") from error
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = available.get(device.type, 0)
    if (device.index or 0) >= count:
        raise ValueError(f"--device is {name!r}, but there are {count} devices of that kind here; give --device cpu")
    return device


def _load_weights(folder: Path, dtype: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    import lm2

    del lm2  # Its import makes "lm2" known.
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, StrictDataclassError) as error:
        raise ValueError(f"{folder}/config.json cannot be used: {_first_line(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{folder} holds a {config.model_type!r}, which is no causal language model of transformers")
    with without_bars():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"the weights in {folder} cannot be loaded: {_first_line(error)}") from error
    # transformers would fill them with random numbers and say so in a warning only.
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, info[what])):
            raise ValueError(f"the weights in {folder} have {what.replace('_', ' ')} ({len(names)}): {names[0]}")
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keeps transformers from showing bars, which would come between our messages."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
