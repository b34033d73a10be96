"""Options that verbs share: one name, one meaning, one help text."""

from pathlib import Path
from typing import Annotated

import typer

ModelFolder = Annotated[Path, typer.Argument(help="A folder with a causal language model of transformers, or ours.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto (as saved), float32, bfloat16, float16.")]
ModelTokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="The model's tokenizer, if its folder has none: builtin or a folder.")
]
