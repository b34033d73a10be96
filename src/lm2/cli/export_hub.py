"""`lm2 export-hub`: a model folder that carries its own code, for machines without this package."""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from lm2.cli.sources import load_config

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template*",
)


def export_hub(
    model: Annotated[Path, typer.Argument(help="An LM2 model folder, as save_pretrained writes it.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; must be new or empty.")],
) -> None:
    """Write a folder that AutoModelForCausalLM loads with trust_remote_code=True where lm2 is not installed."""
    if not model.is_dir():
        raise ValueError(f"{model}: not a folder; give an LM2 model folder")
    load_config(model)
    _require_new_or_empty(out)

    from lm2.data.files import write_whole_folder

    with write_whole_folder(out) as folder:
        _save_with_code(model, folder)
        _copy_tokenizer(model, folder)
    print(f"wrote {out}; load it with AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)")


def _require_new_or_empty(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; name a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: the folder is not empty; name one that is new or empty")


def _save_with_code(source: Path, folder: Path) -> None:
    from lm2 import LM2Config, LM2ForCausalLM, LM2Model

    model = LM2ForCausalLM.from_pretrained(source, dtype="auto")
    auto_classes: dict[Any, str] = {
        LM2Config: "AutoConfig",
        LM2Model: "AutoModel",
        LM2ForCausalLM: "AutoModelForCausalLM",
    }
    marked_before = {cls: cls._auto_class for cls in auto_classes}
    try:
        for cls, auto_class in auto_classes.items():
            cls.register_for_auto_class(auto_class)
        model.save_pretrained(folder)
    finally:
        # The mark would make every later save_pretrained of this process copy code as well.
        for cls, mark in marked_before.items():
            cls._auto_class = mark
    # save_pretrained lists only the class it saved; the bare model is in the same file.
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    modeling_file = LM2Model.__module__.rpartition(".")[2]
    config["auto_map"]["AutoModel"] = f"{modeling_file}.{LM2Model.__name__}"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in _TOKENIZER_FILES:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
