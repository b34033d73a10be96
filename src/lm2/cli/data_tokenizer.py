"""`lm2 data tokenizer`: train the project's byte-level BPE, the shipped one or one for other text."""

import json
from pathlib import Path
from typing import Annotated

import typer


def tokenizer(
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    vocab_size: Annotated[int, typer.Option(help="Number of entries, 256 bytes and 2 special tokens included.")] = 2048,
    background: Annotated[
        str, typer.Option(help="Prose to train on beside simulated bAbI stories: builtin, pg19, or a folder of books.")
    ] = "builtin",
) -> None:
    """Train a tokenizer and write a folder that AutoTokenizer.from_pretrained loads.

    Every word of the bAbI tasks is one token, and any text comes back as it was. With the defaults this makes the
    tokenizer that ships with lm2; the built-in background differs a little between Python versions, and so does what is
    learned from it. provenance.json in the folder says what it was made from.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} exists already; give a new or empty folder")

    from lm2.data.files import write_whole_folder
    from lm2.data.text import check_readable, open_background
    from lm2.data.tokenizer_recipe import build_tokenizer

    prose = open_background(background, "train")
    check_readable(prose)
    made, provenance = build_tokenizer(prose, vocab_size)

    with write_whole_folder(out) as folder:
        made.save_pretrained(folder)
        command = f"lm2 data tokenizer --vocab-size {vocab_size} --background {background} --out DIR"
        text = json.dumps({"command": command, **provenance}, indent=2)
        (folder / "provenance.json").write_text(text + "\n", encoding="utf-8")
    print(f"{out}: {len(made)} entries, trained on {provenance['training_characters']:,} characters")
