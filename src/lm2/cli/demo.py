"""`lm2 demo`: a model with a memory reads a long text once, and answers what was hidden in it."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.options import BUILTIN_MODEL, Device, Dtype, ModelFolder

if TYPE_CHECKING:
    from lm2.cli.load_model import LoadedModel
    from lm2.data.babilong import Sample
    from lm2.data.encoding import TextEncoder

# Where is Mary? The latest of her moves counts.
_TASK = 1
# Of all stories; one in which everybody moves is taken.
_NUM_PEOPLE = 4
# A place and a full stop.
_MAX_NEW_TOKENS = 4


@dataclass(frozen=True)
class _Asked:
    """A question of the story, what the solver of bAbI answers from its text, and what the model does."""

    question: str
    gold: str
    answer: str


def demo(
    model: ModelFolder = BUILTIN_MODEL,
    length: Annotated[
        str, typer.Option("--length", help="The text's length in tokens, such as 10k, 100k, 1M.")
    ] = "100k",
    seed: Annotated[int, typer.Option("--seed", help="Of the story and of where it is hidden.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Hide a bAbI story in a long text, let MODEL read it once, and ask where everybody is."""
    from lm2.cli.load_model import load_model
    from lm2.data.encoding import TextEncoder
    from lm2.data.lengths import context_tokens
    from lm2.eval.runner import keeps_bounded_state, read
    from lm2.train.log import memory_bytes

    if not context_tokens(length):
        raise ValueError(f"--length is {length}, which is no long text; give one such as 100k")
    loaded = load_model(model, device, dtype, None)
    if not keeps_bounded_state(loaded.model):
        raise ValueError(f"{loaded.name} has no bounded memory; give a model that has (lm2, rmt, armt)")
    encoder = TextEncoder(loaded.tokenizer, loaded.tokenizer_name)
    sample = _hide_story(encoder, length, seed)
    places, num_tokens = _find_facts(sample, encoder)
    print(f"A text of {num_tokens:,} tokens, from the prose that comes with Python, has this story in it:\n")
    for place, fact in zip(places, sample.facts, strict=True):
        print(f"  token {place:>11,}   {fact}")

    used_before, begin = memory_bytes(loaded.model.device), time.perf_counter()
    reading = read(loaded.model, [sample.token_pieces()])
    seconds, used = time.perf_counter() - begin, memory_bytes(loaded.model.device)
    print(
        f"\n{loaded.name} ({loaded.model.num_parameters():,} parameters) has read it in {seconds:.1f} s.\n"
        f"What it keeps of it: {reading.state.num_bytes:,} bytes. Peak memory: {used / 2**20:,.0f} MiB, of them "
        f"{(used - used_before) / 2**20:,.0f} for reading.\n"
    )
    questions = [f"Where is {person}? " for person in _people(sample)]
    asked = [_ask(loaded, encoder, sample, question, reading.state) for question in questions]
    _print_answers(asked)


def _hide_story(encoder: "TextEncoder", length: str, seed: int) -> "Sample":
    from lm2.data.babilong import open_maker

    maker = open_maker("simulator", "builtin", encoder, seed, allow_repeats=True)
    maker.check(_TASK, length, num_samples=1)
    samples = (maker.sample(_TASK, length, index) for index in count())
    return next(sample for sample in samples if len(_people(sample)) == _NUM_PEOPLE)


def _find_facts(sample: "Sample", encoder: "TextEncoder") -> tuple[list[int], int]:
    """At which token each fact begins, and how many tokens there are; the text is never whole in memory."""
    import numpy as np

    waiting = [encoder.encode(f" {fact}") for fact in sample.facts]
    places: list[int] = []
    num_tokens = 0
    for piece in sample.token_pieces():
        if len(places) < len(waiting) and np.array_equal(piece, waiting[len(places)]):
            places.append(num_tokens)
        num_tokens += len(piece)
    return places, num_tokens


def _people(sample: "Sample") -> list[str]:
    """In the order in which they turn up."""
    return list(dict.fromkeys(fact.split()[0] for fact in sample.facts))


def _ask(loaded: "LoadedModel", encoder: "TextEncoder", sample: "Sample", question: str, state: Any) -> _Asked:
    """Asks behind the text. Each question goes on from a copy of the state, so none of them is part of the text."""
    from lm2.data.babi.solver import answer_from
    from lm2.data.plain import ANSWER_END, question_text
    from lm2.eval.runner import Decoding, Ending, decode, read

    gold = answer_from(_TASK, sample.facts, question)
    assert gold is not None, "who is asked for has moved"
    asked = read(loaded.model, [[encoder.encode(question_text(question))]], copy.deepcopy(state))
    ending = Ending(loaded.model, loaded.tokenizer, (ANSWER_END,))
    [new_ids] = decode(loaded.model, asked, Decoding(_MAX_NEW_TOKENS, (ANSWER_END,)), ending)
    text = loaded.tokenizer.decode(new_ids, skip_special_tokens=True)
    return _Asked(question.strip(), gold.text, text.strip().removesuffix(ANSWER_END))


def _print_answers(asked: Sequence[_Asked]) -> None:
    from rich.table import Table

    from lm2.cli.terminal import table_console

    table = Table()
    for column in ("question", "answer", "right answer", ""):
        table.add_column(column)
    for row in asked:
        table.add_row(row.question, row.answer, row.gold, "yes" if row.answer == row.gold else "no")
    table_console(plain_width=80).print(table)
    print(f"{sum(row.answer == row.gold for row in asked)} of {len(asked)} right")
