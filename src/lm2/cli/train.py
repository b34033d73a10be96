"""`lm2 train`: a run from its recipe to a model folder."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

NOT_FINITE_EXIT_CODE = 3


def train(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: --set train.batch_size=8. Repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's folder; runs/NAME of the recipe if left out.")
    ] = None,
) -> None:
    """Train a model as RECIPE says; writes recipe.yaml, log.jsonl, checkpoints/ and model/ to the run's folder.

    Exit codes: 0 finished; 2 something that you can fix; 3 a loss or gradient is not finite; 130 and 143 stopped by
    Ctrl-C and SIGTERM with a checkpoint, from which --resume goes on.
    """
    from lm2.cli.build_model import build_model, save_model
    from lm2.cli.provenance import write_record
    from lm2.data.tokenizer import load_tokenizer
    from lm2.train.batches import BatchSource
    from lm2.train.config import load_recipe
    from lm2.train.distributed import check_launch, join_processes, whole_weights
    from lm2.train.guard import NotFiniteError
    from lm2.train.log import check_loggers
    from lm2.train.loop import check_folder
    from lm2.train.loop import train as train_model

    recipe = load_recipe(recipe_path, overrides or ())
    folder = out or Path("runs") / recipe.name
    check_launch(recipe.train)
    check_loggers(recipe)
    with join_processes(recipe.train) as processes:

        def say(text: str) -> None:
            if processes.is_first:
                print(f"lm2 train: {text}", file=sys.stderr)

        processes.together(lambda: check_folder(folder, recipe, resume))
        tokenizer = processes.together(lambda: load_tokenizer(recipe.data.tokenizer))
        model = processes.together(lambda: build_model(recipe.model, tokenizer, recipe.seed))
        num_parameters = model.num_parameters()
        batches = processes.together(lambda: BatchSource(recipe, processes.rank, processes.world_size))
        length = f"{recipe.schedule.total:,} {recipe.schedule.unit}"
        say(f"{recipe.name}, {num_parameters:,} parameters, {length}, to {folder}")
        try:
            result = train_model(model, recipe, batches, folder, processes, resume)
        except NotFiniteError as error:
            say(str(error))
            raise typer.Exit(NOT_FINITE_EXIT_CODE) from error
        step = result.state.progress.step
        if result.signal is not None:
            name = signal.Signals(result.signal).name
            say(f"stopped by {name}; the checkpoint of step {step} is written, --resume goes on from it")
            raise typer.Exit(128 + result.signal)
        weights = whole_weights(model)

        def save() -> None:
            if processes.is_first:
                save_model(folder / "model", model, weights, tokenizer)
                write_record(folder / "model", recipe, num_parameters, result.state)

        processes.together(save)
        accuracy = "" if result.state.accuracy is None else f" with accuracy {result.state.accuracy:.1%}"
        say(f"finished step {step}{accuracy}; the model is in {folder / 'model'}")
