"""`lm2 eval perplexity`: how well a model predicts texts, and whether a long past helps it."""

import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.options import Device, Dtype, JsonFile, ModelFolder, ModelTokenizer
from lm2.cli.terminal import show_progress, table_console

if TYPE_CHECKING:
    from lm2.cli.load_model import LoadedModel
    from lm2.data.encoding import TextEncoder
    from lm2.eval.perplexity import Window

_VERSION = 1


def perplexity(
    model: ModelFolder,
    files: Annotated[list[Path], typer.Argument(help="UTF-8 texts, plain or .gz, .xz, .bz2; each is a document.")],
    window: Annotated[
        int | None, typer.Option("--window", help="Tokens of a sliding window; else each document is read as a whole.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Tokens by which the window slides; else half of it.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    tokenizer: ModelTokenizer = None,
    json_path: JsonFile = None,
) -> None:
    """Print perplexity per token and bits per byte of each file and of all, and the mean loss by distance.

    The distance of a token is how many tokens are before it in its document: losses that go on falling show that the
    model uses a long past. A model with a bounded memory reads any length at constant memory.
    """
    from lm2.eval.perplexity import Losses, Window, file_losses, text_blocks

    if window is None and stride is not None:
        raise ValueError("--stride has no effect without --window; give both, or none")
    windows = None if window is None else Window(window, window // 2 if stride is None else stride)
    _check_files(files, json_path)

    from lm2.cli.load_model import load_model
    from lm2.data.encoding import TextEncoder
    from lm2.data.files import open_text

    loaded = load_model(model, device, dtype, tokenizer)
    encoder = TextEncoder(loaded.tokenizer, loaded.tokenizer_name)
    _check_lengths(loaded, encoder, files, windows)

    reports, together = [], Losses()
    for path in files:
        with open_text(path) as file, _progress(path) as advance:
            blocks = _counted(text_blocks(file), advance)
            losses = file_losses(loaded.model, loaded.tokenizer, encoder, blocks, windows)
        try:
            reports.append({"file": str(path), **losses.report()})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        together.merge(losses)
    document = {
        "kind": "lm2-perplexity",
        "version": _VERSION,
        "model": loaded.name,
        "tokenizer": {"name": encoder.name, "fingerprint_sha256": encoder.fingerprint},
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "window": None if windows is None else {"length": windows.length, "stride": windows.stride},
        "files": reports,
        "all": together.report(),
    }
    if json_path is not None:
        from lm2.data.files import write_whole

        with write_whole(json_path) as file:
            file.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    _print(document)


def _check_files(files: list[Path], json_path: Path | None) -> None:
    from lm2.data.files import open_text
    from lm2.eval.perplexity import text_blocks

    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is no file; give text files")
        try:
            with open_text(path) as file:
                empty = True
                for _ in text_blocks(file):
                    empty = False
        except (UnicodeDecodeError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"{path} is no UTF-8 text, or damaged: {error}") from error
        if empty:
            raise ValueError(f"{path} is empty")
    if json_path is not None and (json_path.is_dir() or json_path.resolve() in {path.resolve() for path in files}):
        raise ValueError(f"--json is {json_path}, which is a folder or one of the texts; name another file")


def _check_lengths(loaded: "LoadedModel", encoder: "TextEncoder", files: list[Path], window: "Window | None") -> None:
    from lm2.eval.perplexity import count_tokens, starting_tokens
    from lm2.eval.runner import max_text_tokens

    limit = max_text_tokens(loaded.model)
    if limit is None:
        return
    if window is not None:
        if window.length > limit:
            raise ValueError(f"--window is {window.length}, but the model's max_position_embeddings is {limit}")
        return
    for path in files:
        count = count_tokens(path, encoder) + len(starting_tokens(loaded.tokenizer))
        if count > limit:
            raise ValueError(
                f"{path} has {count:,} tokens, but the model's max_position_embeddings is {limit:,}; give --window "
                f"{limit} to read it in windows that slide"
            )


@contextmanager
def _progress(path: Path) -> Iterator[Any]:
    """A bar on a terminal; takes bytes of text done."""
    # How much text is in a packed file is known at its end.
    total = path.stat().st_size if path.suffix not in (".gz", ".xz", ".bz2") else None
    with show_progress() as progress:
        bar = progress.add_task(path.name, total=total)
        yield lambda num_bytes: progress.advance(bar, num_bytes)


def _counted(blocks: Iterator[str], advance: Any) -> Iterator[str]:
    for block in blocks:
        yield block
        advance(len(block.encode()))


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    console = table_console(plain_width=160)
    table = Table(title=f"{document['model']}: perplexity", title_justify="left")
    for column in ("text", "tokens", "perplexity", "bits per byte"):
        table.add_column(column, justify="left" if column == "text" else "right")
    rows = [(report["file"], report) for report in document["files"]]
    if len(rows) > 1:
        rows.append(("all", document["all"]))
    for name, report in rows:
        table.add_row(name, f"{report['tokens']:,}", f"{report['perplexity']:.3f}", f"{report['bits_per_byte']:.4f}")
    console.print(table)
    curve = Table(title="mean loss (nats) by the number of tokens before", title_justify="left")
    for column in ("tokens before", "tokens", "loss"):
        curve.add_column(column, justify="right")
    for point in document["all"]["curve"]:
        span = f"{point['first_distance']:,} to {point['last_distance']:,}"
        curve.add_row(span, f"{point['tokens']:,}", f"{point['loss']:.4f}")
    console.print(curve)
