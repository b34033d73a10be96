"""`lm2 eval harness`: tasks of lm-evaluation-harness, such as MMLU, on any causal language model."""

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lm2.cli.options import Device, Dtype, ModelFolder, ModelTokenizer
from lm2.data.bounds import at_least

KIND, VERSION = "lm2-harness", 1


def harness(
    model: ModelFolder,
    tasks: Annotated[str, typer.Option("--tasks", help="Names of tasks or groups, such as mmlu,arc_easy.")],
    out: Annotated[Path | None, typer.Option("--out", help="File for the results, JSON.")] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="A folder with tasks of your own (YAML), also on local files.")
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", help='Choices of a task, JSON: \'{"lengths": "0k,4k"}\' (babilong).')
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", help="Worked examples before a question; else as the task says.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="The first so many questions of each task only.")] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Read the end only of what is too long for a model without a memory.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows at once.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Of the worked examples that are drawn, and of sampling.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    tokenizer: ModelTokenizer = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file OUT.")] = False,
) -> None:
    """Run tasks of lm-evaluation-harness unchanged, on a MODEL that may have a memory: texts of any length are read."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("the tasks need lm-evaluation-harness: pip install 'lm2[harness]'")
    at_least("--num-fewshot", num_fewshot, 0)
    at_least("--limit", limit, 1)
    at_least("--batch-size", batch_size, 1)
    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"--include-path is {str(include_path)!r}, but must be a folder with tasks (YAML)")
    if overwrite and out is None:
        raise ValueError("--overwrite has no effect without --out")
    if out is not None and out.exists() and not overwrite:
        raise ValueError(f"{out} exists already; give --overwrite to replace it, or another --out")

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from lm2.cli.load_model import hash_weights, load_model
    from lm2.data.files import write_whole
    from lm2.eval.harness import HarnessLM
    from lm2.eval.harness_babilong import TASKS_FOLDER

    chosen = _parse_metadata(metadata)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    folders = [str(TASKS_FOLDER), *([] if include_path is None else [str(include_path)])]
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=chosen)
    if not set(names) <= set(manager.all_tasks):
        # The harness's own thousands of tasks take long to list.
        manager = TaskManager(include_path=folders, metadata=chosen)
    _check_tasks(names, manager)
    _check_metadata(chosen, names)
    loaded = load_model(model, device, dtype, tokenizer)
    asked = HarnessLM(loaded.model, loaded.tokenizer, batch_size=batch_size, truncate=truncate)
    try:
        results = simple_evaluate(
            asked,
            tasks=names,
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            log_samples=False,
        )
    except (ConnectionError, OSError) as error:
        raise ValueError(
            f"the data of {', '.join(names)} could not be loaded: {error}. Where there is no hub, write a task on "
            "local files (docs/harness.md) and give its folder with --include-path"
        ) from error
    assert results is not None, "this is the only process"
    if out is not None:
        document = {
            "kind": KIND,
            "version": VERSION,
            "model": loaded.name,
            "weights_sha256": hash_weights(model),
            "parameters": loaded.model.num_parameters(),
            "settings": {
                "tasks": names,
                "metadata": chosen,
                "num_fewshot": num_fewshot,
                "limit": limit,
                "truncate": truncate,
                "seed": seed,
                "batch_size": batch_size,
                "dtype": str(loaded.model.dtype).removeprefix("torch."),
            },
            "truncated_requests": asked.num_truncated,
            **{key: results[key] for key in ("results", "groups", "n-samples", "n-shot", "versions") if key in results},
        }
        with write_whole(out) as file:
            json.dump(document, file, indent=2, default=str)
            file.write("\n")
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    if asked.num_truncated:
        print(f"{asked.num_truncated} requests were too long for the model; it read their ends only")


def _parse_metadata(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        chosen = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--metadata is {text!r}, which is no JSON: {error}") from error
    if not isinstance(chosen, dict):
        raise ValueError(f'--metadata is {text!r}, but must be an object, such as {{"lengths": "0k,4k"}}')
    return chosen


def _check_metadata(chosen: dict[str, Any] | None, names: list[str]) -> None:
    """Other people's tasks know what they know; ours say what they do not."""
    from lm2.eval.harness_babilong import check_metadata

    if chosen is not None and all(name.startswith("babilong") for name in names):
        check_metadata(chosen)


def _check_tasks(names: list[str], manager: Any) -> None:
    if not names:
        raise ValueError("--tasks names none; give some, such as mmlu")
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            import difflib

            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else "; give tasks of your own with --include-path"
            raise ValueError(f"--tasks has {name!r}, which the harness does not know{hint}")
