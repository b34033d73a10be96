"""Options that verbs share: one name, one meaning, one help text."""

from pathlib import Path
from typing import Annotated

import typer

# The small LM2s in this package, by the words for them, and the one that is used where none is named.
BUILTIN_MODEL = Path("builtin")
_CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
BUILTIN_FOLDERS = {BUILTIN_MODEL: _CHECKPOINTS / "lm2-qa1", Path("builtin-ten"): _CHECKPOINTS / "lm2-ten"}


def json_file(given: Path | None) -> Path | None:
    """The file that --json names, refused before any work if it is a folder."""
    if given is not None and given.is_dir():
        raise ValueError(f"--json is {given}, which is a folder; name a file")
    return given


def model_folder(given: Path) -> Path:
    """The folder that a MODEL argument means."""
    return BUILTIN_FOLDERS.get(given, given)


ModelFolder = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        callback=model_folder,
        help="A folder with a causal language model of transformers, or ours; builtin: the small LM2 that ships, of "
        "task 1; builtin-ten: the one of tasks 1 to 10.",
    ),
]
ModelFolders = Annotated[
    list[Path],
    typer.Argument(
        callback=lambda given: [model_folder(model) for model in given],
        help="Folders of models, builtin or builtin-ten; what is relative is so to the first one.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto (as saved), float32, bfloat16, float16.")]
ModelTokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="The model's tokenizer, if its folder has none: builtin or a folder.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", callback=json_file, help="Write all numbers to this file, too.")
]
