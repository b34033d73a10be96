"""`lm2 eval babilong`: asks a model the questions of BABILong, keeps what it answers, and scores that."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.options import BUILTIN_MODEL, Device, Dtype, ModelFolder, ModelTokenizer
from lm2.cli.ranges import parse_numbers, parse_tasks
from lm2.cli.terminal import show_progress
from lm2.data.bounds import at_least

if TYPE_CHECKING:
    from lm2.cli.load_model import LoadedModel
    from lm2.eval.predictions import Prediction
    from lm2.eval.prompts import PromptParts
    from lm2.eval.questions import AskedQuestion, Questions
    from lm2.eval.runner import Answer, Decoding

_VERSION = 1
_SETTINGS, _PREDICTIONS, _SCORES, _RETRIEVAL = "run.json", "predictions", "scores.json", "retrieval.json"


@dataclass(frozen=True)
class _Cell:
    """A task and length, how many questions of it are asked, and what an earlier run has of their answers."""

    task: int
    length: str
    num_samples: int
    path: Path
    known: "list[Prediction]"


def babilong(
    out: Annotated[Path, typer.Option("--out", help="Folder for predictions and scores.")],
    model: ModelFolder = BUILTIN_MODEL,
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks, such as 1-5 or 1,3,7-9.")] = "1-5",
    lengths: Annotated[str, typer.Option("--lengths", help="Lengths, such as 0k,4k,1M; 0k is facts only.")] = "0k,1k",
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            help="Samples per task and length: one number, or one for each length; else 100, or all of a dataset.",
        ),
    ] = None,
    background: Annotated[
        str | None, typer.Option("--background", help="'builtin' (default), 'pg19', or a folder of .txt books.")
    ] = None,
    facts: Annotated[
        str | None, typer.Option("--facts", help="'simulator' (default), or a folder of original bAbI files.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the samples; else 0.")] = None,
    allow_repeats: Annotated[
        bool, typer.Option("--allow-repeats", help="Use background again when a sample has used all of it.")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Ask these samples instead: a folder in BABILong's layout, or a name."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="plain, as in training here, or official.")] = "plain",
    instruction: Annotated[
        bool | None, typer.Option("--instruction/--no-instruction", help="Part of the official prompt; on.")
    ] = None,
    examples: Annotated[
        bool | None, typer.Option("--examples/--no-examples", help="Part of the official prompt; on.")
    ] = None,
    post_prompt: Annotated[
        bool | None, typer.Option("--post-prompt/--no-post-prompt", help="Part of the official prompt; on.")
    ] = None,
    chat_template: Annotated[
        bool | None, typer.Option("--chat-template/--no-chat-template", help="Official prompt as a user message; off.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Tokens of an answer, at most.")] = 20,
    truncate: Annotated[
        int | None, typer.Option("--truncate", help="Read the last so many tokens of longer prompts; rows say so.")
    ] = None,
    rag: Annotated[
        str | None,
        typer.Option("--rag", help="Retrieve, instead of reading all: bm25, or a sentence-transformers folder."),
    ] = None,
    rag_top_k: Annotated[
        int | None, typer.Option("--rag-top-k", help="Passages that the model reads; else 5 or all.")
    ] = None,
    rag_passages: Annotated[
        str | None, typer.Option("--rag-passages", help="sentence (default), or so many tokens each.")
    ] = None,
    rag_order: Annotated[
        str | None, typer.Option("--rag-order", help="document (default), or similarity: the best one first.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Questions asked at once.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
    tokenizer: ModelTokenizer = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What results call the model; else its folder, or the run of RUN/model."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT; also with more cells.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in OUT.")] = False,
) -> None:
    """Ask MODEL the questions of BABILong, greedily; write OUT/predictions/*.jsonl, OUT/scores.json; print the scores.

    Lengths are counted with the model's tokenizer. A model with a bounded memory reads any length at constant memory;
    another one refuses prompts beyond its positions, unless --truncate is given.
    """
    task_numbers, parts = parse_tasks(tasks), _prompt_parts(prompt, instruction, examples, post_prompt, chat_template)
    at_least("--max-new-tokens", max_new_tokens, 1)
    at_least("--batch-size", batch_size, 1)
    at_least("--truncate", truncate, 1)
    at_least("--rag-top-k", rag_top_k, 1)
    if dataset is not None:
        _refuse_made_options(facts=facts, background=background, seed=seed, allow_repeats=allow_repeats or None)

    from lm2.cli.load_model import hash_weights, load_model
    from lm2.cli.provenance import describe_training, read_record
    from lm2.cli.retrieval import RetrievedQuestions, open_rag
    from lm2.cli.score import score_files
    from lm2.data.encoding import TextEncoder
    from lm2.data.lengths import parse_lengths
    from lm2.data.plain import ANSWER_END
    from lm2.eval.prompts import encode_prompt, prompt_name
    from lm2.eval.runner import Decoding, max_prompt_tokens

    length_names = parse_lengths(lengths)
    samples_at = _parse_samples(samples, length_names)
    _check_out(out, resume, overwrite)
    loaded = load_model(model, device, dtype, tokenizer)
    record = read_record(model)
    limit = max_prompt_tokens(loaded.model, max_new_tokens)
    if truncate is not None and limit is not None and truncate > limit:
        raise ValueError(f"--truncate is {truncate}, but the model has positions for a prompt of {limit}")
    # A chat template that is missing or broken shows itself on any text.
    encode_prompt("", loaded.tokenizer, parts)
    encoder = TextEncoder(loaded.tokenizer, loaded.tokenizer_name)
    questions: Questions = open_questions(
        dataset, parts, loaded.tokenizer, encoder, length_names, facts, background, seed, allow_repeats
    )
    retrieval = open_rag(rag, rag_top_k, rag_passages, rag_order, encoder)
    if retrieval is not None:
        questions = RetrievedQuestions(questions, retrieval[0], parts, loaded.tokenizer)
    settings = {
        "model": name or f"{loaded.name}{'' if retrieval is None else '+rag'}",
        "weights_sha256": hash_weights(model),
        "tokenizer_sha256": encoder.fingerprint,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "prompt": prompt_name(parts),
        "max_new_tokens": max_new_tokens,
        "truncate": truncate,
        "rag": None if retrieval is None else retrieval[1],
        **questions.names,
        "allow_repeats": allow_repeats,
    }
    if resume:
        _check_same_run(out, settings)
    cells = [
        _plan_cell(out, questions, task, length, number, resume)
        for length, number in samples_at.items()
        for task in task_numbers
    ]
    found = (
        [questions.measure(cell.task, cell.length, cell.num_samples) for cell in cells]
        if isinstance(questions, RetrievedQuestions)
        else None
    )
    # A plain prompt asks for an answer that ends so; an official one is decoded as in the official runs.
    decoding = Decoding(max_new_tokens, ends=(ANSWER_END,) if parts is None else ())
    if truncate is None and limit is not None:
        _check_lengths(questions, cells, limit)

    if overwrite:
        shutil.rmtree(out / _PREDICTIONS, ignore_errors=True)
        (out / _SCORES).unlink(missing_ok=True)
    _write_settings(out, settings)
    if found is not None:
        _write_json(out / _RETRIEVAL, {"rag": settings["rag"], "cells": found})
    fields = {
        "model": settings["model"],
        "prompt": settings["prompt"],
        **questions.names,
        "tokenizer": loaded.tokenizer_name,
        "lengths_counted_by": encoder.fingerprint if dataset is None else None,
    }
    _ask_all(loaded, questions, cells, decoding, truncate, batch_size, fields)
    about = {
        "parameters": loaded.model.num_parameters(),
        "training": None if record is None else describe_training(record),
    }
    score_files([out / _PREDICTIONS], json_path=out / _SCORES, models={settings["model"]: about})


def _prompt_parts(prompt: str, *flags: bool | None) -> "PromptParts | None":
    from lm2.eval.prompts import PromptParts

    names = ("instruction", "examples", "post_prompt", "chat_template")
    given: dict[str, Any] = {name: flag for name, flag in zip(names, flags, strict=True) if flag is not None}
    if prompt == "official":
        return PromptParts(**given)
    if prompt != "plain":
        raise ValueError(f"--prompt is {prompt!r}, but must be plain or official")
    if given:
        flag = next(iter(given)).replace("_", "-")
        raise ValueError(f"--{flag} has no effect with --prompt plain; give --prompt official, or leave it out")
    return None


def _parse_samples(text: str | None, lengths: tuple[str, ...]) -> dict[str, int | None]:
    """How many samples are asked at each length; None for as many as there are."""
    if text is None:
        return dict.fromkeys(lengths)
    what = f"a number, or one for each of the {len(lengths)} lengths, such as 100,100,20"
    numbers = parse_numbers("--samples", text, what)
    if len(numbers) not in (1, len(lengths)):
        raise ValueError(f"--samples is {text!r}, but must be {what}")
    return dict(zip(lengths, numbers * (len(lengths) // len(numbers)), strict=True))


def _refuse_made_options(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} has no effect with --dataset, whose samples are made already")


def _check_out(out: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ValueError("give one of --resume and --overwrite")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, but that is a file; name a folder")
    has_run = (out / _SETTINGS).is_file()
    if (resume or overwrite) and not has_run and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} has files, but no run of this command ({_SETTINGS}); name another folder")
    if resume and not has_run:
        raise ValueError(f"{out} has no run to go on with; leave --resume out to start one")
    if not resume and not overwrite and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give --resume to go on, --overwrite to start anew, or another --out")


def open_questions(
    dataset: str | None,
    parts: "PromptParts | None",
    tokenizer: Any,
    encoder: Any,
    lengths: tuple[str, ...],
    facts: str | None,
    background: str | None,
    seed: int | None,
    allow_repeats: bool,
) -> "Questions":
    """Opens where questions come from, as the verb's options name it.

    Raises:
        ValueError: an option without effect, or one that names nothing.
        OSError: data cannot be read.
    """
    from lm2.data.babilong import open_maker
    from lm2.data.lengths import context_tokens
    from lm2.eval.questions import MadeQuestions, ReadQuestions

    if dataset is not None:
        return ReadQuestions(dataset, parts, tokenizer)
    needs_background = any(map(context_tokens, lengths))
    if not needs_background and (background is not None or allow_repeats):
        raise ValueError("--background and --allow-repeats have no effect at 0k, which is facts only; leave them out")
    seed = 0 if seed is None else seed
    names = (facts or "simulator", background or "builtin")
    maker = open_maker(*names, encoder, seed, allow_repeats=allow_repeats)
    return MadeQuestions(maker, parts, tokenizer)


def _check_same_run(out: Path, settings: dict[str, Any]) -> None:
    path = out / _SETTINGS
    try:
        document = json.loads(path.read_text("utf-8"))
        earlier = document["settings"]
        version = document["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no settings file of this command: {error}") from error
    if version != _VERSION:
        raise ValueError(f"{path} has version {version!r}, but this lm2 writes {_VERSION}; give --overwrite")
    differing = [
        f"{key} ({earlier.get(key)!r} there, {settings.get(key)!r} now)"
        for key in sorted({*earlier, *settings})
        if earlier.get(key) != settings.get(key)
    ]
    if differing:
        raise ValueError(f"{out} has a run with other settings: {', '.join(differing)}; give --overwrite to replace it")


def _write_settings(out: Path, settings: dict[str, Any]) -> None:
    import torch
    import transformers

    import lm2

    versions = {"lm2": lm2.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    document = {"kind": "lm2-babilong-run", "version": _VERSION, "settings": settings, "versions": versions}
    _write_json(out / _SETTINGS, document)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    from lm2.data.files import write_whole

    with write_whole(path) as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _plan_cell(out: Path, questions: "Questions", task: int, length: str, samples: int | None, resume: bool) -> _Cell:
    from lm2.eval.prediction_log import recover_rows

    num_samples = questions.check(task, length, samples)
    path = out / _PREDICTIONS / f"qa{task}_{length}.jsonl"
    known = recover_rows(path) if resume else []
    if len(known) > num_samples:
        raise ValueError(
            f"--samples is {num_samples}, but {path} has {len(known)} rows; ask for as many, or --overwrite"
        )
    for row, question in zip(known, questions.ask(task, length, 0, len(known)), strict=True):
        if (row.question, row.target) != (question.question, question.target):
            raise ValueError(f"{path}:{row.index + 1}: the row answers another question; give --overwrite")
    return _Cell(task, length, num_samples, path, known)


def _check_lengths(questions: "Questions", cells: list[_Cell], limit: int) -> None:
    """Refuses prompts that do not fit before the first is asked, at the cost of making them twice."""
    for cell in cells:
        for question in questions.ask(cell.task, cell.length, len(cell.known), cell.num_samples):
            count = question.count_tokens()
            if count > limit:
                raise ValueError(
                    f"a prompt of qa{cell.task} at {cell.length} has {count:,} tokens, but the model has positions for "
                    f"{limit:,} (and the answer); leave such lengths out, or give --truncate {limit}, which reads the "
                    "end of each prompt only and says so in the results"
                )


def _ask_all(
    loaded: "LoadedModel",
    questions: "Questions",
    cells: list[_Cell],
    decoding: "Decoding",
    truncate: int | None,
    batch_size: int,
    fields: dict[str, Any],
) -> None:
    """Asks what is not known yet, and appends each batch's rows to its cell's file."""
    from lm2.data.lengths import PROMPT_TOKENS, context_tokens
    from lm2.eval.prediction_log import append_rows
    from lm2.eval.runner import answer

    # Time goes with tokens, and cells differ in length a thousandfold.
    weights = [context_tokens(cell.length) + PROMPT_TOKENS for cell in cells]
    total = sum(weight * cell.num_samples for weight, cell in zip(weights, cells, strict=True))
    done = sum(weight * len(cell.known) for weight, cell in zip(weights, cells, strict=True))
    with show_progress() as progress:
        bar = progress.add_task("", total=total, completed=done)
        for weight, cell in zip(weights, cells, strict=True):
            progress.update(bar, description=f"qa{cell.task} {cell.length}")
            rest = questions.ask(cell.task, cell.length, len(cell.known), cell.num_samples)
            index = len(cell.known)
            while batch := list(islice(rest, batch_size)):
                prompts = [question.tokens() for question in batch]
                answers = answer(loaded.model, loaded.tokenizer, prompts, decoding, truncate)
                append_rows(cell.path, _rows(cell, index, batch, answers, fields))
                index += len(batch)
                progress.advance(bar, weight * len(batch))


def _rows(
    cell: _Cell, index: int, batch: "list[AskedQuestion]", answers: "list[Answer]", fields: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    from lm2.data.lengths import context_tokens

    if context_tokens(cell.length) == 0:
        fields = {**fields, "background": None}
    for place, (question, reply) in enumerate(zip(batch, answers, strict=True), start=index):
        yield {
            "task": f"qa{cell.task}",
            "length": cell.length,
            "index": place,
            "question": question.question,
            "target": question.target,
            "output": reply.text,
            "prompt_tokens": reply.prompt_tokens,
            "truncated_tokens": reply.truncated_tokens,
            **fields,
        }
