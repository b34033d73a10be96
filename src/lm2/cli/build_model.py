"""Builds the model that a recipe describes, for any causal architecture of transformers, and saves it whole."""

import dataclasses
import difflib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from lm2.train.sections import ModelRecipe

# Taken from the tokenizer where a recipe leaves them out.
_TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def build_model(recipe: "ModelRecipe", tokenizer: Any, seed: int) -> Any:
    """The model of a recipe, in float32 on the CPU; equal arguments give equal weights.

    Args:
        recipe: Its `config` holds fields of the architecture's configuration; `vocab_size` and special tokens are the
            tokenizer's where it has none. With `init`, weights and fields are those of that folder; a Llama's folder
            also starts an LM2, and `config` then holds the memory's fields.
        tokenizer: What the model is to read.
        seed: Of the random weights.

    Raises:
        ValueError: an unknown architecture or field, a refused value, or a vocabulary that is too small for the
            tokenizer; names the key, the value and the fix.
        OSError: `init` cannot be read.
    """
    import torch

    torch.manual_seed(seed)
    config_class = _config_class(recipe.architecture)
    for field in recipe.config:
        known = _field_names(config_class)
        if field not in known:
            raise ValueError(f"model.config.{field} is no field of {config_class.__name__}{_nearest(field, known)}")
    model = _random_model(recipe, config_class, tokenizer) if recipe.init is None else _pretrained_model(recipe)
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"vocab_size of the model is {model.config.vocab_size}, but the tokenizer has {len(tokenizer)} entries; "
            "give model.config.vocab_size at least as many, or another data.tokenizer"
        )
    return model.float()


def save_model(folder: Path, model: Any, weights: "dict[str, Tensor]", tokenizer: Any) -> None:
    """Writes a transformers folder, whole or not at all; one that is there is replaced.

    Args:
        folder: Where to.
        model: As `build_model` made it; may be sharded by now.
        weights: All of its weights.
        tokenizer: Saved with it.

    Raises:
        OSError: it could not be written; what was there is as it was.
    """
    from lm2.cli.load_model import without_bars
    from lm2.data.files import write_whole_folder

    try:
        with without_bars(), write_whole_folder(folder) as part:
            model.save_pretrained(part, state_dict=weights)
            tokenizer.save_pretrained(part)
    except OSError as error:
        raise OSError(f"the model could not be written to {folder}: {error}; make room, then use --resume") from error


def _config_class(architecture: str) -> Any:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    import lm2

    del lm2  # Its import makes "lm2" known.
    known = sorted(CONFIG_MAPPING)
    if architecture not in known:
        raise ValueError(
            f"model.architecture is {architecture!r}, which transformers has not{_nearest(architecture, known)}"
        )
    config_class = CONFIG_MAPPING[architecture]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"model.architecture is {architecture!r}, but transformers has no causal language model of it")
    return config_class


def _field_names(config_class: Any) -> list[str]:
    if dataclasses.is_dataclass(config_class):
        return [field.name for field in dataclasses.fields(config_class)]
    return list(inspect.signature(config_class).parameters)


def _random_model(recipe: "ModelRecipe", config_class: Any, tokenizer: Any) -> Any:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    of_tokenizer = {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in _TOKEN_FIELDS}}
    try:
        config = config_class(**{**of_tokenizer, **recipe.config})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"model.config: {' '.join(str(error).split())}") from error
    model = AutoModelForCausalLM.from_config(config)
    if recipe.embedding_std is not None:
        embeddings = model.get_input_embeddings()
        torch.nn.init.normal_(embeddings.weight, std=recipe.embedding_std)
        if embeddings.padding_idx is not None:
            torch.nn.init.zeros_(embeddings.weight[embeddings.padding_idx])
    return model


def _pretrained_model(recipe: "ModelRecipe") -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lm2 import LM2ForCausalLM

    assert recipe.init is not None, "the caller has looked"
    if not (Path(recipe.init) / "config.json").is_file():
        raise OSError(f"model.init is {recipe.init!r}, but must be a model folder with a config.json")
    config = AutoConfig.from_pretrained(recipe.init)
    if recipe.architecture == "lm2" and config.model_type == "llama":
        return LM2ForCausalLM.from_llama(recipe.init, **recipe.config)
    if config.model_type != recipe.architecture:
        raise ValueError(
            f"model.architecture is {recipe.architecture!r}, but model.init is a {config.model_type!r}: {recipe.init}"
        )
    for field, value in recipe.config.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"model.config.{field} is {value!r}, but in model.init it is {getattr(config, field)!r}; leave it out"
            )
    return AutoModelForCausalLM.from_pretrained(recipe.init, dtype=torch.float32)


def _nearest(wrong: str, known: list[str]) -> str:
    similar = difflib.get_close_matches(wrong, known, n=1)
    return f"; did you mean {similar[0]!r}?" if similar else ""
