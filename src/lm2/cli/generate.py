"""`lm2 generate`: a text goes on as a model has it, from a saved memory if there is one."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.options import BUILTIN_MODEL, Device, Dtype, ModelTokenizer, model_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lm2.cli.load_model import LoadedModel
    from lm2.eval.runner import Decoding


def generate(
    # Not a path yet, as it may be the prompt.
    model: Annotated[str, typer.Argument(help="As elsewhere; may be left out before a PROMPT.")] = str(BUILTIN_MODEL),
    prompt: Annotated[str | None, typer.Argument(help="The text to go on from.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option("--prompt-file", help="Read the text from this file instead; - is standard input.")
    ] = None,
    memory: Annotated[
        Path | None, typer.Option("--memory", help="Go on from the memory in this file, if it is there; and save it.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="At most so many tokens.")] = 100,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token each time.")] = 0.0,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw from the likeliest tokens that have this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the draws; else 0.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    tokenizer: ModelTokenizer = None,
) -> None:
    """Print what MODEL writes after a text, of any length for a model with a bounded memory.

    MODEL may be left out: a single argument with a space in it is a PROMPT, and the LM2 that ships goes on from it.

    With --memory, all that was read and written so far stays in the file, and the next call goes on from there.
    """
    if (prompt, prompt_file) == (None, None) and " " in model and not os.path.exists(model):
        model, prompt = str(BUILTIN_MODEL), model
    if (prompt is None) == (prompt_file is None):
        raise ValueError("give either a PROMPT or --prompt-file")
    if prompt == "":
        raise ValueError("PROMPT is empty; give a text to go on from")
    if prompt_file not in (None, "-") and not Path(str(prompt_file)).is_file():
        raise ValueError(f"--prompt-file is {prompt_file}, which is no file")
    if temperature == 0 and seed is not None:
        raise ValueError("--seed has no effect at temperature 0; give --temperature too")
    if memory is not None and (memory.is_dir() or not memory.absolute().parent.is_dir()):
        raise ValueError(f"--memory is {memory}, but must be a file in a folder that is there")

    from lm2.cli.load_model import load_model
    from lm2.eval.runner import Decoding, keeps_bounded_state

    decoding = Decoding(max_new_tokens, (), temperature, top_k, top_p)
    loaded = load_model(model_folder(Path(model)), device, dtype, tokenizer)
    is_bounded = keeps_bounded_state(loaded.model)
    if memory is not None and not is_bounded:
        raise ValueError(f"--memory needs a model with a bounded memory, but {loaded.name} has none; leave it out")

    import torch

    torch.manual_seed(0 if seed is None else seed)
    state = _load_state(memory, loaded) if memory is not None and memory.exists() else None
    with _open_prompt(prompt, prompt_file) as file:
        pieces = _token_pieces(loaded, file, starts_text=state is None)
        if is_bounded:
            _go_on(loaded, pieces, decoding, state, memory)
        else:
            _answer(loaded, pieces, decoding)


def _open_prompt(prompt: str | None, prompt_file: str | None) -> AbstractContextManager[IO[str]]:
    from lm2.data.files import open_text

    if prompt is not None:
        return io.StringIO(prompt)
    return nullcontext(sys.stdin) if prompt_file == "-" else open_text(Path(str(prompt_file)))


def _token_pieces(loaded: "LoadedModel", file: IO[str], starts_text: bool) -> "Iterator[NDArray[np.int32]]":
    """The prompt's tokens, block by block; special ones come first where a text starts."""
    import numpy as np

    from lm2.data.encoding import TextEncoder
    from lm2.eval.perplexity import starting_tokens, text_blocks

    encoder = TextEncoder(loaded.tokenizer, loaded.tokenizer_name)
    if starts_text:
        yield np.array(starting_tokens(loaded.tokenizer), dtype=np.int32)
    try:
        for block in text_blocks(file):
            yield from encoder.encode_many([block])
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt is no UTF-8 text: {error}") from error


def _load_state(path: Path, loaded: "LoadedModel") -> Any:
    from safetensors import SafetensorError

    from lm2 import LM2Cache

    try:
        state = LM2Cache.load(path, loaded.model.config, loaded.model.device)
    except SafetensorError as error:
        raise ValueError(f"--memory is {path}, which is no saved memory, or damaged: {error}") from error
    if state.batch_size != 1:
        raise ValueError(f"--memory is {path}, which holds {state.batch_size} rows, but one text has one")
    dtypes = {block.keys.dtype for block in state.states if block.keys is not None}
    if dtypes != {loaded.model.dtype}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(f"--memory is {path}, which a model in {names} wrote; give --dtype {names}")
    return state


def _go_on(
    loaded: "LoadedModel", pieces: "Iterator[NDArray[np.int32]]", decoding: "Decoding", state: Any, memory: Path | None
) -> None:
    """Prints what a model with a bounded memory writes; then saves the memory of all that it has read and written."""
    import numpy as np

    from lm2.eval.runner import Ending, decode, read

    ending = Ending(loaded.model, loaded.tokenizer, decoding.ends)
    reading = read(loaded.model, [pieces], state)
    [new_ids] = decode(loaded.model, reading, decoding, ending)
    print(loaded.tokenizer.decode(new_ids, skip_special_tokens=True))
    if memory is not None:
        # The last token was never fed back. An end-of-text token is left out: the text goes on.
        if new_ids[-1] not in ending.token_ids:
            read(loaded.model, [[np.array(new_ids[-1:], dtype=np.int32)]], reading.state)
        reading.state.save(memory)


def _answer(loaded: "LoadedModel", pieces: "Iterator[NDArray[np.int32]]", decoding: "Decoding") -> None:
    """Prints what any other model writes."""
    from lm2.eval.runner import answer

    [written] = answer(loaded.model, loaded.tokenizer, [pieces], decoding)
    print(written.text)
